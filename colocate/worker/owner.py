"""`--single-process`: the workers of both phases as two threads of one process, for a GPU where two processes cannot
run kernels at the same time.

Each thread is a whole worker (`worker.main.run_worker`): its own line to the engine, its own lines on the board, its
own heartbeat and deadline, its own streams on its own share of the SMs. Only the line to the supervisor is shared:
this thread relays it. One process means one fate: a worker that ends, however it ends, ends the other.

What is lost against two processes: both threads take turns at the interpreter, and every fault costs both phases a
restart.
"""

from __future__ import annotations

import os
import threading
import time
from dataclasses import dataclass, field

from msgspec import Struct, structs

from colocate.config.roles import workers_in
from colocate.errors import ChannelClosed
from colocate.messages.control import ChildReady, EngineAt, Shutdown
from colocate.messages.spec import ProcessSpec
from colocate.transport.board import Board
from colocate.transport.channel import worker_address
from colocate.transport.control import ControlChannel
from colocate.transport.waiting import Waiter
from colocate.types import Role
from colocate.worker.main import run_worker

_REST_S = 1.0
_LEAVE_S = 1.0  # for the thread that did not fail


@dataclass(slots=True)
class _Lodger:
    """One worker in this process. `ours` is our end of its line to the supervisor, which we stand for."""

    role: Role
    ours: ControlChannel
    thread: threading.Thread | None = None
    ready: ChildReady | None = None
    errors: list[BaseException] = field(default_factory=list)


class Owner:
    """Owned by the process's main thread; used once."""

    def __init__(self, spec: ProcessSpec, control: ControlChannel, board: Board) -> None:
        self._spec = spec
        self._control = control
        self._board = board
        self._started_s = time.monotonic()
        self._lodgers: list[_Lodger] = []
        self._epoch = spec.epoch

    def run(self) -> None:
        """Until told to leave. Raises what a worker raised."""
        try:
            # One after the other: captures of graphs mind each other.
            if all(self._is_ready(self._move_in(role)) for role in workers_in(self._spec.role)):
                self._say_ready()
                while self._relay():
                    pass
        finally:
            self._move_out()
        for lodger in self._lodgers:
            for error in lodger.errors:
                raise error

    def _say_ready(self) -> None:
        """What a worker measures of its process at its start is of both, once the last one says it."""
        facts: dict[str, int | float | str] = {}
        for lodger in self._lodgers:
            facts |= lodger.ready.facts if lodger.ready is not None else {}
        seconds = time.monotonic() - self._started_s
        self._control.send(ChildReady(self._spec.role, os.getpid(), seconds, facts))

    def _address(self, role: Role, epoch: int) -> str:
        return worker_address(self._spec.run_id, epoch, role, self._spec.incarnation)

    def _move_in(self, role: Role) -> _Lodger:
        ours, theirs = ControlChannel.pair()
        lodger = _Lodger(role, ours)
        spec = structs.replace(
            self._spec, role=role, epoch=self._epoch, engine_address=self._address(role, self._epoch)
        )
        lodger.thread = threading.Thread(
            target=_live, args=(lodger, spec, theirs, self._board), name=role.value, daemon=True
        )
        self._lodgers.append(lodger)
        lodger.thread.start()
        self._waiter = Waiter([self._control, *(each.ours for each in self._lodgers)])
        return lodger

    def _is_ready(self, lodger: _Lodger) -> bool:
        """Waits for it. False once anybody has left."""
        while lodger.ready is None:
            if not self._relay():
                return False
        return True

    def _relay(self) -> bool:
        """Pass on what was said, or sleep until something is. False once anybody has left."""
        self._waiter.wait(_REST_S)
        try:
            while (message := self._control.recv()) is not None:
                if not self._to_lodgers(message):
                    return False
        except ChannelClosed:  # the supervisor is gone
            return False
        try:
            for lodger in self._lodgers:
                while (word := lodger.ours.recv()) is not None:
                    if isinstance(word, ChildReady):
                        lodger.ready = word
                    else:
                        self._control.send(word)
        except ChannelClosed:  # this worker is gone, or the supervisor
            return False
        return True

    def _to_lodgers(self, message: Struct) -> bool:
        if isinstance(message, Shutdown):
            return False
        if isinstance(message, EngineAt):  # its address is nobody's: each worker has one of its own
            self._epoch = message.epoch
            for lodger in self._lodgers:
                lodger.ours.send(EngineAt(message.epoch, self._address(lodger.role, message.epoch)))
        return True

    def _move_out(self) -> None:
        for lodger in self._lodgers:
            try:
                lodger.ours.send(Shutdown())
            except ChannelClosed:
                pass
        for lodger in self._lodgers:
            assert lodger.thread is not None
            lodger.thread.join(_LEAVE_S)
            lodger.ours.close()


def _live(lodger: _Lodger, spec: ProcessSpec, control: ControlChannel, board: Board) -> None:
    try:
        run_worker(spec, control, board)
    except BaseException as error:  # raised again by the main thread
        lodger.errors.append(error)
    finally:
        control.close()


def run_owner(spec: ProcessSpec, control: ControlChannel, board: Board) -> None:
    """Entry of the process that owns the GPU. Raises as `run_worker` does."""
    Owner(spec, control, board).run()
