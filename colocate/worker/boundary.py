"""What happens to a plan change at a boundary: let go at once, take only what the other worker has let go.

Each worker publishes how many units it holds, counted from its own end of the device (`Board.set_held`). Rules:

1. A smaller share is taken at once, and published once the partition has settled: what was launched before may still
   run on the units given up (GPU). Until then they count as held, and may be taken again without asking.
2. A larger share is claimed on the board first and taken after looking at the other worker's claim again, so of two
   workers that grow towards each other at the same instant at least one sees the other and steps back.
3. Until the other worker has let go, the part that is free is taken, and every boundary looks again.
4. Under the plan named `shared` both see every unit and nobody waits.

A plan is in force here once exactly its share is held and, unless it is shared, nobody else holds any of it.

In mode `chunked` the only worker has no peer, its plan is `shared`, and it acknowledges for both phases.
"""

from __future__ import annotations

from collections.abc import Callable

from colocate.core.plan import SHARED, Plan, PlanTable
from colocate.device.partition import Partition
from colocate.errors import InvariantError
from colocate.messages.control import PlanApplied
from colocate.transport.board import Board, plan_of
from colocate.types import Role


def peer_of(role: Role) -> Role | None:
    """The worker of the other phase; None where one worker runs both."""
    return {Role.PREFILL: Role.DECODE, Role.DECODE: Role.PREFILL}.get(role)


class Boundary:
    """One worker's side of every plan switch. Owned by its main loop; `check` is called between slices or steps."""

    def __init__(
        self,
        role: Role,
        table: PlanTable,
        board: Board,
        partition: Partition,
        units_changed: Callable[[int], None],
        clock_ns: Callable[[], int],
    ) -> None:
        self._role = role
        self._peer = peer_of(role)
        self._table = table
        self._board = board
        self._partition = partition
        self._units_changed = units_changed
        self._clock_ns = clock_ns
        self._word = 0  # the plan word last acted on
        self._published = 0  # held according to the board: at least what unfinished work may run on
        self.num_units = 0  # what is launched now may use
        self.plan_seq = 0  # the plan last in force here
        self.is_pending = False  # the plan asked for is not in force yet: look again soon

    def check(self) -> PlanApplied | None:
        """Act on the board's plan word. If a plan came into force: what to acknowledge, under this worker's role."""
        word = self._board.plan_word()
        if word == self._word and not self.is_pending:
            return None
        self._word = word
        seq, plan_index = plan_of(word)
        if not seq:
            return None
        plan = self._plan(plan_index)
        target = len(plan.units_of(self._role, self._table.total_units))
        is_shared = plan.name == SHARED
        if target < self.num_units:
            self._take(target)
        elif target > self.num_units:
            self._grow(target, is_shared)
        if self._published > self.num_units and self._partition.settled():
            self._release()
        is_alone = is_shared or self._is_exclusive(self.num_units)
        self.is_pending = self.num_units != target or self._published != target or not is_alone
        if self.is_pending:
            return None
        now_ns = self._clock_ns()
        self._board.set_applied(self._role, seq, plan_index, now_ns)
        self.plan_seq = seq
        return PlanApplied(self._role, seq, now_ns)

    def restate(self) -> None:
        """A new engine does not know what is in force: acknowledge the plan again at the next check."""
        self._word = 0

    def units(self, num_units: int) -> tuple[int, ...]:
        """Which units a share of this size is."""
        return Plan("", num_units, num_units).units_of(self._role, self._table.total_units)

    def _plan(self, plan_index: int) -> Plan:
        if plan_index >= len(self._table.plans):
            raise InvariantError(f"the board names plan {plan_index}; this device has {len(self._table.plans)}")
        return self._table.plans[plan_index]

    def _is_exclusive(self, num_units: int) -> bool:
        return num_units + self._held_by_peer() <= self._table.total_units

    def _held_by_peer(self) -> int:
        return 0 if self._peer is None else self._board.held(self._peer)

    def _release(self) -> None:
        self._publish(self.num_units)
        if self._peer is not None:
            self._board.ring(self._peer)  # it may be waiting for just these

    def _grow(self, target: int, is_shared: bool) -> None:
        free = self._table.total_units if is_shared else self._table.total_units - self._held_by_peer()
        claim = min(target, free)
        if claim <= self.num_units:
            return
        before = self._published
        if claim > before:
            self._publish(claim)
        if is_shared or self._is_exclusive(claim):
            self._take(claim)
        elif claim > before:
            self._publish(before)

    def _publish(self, num_units: int) -> None:
        self._published = num_units
        self._board.set_held(self._role, num_units)

    def _take(self, num_units: int) -> None:
        self._partition.apply(self.units(num_units))
        self._units_changed(num_units)
        self.num_units = num_units
