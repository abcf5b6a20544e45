"""safetensors -> the weights segment, without torch and without a second copy in memory.

Each file is mapped, converted chunk by chunk into the room that the destination gives (the segment itself on a CPU,
a staging buffer on the way to a GPU), and the pages read are given back: the resident peak is one copy of the weights
plus one chunk.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from colocate.model.checkpoint import NUMPY_TYPES, Stored, plan_loading
from colocate.model.config import DTYPE_BYTES, ModelConfig
from colocate.model.layout import Part, WeightEntry, WeightLayout

_CHUNK_ELEMENTS = 1 << 21
CHUNK_BYTES = 4 * _CHUNK_ELEMENTS  # what a destination is asked for at most at once

Progress = Callable[[int, int], None]


class Destination(Protocol):
    """The segment as a place to write to, in host memory or on a device."""

    def room(self, offset_bytes: int, num_bytes: int) -> memoryview:
        """Host memory for exactly these bytes of the segment, at most CHUNK_BYTES, aligned as the offset is. The
        caller fills all of it before it calls `filled`; it is not valid afterwards."""
        ...

    def filled(self) -> None:
        """The room given last holds its bytes."""
        ...


class HostMemory:
    """`Destination` where the segment is host memory: the room is the segment."""

    def __init__(self, buffer: memoryview) -> None:
        """`buffer` stays the caller's and is as long as the layout."""
        self._buffer = buffer

    def room(self, offset_bytes: int, num_bytes: int) -> memoryview:
        return self._buffer[offset_bytes : offset_bytes + num_bytes]

    def filled(self) -> None:
        return None


def load_weights(
    model_dir: Path, config: ModelConfig, layout: WeightLayout, into: Destination, progress: Progress
) -> None:
    """Fill the segment from the checkpoint in `model_dir`.

    `progress(done_bytes, total_bytes)` counts bytes of the segment and is called after every checkpoint tensor.
    Raises ConfigError naming the file and the tensor for anything missing, unexpected, truncated or ill-shaped; the
    whole checkpoint is checked before the first byte is written.
    """
    path: Path | None = None
    done_bytes = 0
    for entry, part, source in plan_loading(model_dir, config, layout):
        if source.path != path:
            path = source.path
            mapped = _map(path)  # the mapping before it is released with its last reference
        _copy(mapped, source, into, entry, part)
        done_bytes += entry.nbytes * part.num_rows // entry.shape[0]
        progress(done_bytes, layout.nbytes)


def _map(path: Path) -> mmap.mmap:
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    mapped.madvise(mmap.MADV_SEQUENTIAL)
    return mapped


def _copy(mapped: mmap.mmap, source: Stored, into: Destination, entry: WeightEntry, part: Part) -> None:
    """Convert chunk by chunk from the mapping to the room of the segment."""
    count = prod(source.shape)
    item_bytes = DTYPE_BYTES[entry.dtype]
    start = entry.offset_bytes + part.first_row * (entry.nbytes // entry.shape[0])
    target_type = np.float32 if entry.dtype == "float32" else np.uint16
    stored_type = np.dtype(NUMPY_TYPES[source.dtype])
    values = np.ndarray((count,), stored_type, mapped, source.offset_bytes)
    for begin in range(0, count, _CHUNK_ELEMENTS):
        chunk = values[begin : begin + _CHUNK_ELEMENTS]
        room = into.room(start + begin * item_bytes, len(chunk) * item_bytes)
        _convert(chunk, source.dtype, entry.dtype, np.frombuffer(room, target_type))
        into.filled()
    del values, chunk  # the mapping cannot close while an array looks into it
    first = source.offset_bytes // mmap.PAGESIZE * mmap.PAGESIZE
    end = source.offset_bytes + count * stored_type.itemsize
    mapped.madvise(mmap.MADV_DONTNEED, first, end - first)


def _convert(chunk: npt.NDArray[Any], stored_dtype: str, dtype: str, target: npt.NDArray[Any]) -> None:
    if dtype == "float32":
        if stored_dtype == "BF16":
            np.left_shift(chunk.astype(np.uint32), 16, out=target.view(np.uint32))
        else:
            target[:] = chunk
    elif stored_dtype == "BF16":
        target[:] = chunk
    else:
        target[:] = round_to_bfloat16(chunk.astype(np.float32))


def round_to_bfloat16(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    """Round to nearest, ties to even, as hardware does; a NaN stays a (quiet) NaN."""
    bits = values.view(np.uint32)
    rounded = (bits + (((bits >> 16) & 1) + 0x7FFF)) >> 16
    return np.where(np.isnan(values), (bits >> 16) | 0x40, rounded).astype(np.uint16)
