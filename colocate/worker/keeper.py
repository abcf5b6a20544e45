"""The keeper process: allocates weights and KV, fills the weights, hands both to workers for as long as it lives.

It runs no kernels and imports no torch, so there is little in it that can die; a killed worker finds its memory here.
"""

from __future__ import annotations

import os
import selectors
import socket
import time
import zlib
from pathlib import Path

from colocate.device.cpu.memory import Segment, create_segment, seal_against_writing
from colocate.errors import ChannelClosed
from colocate.messages.control import ChildReady, Shutdown, StartupPhase
from colocate.messages.spec import ProcessSpec
from colocate.model.config import ModelConfig, load_model_config
from colocate.model.layout import KVLayout, WeightLayout
from colocate.model.loader import load_weights
from colocate.transport.board import Board
from colocate.transport.control import ControlChannel
from colocate.types import Role
from colocate.worker.segments import is_same_user, listen_at, send_segments

_BEAT_S = 0.1
_REPORT_EVERY_S = 0.5
_CRC_CHUNK_BYTES = 1 << 24


def run_keeper(spec: ProcessSpec, control: ControlChannel, board: Board) -> None:
    """Entry of the keeper process. Returns on Shutdown or when the supervisor is gone."""
    started_s = time.monotonic()
    # Bound before loading: workers that start beside us connect now and wait for the answer.
    with listen_at(spec.keeper_address) as listener:
        weights, kv, crc32 = _load(spec, control, board)
        board.beat(Role.KEEPER, time.monotonic_ns())
        facts: dict[str, int | float | str] = {
            "weights_bytes": weights.num_bytes,
            "kv_bytes": kv.num_bytes,
            "weights_crc32": crc32,
        }
        control.send(ChildReady(Role.KEEPER, os.getpid(), time.monotonic() - started_s, facts))
        _serve(listener, [weights, kv], crc32, control, board)


def _load(spec: ProcessSpec, control: ControlChannel, board: Board) -> tuple[Segment, Segment, int]:
    """Both segments, the weights filled and sealed. The emulated device has segments of 0 bytes."""
    if spec.facts.device_kind == "emulated":
        return create_segment("weights", 0), create_segment("kv", 0), 0
    facts = spec.facts
    model_dir = Path(facts.model_dir)
    config = load_model_config(model_dir)
    layout = WeightLayout.of(config, facts.dtype)
    control.send(StartupPhase("allocating"))
    kv = create_segment("kv", KVLayout(config, facts.dtype, facts.num_blocks, facts.block_size).nbytes)
    weights = create_segment("weights", layout.nbytes)
    _fill(weights, model_dir, config, layout, _Progress(control, board))
    seal_against_writing(weights)
    return weights, kv, _checksum(weights)


def _fill(weights: Segment, model_dir: Path, config: ModelConfig, layout: WeightLayout, progress: _Progress) -> None:
    buffer = weights.map(writable=True)
    try:
        load_weights(model_dir, config, layout, buffer, progress)
    finally:
        buffer.release()


class _Progress:
    """Tells the supervisor how far loading got, at most twice a second."""

    def __init__(self, control: ControlChannel, board: Board) -> None:
        self._control = control
        self._board = board
        self._next_s = 0.0

    def __call__(self, done_bytes: int, total_bytes: int) -> None:
        now_s = time.monotonic()
        if now_s >= self._next_s:
            self._next_s = now_s + _REPORT_EVERY_S
            self._board.beat(Role.KEEPER, time.monotonic_ns())
            self._control.send(StartupPhase("loading weights", f"{100 * done_bytes // max(1, total_bytes)}%"))


def _checksum(segment: Segment) -> int:
    crc32 = 0
    view = segment.map(writable=False)
    for start in range(0, segment.num_bytes, _CRC_CHUNK_BYTES):
        crc32 = zlib.crc32(view[start : start + _CRC_CHUNK_BYTES], crc32)
    return crc32


def _serve(listener: socket.socket, segments: list[Segment], crc32: int, control: ControlChannel, board: Board) -> None:
    listener.setblocking(False)
    with selectors.DefaultSelector() as selector:
        selector.register(listener, selectors.EVENT_READ)
        selector.register(control.fileno(), selectors.EVENT_READ)
        while True:
            selector.select(_BEAT_S)
            board.beat(Role.KEEPER, time.monotonic_ns())
            _hand_out(listener, segments, crc32)
            try:
                while (message := control.recv()) is not None:
                    if isinstance(message, Shutdown):
                        return
            except ChannelClosed:
                return


def _hand_out(listener: socket.socket, segments: list[Segment], crc32: int) -> None:
    """Answer everyone who waits. A peer of another user, or one that is gone again, gets nothing."""
    while True:
        try:
            peer, _ = listener.accept()
        except BlockingIOError:
            return
        with peer:
            try:
                if is_same_user(peer):
                    send_segments(peer, segments, crc32)
            except OSError:
                continue
