"""What simulated workers share: an inbox read between two pieces of work, the border, and the line to the engine."""

from __future__ import annotations

from collections.abc import Callable

from msgspec import Struct

from colocate.core.engine import Event
from colocate.sim.boundary import SimBoundary
from colocate.sim.clock import VirtualClock
from colocate.sim.truth import DeviceTruth


class Station:
    """Composed into a worker. `turn` is the worker's own; it runs at once while the worker rests, else at the next end
    of a slice or step. `busy_units` is what the other phase contends with."""

    __slots__ = (
        "_owed_ns",
        "_switch_ns",
        "_turn_ns",
        "boundary",
        "busy_units",
        "clock",
        "inbox",
        "is_working",
        "send",
        "truth",
        "turn",
    )

    def __init__(
        self,
        clock: VirtualClock,
        truth: DeviceTruth,
        boundary: SimBoundary,
        send: Callable[[Event], None],
        turn_ns: int,
        switch_ns: int,
    ) -> None:
        self.clock = clock
        self.truth = truth
        self.boundary = boundary
        self.send = send  # to the engine; it hears of it one message later
        self.inbox: list[Struct] = []
        self.is_working = False
        self.busy_units = 0
        self.turn: Callable[[None], None] = _no_turn
        self._turn_ns = turn_ns
        self._switch_ns = switch_ns
        self._owed_ns = 0  # of a switch, before the next piece of work

    def receive(self, message: Struct) -> None:
        """A message of the engine's has come."""
        self.inbox.append(message)
        if not self.is_working:
            self.turn(None)

    def ring(self, _: None = None) -> None:
        """The plan asked for has changed, or the other worker has let go of units."""
        if not self.is_working:
            self.turn(None)

    def settle(self) -> bool:
        """Apply a changed plan and acknowledge it. True where there are units to work on."""
        boundary = self.boundary
        if not boundary.is_settled():
            num_units = boundary.num_units
            applied = boundary.check(self.clock.now_ns)
            if boundary.num_units != num_units:
                self._owed_ns = self._switch_ns
            if applied is not None:
                self.send(applied)
        return boundary.num_units > 0

    def work(self, seconds: float, done: Callable[[int], None]) -> None:
        """Be busy for so long on the units held now, then call `done` with the time it started."""
        now_ns = self.clock.now_ns
        self.is_working = True
        self.busy_units = self.boundary.num_units
        self.clock.at(now_ns + self._owed_ns + max(int(seconds * 1e9), 1), done, now_ns + self._owed_ns)
        self._owed_ns = 0

    def rest(self) -> None:
        """Nothing to do before the next message or bell."""
        self.is_working = False
        self.busy_units = 0

    def next_turn(self) -> None:
        """The end of a slice or step: what the loop around it costs, then the next turn."""
        self.clock.at(self.clock.now_ns + self._turn_ns, self.turn, None)


def _no_turn(_: None) -> None:
    raise AssertionError("a station without a worker")
