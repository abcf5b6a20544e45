"""Random weights of the right shapes, for measurements without a checkpoint (`--load-format dummy`).

Matrices and biases are normal with standard deviation 0.02, norms are 1: activations stay finite through any depth.
The numbers of an entry depend on the seed and on its place in the layout, not on chunks or threads. Text from such a
model is noise. The numbers differ between devices: each draws with its own generator.
"""

from __future__ import annotations

import numpy as np

from colocate.model.config import DTYPE_BYTES
from colocate.model.layout import WeightEntry, WeightLayout
from colocate.model.loader import Destination, Progress, round_to_bfloat16

STANDARD_DEVIATION = 0.02
_CHUNK_ELEMENTS = 1 << 20


def is_norm(entry: WeightEntry) -> bool:
    """A scale that multiplies; everything else is added or multiplied with."""
    return entry.name.endswith("norm")


def draw_weights(layout: WeightLayout, seed: int, into: Destination, progress: Progress) -> None:
    """Fill the whole segment, without torch. `progress(done_bytes, total_bytes)` is called after every entry."""
    for number, entry in enumerate(layout.entries):
        generator = np.random.Generator(np.random.Philox(key=[seed, number]))
        item_bytes = DTYPE_BYTES[entry.dtype]
        count = entry.nbytes // item_bytes
        for begin in range(0, count, _CHUNK_ELEMENTS):
            size = min(_CHUNK_ELEMENTS, count - begin)
            values = np.ones(size, np.float32)
            if not is_norm(entry):
                values = generator.standard_normal(size, np.float32) * np.float32(STANDARD_DEVIATION)
            room = into.room(entry.offset_bytes + begin * item_bytes, size * item_bytes)
            if entry.dtype == "float32":
                np.frombuffer(room, np.float32)[:] = values
            else:
                np.frombuffer(room, np.uint16)[:] = round_to_bfloat16(values)
            into.filled()
        progress(entry.offset_bytes + entry.nbytes, layout.nbytes)
