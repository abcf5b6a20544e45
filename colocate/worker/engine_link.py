"""A worker's line to the engine of the moment, and the supervisor's orders about which engine that is."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable
from enum import Enum, auto

from msgspec import Struct

from colocate.errors import ChannelClosed
from colocate.messages.control import EngineAt, Shutdown, WorkerHello
from colocate.transport.board import Board
from colocate.transport.channel import Channel
from colocate.transport.control import ControlChannel
from colocate.transport.waiting import HasFileno, Waiter
from colocate.types import Role


class Order(Enum):
    LEAVE = auto()  # Shutdown, or the supervisor is gone
    RESET = auto()  # a new engine: every row of the old one is void


class EngineLink:
    """Nothing said here is dropped: what the channel refuses waits in order. The loop that speaks too fast looks at
    `is_clear` and pauses."""

    def __init__(
        self,
        role: Role,
        incarnation: int,
        control: ControlChannel,
        board: Board,
        open_channel: Callable[[str], Channel],
    ) -> None:
        self._role = role
        self._incarnation = incarnation
        self._control = control
        self._board = board
        self._open_channel = open_channel
        self._channel: Channel | None = None
        self._at: EngineAt | None = None
        self._unsent: deque[Struct] = deque()
        self._waiter = self._watch([control])

    def meet(self, at: EngineAt) -> None:
        """Leave the old engine and say Hello to this one: no row of an older epoch lives here any more."""
        self.close()
        self._at = at
        self._unsent.clear()
        self._channel = self._open_channel(at.address)
        self._waiter = self._watch([self._channel, self._control])
        self.send(WorkerHello(self._role, self._incarnation, at.epoch, os.getpid()))

    @property
    def is_clear(self) -> bool:
        """Everything said so far is on its way."""
        return not self._unsent

    def send(self, message: Struct) -> None:
        if self._unsent or self._channel is None or not self._channel.send(message):
            self._unsent.append(message)

    def flush(self) -> bool:
        """Try again to send what waits; `is_clear`."""
        while self._unsent and self._channel is not None and self._channel.send(self._unsent[0]):
            self._unsent.popleft()
        return not self._unsent

    def recv(self) -> Struct | None:
        """Raises ChannelClosed where the engine's messages have a gap: this worker cannot go on."""
        return None if self._channel is None else self._channel.recv()

    def inject(self, parts: tuple[bytes, ...]) -> None:
        """Raw parts on the wire, for injected faults."""
        inject = getattr(self._channel, "inject", None)
        if inject is not None:
            inject(parts)

    def orders(self, let_go: Callable[[], None]) -> Order | None:
        """What the supervisor wants. Before any order is answered, `let_go` waits for what is under way on the device:
        a greeting promises that nothing of the old rows is touched. On RESET the new engine has been greeted; the
        caller drops its rows."""
        order: Order | None = None
        while True:
            try:
                message = self._control.recv()
            except ChannelClosed:
                let_go()
                return Order.LEAVE
            if message is None:
                return order
            if isinstance(message, Shutdown):
                let_go()
                return Order.LEAVE
            if isinstance(message, EngineAt) and message != self._at:
                let_go()
                self.meet(message)
                order = Order.RESET

    def wait(self, timeout_s: float) -> None:
        """Sleep until the engine or the supervisor says something, or the board's bell rings."""
        self._waiter.wait(timeout_s)
        self._board.hush(self._role)

    def _watch(self, sources: list[HasFileno | int]) -> Waiter:
        bell = self._board.bell_of(self._role)
        return Waiter(sources if bell is None else [*sources, bell])

    def close(self) -> None:
        if self._channel is not None:
            self._channel.close()
            self._channel = None
