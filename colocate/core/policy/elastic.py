"""Policy `elastic`: a split while both phases are busy; an idle phase lends its units to the other."""

from __future__ import annotations

from colocate.core.plan import Plan, PlanTable
from colocate.core.policy.lending import Lending
from colocate.core.policy.view import LoadView


class Elastic:
    """Implements `Policy[None]`."""

    def __init__(self, table: PlanTable, split: Plan, name: str) -> None:
        self.name = name
        self.first = split
        self._lending = Lending(table)

    def start(self) -> None:
        return None

    def decide(self, state: None, view: LoadView) -> tuple[Plan, None]:
        return self._lending.plan(view) or self.first, None
