"""Policy `slo`: feed-forward. Decode gets the least that keeps its target, prefill the rest.

Prefill work scales to the last unit and decode saturates early, so whatever decode does not need is worth most to
prefill. Two cases differ:
* First tokens are predicted well ahead of their deadlines: then the plan that leaves both targets the most relative
  slack, because slack of decode is worth something too (it absorbs what the model did not foresee).
* Admission is blocked: no prompt can start before rows leave, so speed of decode is all that helps.
"""

from __future__ import annotations

from colocate.core.plan import Plan, PlanTable
from colocate.core.policy.forecast import Forecast
from colocate.core.policy.lending import Lending
from colocate.core.policy.view import LoadView


class Slo:
    """Implements `Policy[None]`. Starts with the static plan, until there is a load to judge by."""

    def __init__(self, table: PlanTable, forecast: Forecast) -> None:
        self.name = "slo"
        self.first = forecast.static
        self.forecast = forecast
        self._lending = Lending(table)

    def start(self) -> None:
        return None

    def decide(self, state: None, view: LoadView) -> tuple[Plan, None]:
        return self._lending.plan(view) or self.split(view), None

    def split(self, view: LoadView) -> Plan:
        """The plan for two busy phases. O(plans)."""
        forecast = self.forecast
        if view.admission_blocked:
            return forecast.knee(view)
        allowed_s = forecast.allowed_s(view)
        limit_s = forecast.drain_limit_s(view)
        if limit_s is None or allowed_s <= 0.0:
            return forecast.smallest_meeting(view, allowed_s)
        return forecast.most_balanced(view, allowed_s, limit_s)
