"""The keeper's memory on a CPU: memfd segments, filled by the keeper itself. Imports no torch."""

from __future__ import annotations

import socket
from pathlib import Path

from colocate.device.cpu.memory import Segment, create_segment, seal_against_writing
from colocate.messages.spec import ProcessSpec
from colocate.model.checksum import checksum
from colocate.model.config import load_model_config
from colocate.model.dummy import draw_weights
from colocate.model.layout import KVLayout, WeightLayout
from colocate.model.loader import HostMemory, load_weights
from colocate.worker.keeper import LoadingProgress
from colocate.worker.segments import send_segments


class HostSegments:
    """Implements `KeptMemory`."""

    def __init__(self, weights: Segment, kv: Segment, weights_crc32: int) -> None:
        self._weights = weights
        self._kv = kv
        self._weights_crc32 = weights_crc32

    def facts(self) -> dict[str, int | float | str]:
        return {
            "weights_bytes": self._weights.num_bytes,
            "kv_bytes": self._kv.num_bytes,
            "weights_crc32": self._weights_crc32,
        }

    def send_to(self, peer: socket.socket) -> None:
        send_segments(peer, [self._weights, self._kv], self._weights_crc32)


def no_segments() -> HostSegments:
    """The emulated device has segments of 0 bytes."""
    return HostSegments(create_segment("weights", 0), create_segment("kv", 0), 0)


def load_host_segments(spec: ProcessSpec, progress: LoadingProgress) -> HostSegments:
    """Both segments, the weights filled and sealed. Raises ConfigError."""
    facts, model_dir = spec.facts, Path(spec.facts.model_dir)
    config = load_model_config(model_dir)
    layout = WeightLayout.of(config, facts.dtype)
    progress.phase("allocating")
    kv = create_segment("kv", KVLayout(config, facts.dtype, facts.num_blocks, facts.block_size).nbytes)
    weights = create_segment("weights", layout.nbytes)
    buffer = weights.map(writable=True)
    try:
        if spec.config.model.load_format == "dummy":
            draw_weights(layout, spec.config.model.seed, HostMemory(buffer), progress)
        else:
            load_weights(model_dir, config, layout, HostMemory(buffer), progress)
    finally:
        buffer.release()
    seal_against_writing(weights)
    view = weights.map(writable=False)
    return HostSegments(weights, kv, checksum(weights.num_bytes, lambda start, stop: view[start:stop]))
