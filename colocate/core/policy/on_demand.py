"""Policy `on-demand`: no partition until a miss is predicted, then the split that `slo` takes.

The idea of DuetServe (arXiv 2511.04791), on plans instead of stream masks.
"""

from __future__ import annotations

from colocate.core.plan import SHARED, Plan, PlanTable
from colocate.core.policy.forecast import Forecast
from colocate.core.policy.lending import Lending
from colocate.core.policy.slo import Slo
from colocate.core.policy.view import LoadView

# Back to `shared` once neither load is predicted over this part of what is allowed.
SAFE = 0.8


class OnDemand:
    """Implements `Policy[bool]`: whether the device is split. `forecast` covers `shared`, `slo` does not choose it."""

    def __init__(self, table: PlanTable, forecast: Forecast, slo: Slo) -> None:
        self.name = "on-demand"
        self.first = table.by_name(SHARED)
        self.forecast = forecast
        self._slo = slo
        self._lending = Lending(table)

    def start(self) -> bool:
        return False

    def decide(self, state: bool, view: LoadView) -> tuple[Plan, bool]:
        lent = self._lending.plan(view)
        if lent is not None:
            return (lent if state else self.first), state
        split = self._slo.split(view)
        is_split = self._is_missed(view, split, SAFE if state else 1.0)
        return (split if is_split else self.first), is_split

    def _is_missed(self, view: LoadView, split: Plan, limit: float) -> bool:
        """Whether `shared` misses a target, at `limit` of it, that the split would serve better."""
        forecast, shared = self.forecast, self.first
        if view.tpot_target_s is not None or view.itl_target_s is not None:
            step_s = forecast.step_s(shared, view)
            if step_s > limit * forecast.allowed_s(view) and forecast.step_s(split, view) < step_s:
                return True
        slack_s = view.ttft_slack_s
        if slack_s is None:
            return False
        drain_s = forecast.drain_s(shared, view)
        return drain_s > limit * slack_s and forecast.drain_s(split, view) < drain_s
