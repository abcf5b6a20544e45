"""Policy `static:PLAN`: one plan, always."""

from __future__ import annotations

from colocate.core.plan import Plan
from colocate.core.policy.view import LoadView


class Static:
    """Implements `Policy[None]`."""

    def __init__(self, plan: Plan) -> None:
        self.name = f"static:{plan.name}"
        self.first = plan

    def start(self) -> None:
        return None

    def decide(self, state: None, view: LoadView) -> tuple[Plan, None]:
        return self.first, None
