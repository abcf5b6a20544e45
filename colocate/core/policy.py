"""Which plan should be in force: pure functions of what the engine sees."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from colocate.core.plan import ALL_DECODE, ALL_PREFILL, SHARED, Plan, PlanTable
from colocate.errors import ConfigError


@dataclass(frozen=True, slots=True)
class LoadView:
    """What a policy may look at."""

    prefill_busy: bool  # a forward is with the prefill worker
    decode_busy: bool  # a row is in the standing batch
    current: Plan


Policy: TypeAlias = Callable[[LoadView], Plan]
"""Returns the plan that should be in force now. Called after every event; O(1); never raises."""


def static(plan: Plan) -> Policy:
    """Always the same plan."""
    return lambda view: plan


def elastic(table: PlanTable, split: Plan) -> Policy:
    """The split while both phases are busy; an idle phase lends its units to the other.

    With nothing to do the plan stays as it is: a switch would buy nothing.
    """
    all_prefill, all_decode = table.by_name(ALL_PREFILL), table.by_name(ALL_DECODE)

    def decide(view: LoadView) -> Plan:
        if view.prefill_busy and view.decode_busy:
            return split
        if view.prefill_busy:
            return all_prefill
        if view.decode_busy:
            return all_decode
        return view.current

    return decide


@dataclass(frozen=True, slots=True)
class PolicyChoice:
    """A policy by name, and the plan it starts in."""

    name: str
    decide: Policy
    first: Plan


def choose_policy(mode: str, setting: str, table: PlanTable) -> PolicyChoice:
    """Resolve `--mode` and `--plan`: `elastic`, `elastic:SPLIT`, `static:PLAN`, or a bare plan name.

    A plan that gives a phase nothing cannot serve by itself, so `static` refuses it. A device with one unit has the
    plan `shared` only, and every policy becomes that. Raises ConfigError.
    """
    shared = table.by_name(SHARED)
    if mode == "shared":
        if setting not in ("elastic", SHARED, f"static:{SHARED}"):
            raise ConfigError(
                "plan", f"mode 'shared' runs no partition, so plan {setting!r} cannot hold", "drop --plan"
            )
        return PolicyChoice(f"static:{SHARED}", static(shared), shared)
    kind, _, name = setting.partition(":")
    if kind == "elastic":
        split = table.by_name(name or table.default_split)
        if not split.is_split and split is not shared:
            raise ConfigError("plan", f"elastic needs a split to start from, not {split.name!r}", "name a split: p1d1")
        if len(table.plans) == 1:
            return PolicyChoice(f"static:{SHARED}", static(shared), shared)
        return PolicyChoice(setting, elastic(table, split), split)
    plan = table.by_name(name if kind == "static" else setting)
    if plan.prefill_units == 0 or plan.decode_units == 0:
        idle = "prefill" if plan.prefill_units == 0 else "decode"
        raise ConfigError(
            "plan", f"static:{plan.name} would never run {idle}", "choose a split or 'shared', or use --plan elastic"
        )
    return PolicyChoice(f"static:{plan.name}", static(plan), plan)
