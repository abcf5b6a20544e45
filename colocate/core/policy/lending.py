"""An idle phase lends its units to the other one."""

from __future__ import annotations

from colocate.core.plan import ALL_DECODE, ALL_PREFILL, Plan, PlanTable
from colocate.core.policy.view import LoadView


class Lending:
    """With both phases idle the plan stays as it is: a switch would buy nothing."""

    __slots__ = ("_all_decode", "_all_prefill")

    def __init__(self, table: PlanTable) -> None:
        self._all_prefill = table.by_name(ALL_PREFILL)
        self._all_decode = table.by_name(ALL_DECODE)

    def plan(self, view: LoadView) -> Plan | None:
        """The plan for a view in which a phase is idle; None where both are busy."""
        if view.prefill_busy:
            return None if view.decode_busy else self._all_prefill
        return self._all_decode if view.decode_busy else view.current
