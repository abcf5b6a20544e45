"""The profiler's line to everyone: the two workers' channels, the supervisor's orders, the board."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Protocol

from msgspec import Struct

from colocate.errors import ChannelClosed, MeasuringFailed
from colocate.messages.control import PlanApplied, Shutdown, WorkerGone, WorkerHello, WorkerStarting
from colocate.messages.prefill import BatchFailed
from colocate.transport.board import Board
from colocate.transport.channel import Channel
from colocate.transport.control import ControlChannel
from colocate.transport.waiting import Waiter
from colocate.transport.zmq_channel import bind_for_worker
from colocate.types import WORKER_ROLES, Role

_BEAT_S = 0.1
_RETRY_S = 0.002  # while a channel is full


class Leave(Exception):
    """The supervisor wants this process to end."""


class WorkerLine(Protocol):
    """What measuring needs of the two workers."""

    @property
    def worker_pids(self) -> dict[Role, int]: ...

    def set_plan(self, plan_index: int) -> None:
        """Returns when it is in force in both workers."""
        ...

    def send(self, role: Role, message: Struct) -> None: ...

    def hear(self, deadline_ns: int) -> Struct | None:
        """The next report of a worker, or None at the deadline."""
        ...


class Line:
    """Implements `WorkerLine`. Every wait keeps the heartbeat going and obeys the supervisor."""

    def __init__(self, control: ControlChannel, board: Board, first_plan_seq: int) -> None:
        self._control = control
        self._board = board
        self._channels: dict[Role, Channel] = {}
        self._unsent: dict[Role, deque[Struct]] = {role: deque() for role in WORKER_ROLES}
        self._heard: deque[Struct] = deque()
        self._pids: dict[Role, int] = {}  # of those that have said Hello
        self._applied: dict[Role, int] = {}
        self._plan_seq = first_plan_seq - 1
        self._waiter = Waiter([control])

    def wait_for_workers(self) -> None:
        """Until both have said Hello. The supervisor watches how long they take."""
        self._until(lambda: len(self._pids) == len(WORKER_ROLES))

    @property
    def worker_pids(self) -> dict[Role, int]:
        return self._pids

    def set_plan(self, plan_index: int) -> None:
        """Put a plan on the board; returns when it is in force in both workers."""
        self._plan_seq += 1
        self._board.set_plan(self._plan_seq, plan_index)
        for role in WORKER_ROLES:
            self._board.ring(role)
        self._until(lambda: all(self._applied.get(role) == self._plan_seq for role in WORKER_ROLES))

    def send(self, role: Role, message: Struct) -> None:
        unsent = self._unsent[role]
        if unsent or not self._channels[role].send(message):
            unsent.append(message)

    def hear(self, deadline_ns: int) -> Struct | None:
        """The next report of a worker, or None at the deadline (monotonic). Raises MeasuringFailed, Leave."""
        while not self._heard:
            now_ns = time.monotonic_ns()
            if now_ns >= deadline_ns:
                return None
            self._wait((deadline_ns - now_ns) / 1e9)
        return self._heard.popleft()

    def close(self) -> None:
        for channel in self._channels.values():
            channel.close()

    def _until(self, is_done: Callable[[], bool]) -> None:
        while not is_done():
            self._wait(_BEAT_S)

    def _wait(self, timeout_s: float) -> None:
        waits_to_send = any(self._unsent.values())
        self._waiter.wait(min(timeout_s, _RETRY_S if waits_to_send else _BEAT_S))
        self._board.beat(Role.ENGINE, time.monotonic_ns())
        self._read_control()
        for role in list(self._channels):
            self._flush(role)
            self._read_channel(role)

    def _flush(self, role: Role) -> None:
        unsent = self._unsent[role]
        while unsent and self._channels[role].send(unsent[0]):
            unsent.popleft()

    def _read_control(self) -> None:
        while True:
            try:
                message = self._control.recv()
            except ChannelClosed:
                raise Leave from None
            if message is None:
                return
            if isinstance(message, Shutdown):
                raise Leave
            if isinstance(message, WorkerStarting):
                self._channels[message.role] = bind_for_worker(message.address, message.role)
                self._waiter = Waiter([self._control, *self._channels.values()])
            elif isinstance(message, WorkerGone):
                raise MeasuringFailed(f"the {message.role.value} worker {message.cause}")

    def _read_channel(self, role: Role) -> None:
        while (message := self._channels[role].recv()) is not None:
            if isinstance(message, WorkerHello):
                self._pids[role] = message.pid
            elif isinstance(message, PlanApplied):
                self._applied[role] = message.seq
            elif isinstance(message, BatchFailed):
                raise MeasuringFailed(f"the {role.value} worker failed at a forward: {message.error}")
            else:
                self._heard.append(message)
