"""A second policy that sees the same load and serves nothing: what would it have done?"""

from __future__ import annotations

from typing import Any

from msgspec.structs import replace

from colocate.core.plan import Plan
from colocate.core.policy.view import LoadView, Policy
from colocate.messages.client import ShadowRecord


class Shadow:
    """Owned by the controller. Agreement is counted over phase-active time: a plan that is wanted while nothing runs
    would have had no effect."""

    __slots__ = (
        "_active_ns",
        "_agreed_ns",
        "_agrees",
        "_policy",
        "_seen_ns",
        "_state",
        "_was_active",
        "switch_count",
        "wants",
    )

    def __init__(self, policy: Policy[Any]) -> None:
        self._policy = policy
        self._state = policy.start()
        self.wants = policy.first
        self.switch_count = 0
        self._active_ns = 0
        self._agreed_ns = 0
        self._seen_ns = 0
        self._was_active = False
        self._agrees = False

    def see(self, view: LoadView, served: Plan) -> None:
        """The load now, and the plan that the serving policy answered it with."""
        self._account(view.now_ns)
        own_view = view if view.current is self.wants else replace(view, current=self.wants)
        wants, self._state = self._policy.decide(self._state, own_view)
        self.switch_count += wants is not self.wants
        self.wants = wants
        self._was_active = view.prefill_busy or view.decode_busy
        self._agrees = wants is served

    def _account(self, now_ns: int) -> None:
        if self._was_active:
            self._active_ns += now_ns - self._seen_ns
            self._agreed_ns += now_ns - self._seen_ns if self._agrees else 0
        self._seen_ns = now_ns

    def record(self) -> ShadowRecord:
        agreement = self._agreed_ns / self._active_ns if self._active_ns else 1.0
        return ShadowRecord(self._policy.name, self.wants.name, agreement, self.switch_count)
