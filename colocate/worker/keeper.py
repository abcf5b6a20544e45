"""The keeper process: allocates weights and KV, has the weights filled, hands both to workers for as long as it lives.

It runs no kernels and imports no torch, so there is little in it that can die; a killed worker finds its memory here.
"""

from __future__ import annotations

import os
import selectors
import socket
import time
from typing import Protocol

from colocate.errors import ChannelClosed
from colocate.messages.control import ChildReady, Shutdown, StartupPhase
from colocate.messages.spec import ProcessSpec
from colocate.transport.board import Board
from colocate.transport.control import ControlChannel
from colocate.types import Role
from colocate.worker.segments import is_same_user, listen_at

_BEAT_S = 0.1
_REPORT_EVERY_S = 0.5


class KeptMemory(Protocol):
    """Weights and KV of this run, filled. `host_memory.py` (memfd), `cuda/keeper.py` (a GPU)."""

    def facts(self) -> dict[str, int | float | str]:
        """For `ChildReady`: sizes and the checksum of the weights."""
        ...

    def send_to(self, peer: socket.socket) -> None:
        """Everything one worker needs to map both. Raises OSError where the peer is gone."""
        ...


class LoadingProgress:
    """Tells the supervisor how far loading got, at most twice a second, and that the keeper is alive."""

    def __init__(self, control: ControlChannel, board: Board) -> None:
        self._control = control
        self._board = board
        self._next_s = 0.0

    def phase(self, name: str, detail: str = "") -> None:
        self.beat()
        self._control.send(StartupPhase(name, detail))

    def beat(self) -> None:
        self._board.beat(Role.KEEPER, time.monotonic_ns())

    def __call__(self, done_bytes: int, total_bytes: int) -> None:
        now_s = time.monotonic()
        if now_s >= self._next_s:
            self._next_s = now_s + _REPORT_EVERY_S
            self.phase("loading weights", f"{100 * done_bytes // max(1, total_bytes)}%")


def run_keeper(spec: ProcessSpec, control: ControlChannel, board: Board) -> None:
    """Entry of the keeper process. Returns on Shutdown or when the supervisor is gone."""
    started_s = time.monotonic()
    # Bound before loading: workers that start beside us connect now and wait for the answer.
    with listen_at(spec.keeper_address) as listener:
        memory = _load(spec, LoadingProgress(control, board))
        board.beat(Role.KEEPER, time.monotonic_ns())
        control.send(ChildReady(Role.KEEPER, os.getpid(), time.monotonic() - started_s, memory.facts()))
        _serve(listener, memory, control, board)


def _load(spec: ProcessSpec, progress: LoadingProgress) -> KeptMemory:
    """Imports only what this device needs."""
    if spec.facts.device_kind == "cuda":
        from colocate.worker.cuda.keeper import load_device_segments

        return load_device_segments(spec, progress)
    from colocate.worker.host_memory import load_host_segments, no_segments

    return no_segments() if spec.facts.device_kind == "emulated" else load_host_segments(spec, progress)


def _serve(listener: socket.socket, memory: KeptMemory, control: ControlChannel, board: Board) -> None:
    listener.setblocking(False)
    with selectors.DefaultSelector() as selector:
        selector.register(listener, selectors.EVENT_READ)
        selector.register(control.fileno(), selectors.EVENT_READ)
        while True:
            selector.select(_BEAT_S)
            board.beat(Role.KEEPER, time.monotonic_ns())
            _hand_out(listener, memory)
            try:
                while (message := control.recv()) is not None:
                    if isinstance(message, Shutdown):
                        return
            except ChannelClosed:
                return


def _hand_out(listener: socket.socket, memory: KeptMemory) -> None:
    """Answer everyone who waits. A peer of another user, or one that is gone again, gets nothing."""
    while True:
        try:
            peer, _ = listener.accept()
        except BlockingIOError:
            return
        with peer:
            try:
                if is_same_user(peer):
                    memory.send_to(peer)
            except OSError:
                continue
