"""Which plan should be in force: pure functions of what the engine sees, and the controller that holds their state."""

from colocate.core.policy.choose import choose_policy
from colocate.core.policy.controller import Controller
from colocate.core.policy.view import LoadView, Policy

__all__ = ["Controller", "LoadView", "Policy", "choose_policy"]
