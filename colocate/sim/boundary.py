"""Plan changes at a simulated worker's boundary, by the rules of `worker/boundary.py`: let go at once, take only what
the other has let go, everybody sees everything under `shared`. Here nothing happens at the same instant, so claims
need no second look."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from colocate.core.plan import SHARED, Plan
from colocate.messages.control import PlanApplied
from colocate.types import Role


@dataclass(slots=True)
class SimBoard:
    """What both workers see: the plan asked for, and how many units each holds."""

    total_units: int
    seq: int = 0
    plan: Plan | None = None
    held: dict[Role, int] = field(default_factory=lambda: {Role.PREFILL: 0, Role.DECODE: 0})


class SimBoundary:
    """One worker's side of every switch."""

    __slots__ = ("_board", "_peer", "_ring_peer", "_role", "num_units", "plan_seq")

    def __init__(self, role: Role, board: SimBoard, ring_peer: Callable[[], None]) -> None:
        self._role = role
        self._peer = Role.DECODE if role is Role.PREFILL else Role.PREFILL
        self._board = board
        self._ring_peer = ring_peer
        self.num_units = 0
        self.plan_seq = 0

    def is_settled(self) -> bool:
        """Nothing to do: the plan asked for is in force here."""
        return self._board.seq == self.plan_seq

    def check(self, now_ns: int) -> PlanApplied | None:
        """Act on the plan asked for. The acknowledgement, if it came into force."""
        board, plan = self._board, self._board.plan
        if plan is None or board.seq == self.plan_seq:
            return None
        target = plan.decode_units if self._role is Role.DECODE else plan.prefill_units
        free = board.total_units if plan.name == SHARED else board.total_units - board.held[self._peer]
        if target < self.num_units:
            self._hold(target)
            self._ring_peer()
        elif min(target, free) > self.num_units:
            self._hold(min(target, free))
        if self.num_units != target or (plan.name != SHARED and self.num_units > free):
            return None
        self.plan_seq = board.seq
        return PlanApplied(self._role, board.seq, now_ns)

    def _hold(self, num_units: int) -> None:
        self.num_units = num_units
        self._board.held[self._role] = num_units
