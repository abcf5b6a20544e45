"""What an operator may change while the daemon runs: pin a plan, change SLO targets, read a plan file again."""

from __future__ import annotations

from colocate.core.plan import PlanTable
from colocate.core.policy.controller import Controller
from colocate.core.slo import SloBook
from colocate.errors import ConfigError
from colocate.messages.client import ChangeSlo, ControlReply, PinPlan, UsePlans


class Operator:
    """Owned by the engine. Every order is an event, so a replay obeys it at the same place."""

    def __init__(self, controller: Controller, slo: SloBook, table: PlanTable) -> None:
        self._controller = controller
        self._slo = slo
        self._table = table

    def obey(self, message: PinPlan | ChangeSlo | UsePlans) -> ControlReply:
        """Done, or nothing changed and the reply says why."""
        try:
            if isinstance(message, PinPlan):
                self._controller.pin(None if message.plan is None else self._table.by_name(message.plan))
            elif isinstance(message, UsePlans):
                self._controller.use_plans(tuple(message.plans), message.best_static)
            else:
                problem = self._slo.change(message.classes)
                if problem:
                    return ControlReply(message.query_id, problem, "change classes that were configured at start")
        except ConfigError as error:
            return ControlReply(message.query_id, error.problem, error.remedy)
        return ControlReply(message.query_id)
