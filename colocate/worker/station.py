"""What every worker loop does around their work: orders, plan changes, the line to the engine, resting."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum, auto
from typing import Protocol

from colocate.config.roles import phases_of
from colocate.messages.control import PlanApplied
from colocate.worker.boundary import Boundary
from colocate.worker.engine_link import EngineLink, Order
from colocate.worker.progress import Progress

_CONTROL_EVERY_NS = 5_000_000  # the supervisor's orders can wait this long while there is work
_REST_S = 1.0
_RETRY_S = 0.002  # while the engine is behind, or not there yet, or the other worker still holds units of ours


class Turn(Enum):
    WORKED = auto()
    WAITING = auto()  # nothing can be done before a message, an order or the board changes
    LEFT = auto()


class Station:
    """Composed into a loop, one per worker. Every plan change and every message passes through here."""

    def __init__(self, link: EngineLink, boundary: Boundary, progress: Progress, clock_ns: Callable[[], int]) -> None:
        self.link = link
        self.boundary = boundary
        self.progress = progress
        self._clock_ns = clock_ns
        self._next_control_ns = 0

    def orders(self, let_go: Callable[[], None]) -> Order | None:
        """The supervisor's, looked at every few milliseconds and after every rest. `let_go` as in `EngineLink`."""
        now_ns = self._clock_ns()
        if now_ns < self._next_control_ns:
            return None
        self._next_control_ns = now_ns + _CONTROL_EVERY_NS
        order = self.link.orders(let_go)
        if order is Order.RESET:
            self.boundary.restate()
        return order

    def now_ns(self) -> int:
        return self._clock_ns()

    def settle(self) -> bool:
        """Apply a changed plan, acknowledge it, send what waits. True where work may be launched now."""
        applied = self.boundary.check()
        if applied is not None:
            for phase in phases_of(applied.role):
                self.link.send(PlanApplied(phase, applied.seq, applied.applied_ns))
        return self.link.flush() and self.boundary.num_units > 0

    def rest(self) -> None:
        """Sleep until there may be something to do. Nothing is due meanwhile."""
        self.progress.idle()
        self._next_control_ns = 0
        self.link.wait(_REST_S if self.link.is_clear and not self.boundary.is_pending else _RETRY_S)


class WorkerLoop(Protocol):
    def turn(self) -> Turn:
        """Everything up to and including one slice or one step; never blocks beyond that."""
        ...


def run(loop: WorkerLoop, station: Station) -> None:
    """Turn until told to leave."""
    while True:
        turn = loop.turn()
        if turn is Turn.LEFT:
            return
        if turn is Turn.WAITING:
            station.rest()
