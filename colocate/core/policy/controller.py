"""The engine's one question about plans: which one should be in force now?

Holds a policy with its guards, the shadow policy, and an operator's pin. It is asked after every event, so most answers
are the last one again: a full evaluation happens when a phase starts or ends work, when the load moved by a noticeable
part, or when REVIEW_NS have passed.
"""

from __future__ import annotations

from typing import Any

from msgspec.structs import replace

from colocate.core.latency import LatencyModel
from colocate.core.plan import Plan, PlanTable
from colocate.core.policy.choose import candidate_plans, choose_policy, static_plan
from colocate.core.policy.guards import Guarded
from colocate.core.policy.shadow import Shadow
from colocate.core.policy.view import LoadView, Policy
from colocate.core.settings import EngineSettings
from colocate.errors import ConfigError
from colocate.messages.client import ShadowRecord

REVIEW_NS = 1_000_000
# The load has moved when rows or waiting tokens differ by more than an eighth from those last judged, and by more than
# these few.
FEW_ROWS = 2
FEW_TOKENS = 256


class Controller:
    """Owned by the engine. The same views at the same times give the same plans. `decide` never raises."""

    def __init__(self, settings: EngineSettings, table: PlanTable, model: LatencyModel | None) -> None:
        self._settings = settings
        self._table = table
        self._model = model
        self._policy: Policy[Any] = choose_policy(settings, settings.plan, table, model)
        self._state: Any = self._policy.start()
        self._shadow = _shadow(settings, table, model)
        self._earlier_counts: dict[str, int] = {}  # of policies before the last plan file
        self._judged: LoadView | None = None
        self._answer = self._policy.first
        self.first = self._policy.first
        self.pinned: Plan | None = None

    @property
    def policy_name(self) -> str:
        return self._policy.name

    @property
    def candidates(self) -> tuple[str, ...]:
        """Names of the plans a dynamic policy may choose from while both phases are busy."""
        return tuple(plan.name for plan in candidate_plans(self._settings, self._table))

    @property
    def best_static(self) -> str:
        return static_plan(self._settings, self._table).name

    @property
    def guard_counts(self) -> dict[str, int]:
        """How often each guard changed what the policy wanted, since the start."""
        counts = dict(self._earlier_counts)
        if isinstance(self._policy, Guarded):
            for name, count in self._policy.counts(self._state).items():
                counts[name] = counts.get(name, 0) + count
        return counts

    @property
    def shadow_record(self) -> ShadowRecord | None:
        return None if self._shadow is None else self._shadow.record()

    def decide(self, view: LoadView) -> Plan:
        """The plan that should be in force. At most 20 microseconds, mostly far less."""
        judged = self._judged
        if judged is not None and view.now_ns - judged.now_ns < REVIEW_NS and _is_alike(view, judged):
            return self._answer
        self._judged = view
        if self.pinned is not None:
            self._answer = self.pinned
        else:
            self._answer, self._state = self._policy.decide(self._state, view)
        if self._shadow is not None:
            self._shadow.see(view, self._answer)
        return self._answer

    @property
    def reason(self) -> str:
        """Why the last answer was given, short, for the switch ledger."""
        view = self._judged
        if view is None:
            return "start"
        phases = f"prefill {'busy' if view.prefill_busy else 'idle'}, decode {'busy' if view.decode_busy else 'idle'}"
        if self.pinned is not None:
            return f"pinned; {phases}"
        if not isinstance(self._policy, Guarded):
            return phases
        by = self._policy.changing(self._state)
        load = (
            f"{view.num_rows} rows, {view.prefill_tokens} prompt tokens{', blocked' if view.admission_blocked else ''}"
        )
        return f"{phases}; {load}; {self._policy.name}{''.join(f' < {name}' for name in by)}"

    def pin(self, plan: Plan | None) -> None:
        """Hold this plan whatever the policy says; None ends that. Raises ConfigError, and changes nothing, where the
        plan cannot serve both phases or the mode runs no partition."""
        if plan is not None:
            choose_policy(self._settings, f"static:{plan.name}", self._table, None)
        self.pinned = plan
        self._judged = None

    def use_plans(self, candidates: tuple[str, ...], best_static: str) -> None:
        """Choose among these plans from now on, starting afresh; the shadow does as well. Raises ConfigError, and
        changes nothing, where a name is not in the device's table or serves one phase only."""
        settings = replace(self._settings, candidates=candidates, best_static=best_static)
        if not candidates:
            raise ConfigError("plans", "names no plan", "name at least one split of this device")
        candidate_plans(settings, self._table)
        static_plan(settings, self._table)
        policy = choose_policy(settings, settings.plan, self._table, self._model)
        shadow = _shadow(settings, self._table, self._model)
        self._earlier_counts = self.guard_counts
        self._settings, self._policy, self._state = settings, policy, policy.start()
        self._shadow = shadow
        self._judged = None


def _shadow(settings: EngineSettings, table: PlanTable, model: LatencyModel | None) -> Shadow | None:
    if settings.shadow is None:
        return None
    return Shadow(choose_policy(settings, settings.shadow, table, model, "shadow"))


def _is_alike(view: LoadView, judged: LoadView) -> bool:
    """Whether the plan for one load is good enough for the other. O(1), about a microsecond."""
    if (
        view.prefill_busy is not judged.prefill_busy
        or view.decode_busy is not judged.decode_busy
        or view.admission_blocked is not judged.admission_blocked
    ):
        return False
    rows, tokens = judged.num_rows, judged.prefill_tokens
    return abs(view.num_rows - rows) <= max(FEW_ROWS, rows >> 3) and abs(view.prefill_tokens - tokens) <= max(
        FEW_TOKENS, tokens >> 3
    )
