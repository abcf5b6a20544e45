"""Where one prefill forward has its integers: packed on the host, sent in one copy, read by kernels as views.

The layout of a desk follows from the forward that lies on it; its size from the largest one that may.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from colocate.messages.sampling import SampleState
from colocate.model.cuda.rows import PrefillBatchRows
from colocate.model.cuda.sampling import TABLE_ROW, table_row
from colocate.model.cuda.state import SamplingTable
from colocate.worker.cuda.draws import DrawRoom
from colocate.worker.cuda.gpu_model import GpuModel
from colocate.worker.packed_rows import PackedChunk

_ALIGNMENT_BYTES = 256
_TORCH = {np.dtype(np.int32): torch.int32, np.dtype(np.int64): torch.int64, np.dtype(np.float32): torch.float32}

Array = npt.NDArray[np.generic]


def desk_bytes(max_tokens: int, max_rows: int, table_width: int) -> int:
    """For token ids, positions, slots and places of a forward, and lengths, tables and sampling of its rows."""
    of_tokens, of_rows = 24 * max_tokens, (4 * table_width + 20 + TABLE_ROW.itemsize) * max_rows
    return of_tokens + of_rows + _ALIGNMENT_BYTES * (9 + len(TABLE_ROW.names or ()))


class Desk:
    """Used by one forward at a time. Not rewritten while a copy from it is under way: its user sees to that."""

    def __init__(self, gpu: GpuModel, num_bytes: int) -> None:
        backend = gpu.backend
        self._pinned = backend.pinned((num_bytes,), torch.uint8)
        self._host = self._pinned.numpy()
        self._device = torch.zeros(num_bytes, dtype=torch.uint8, device=backend.torch_device)
        self.drawn = torch.zeros(gpu.max_rows, dtype=torch.int32, device=backend.torch_device)
        self.room = DrawRoom(gpu, gpu.max_rows)

    def send(self, arrays: Mapping[str, Array]) -> dict[str, Tensor]:
        """One copy on the current stream; views of it on the device, valid until the next call."""
        views: dict[str, Tensor] = {}
        end = 0
        for name, array in arrays.items():
            start, num_bytes = end, array.nbytes
            self._host[start : start + num_bytes] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
            part = self._device[start : start + num_bytes]
            views[name] = part.view(_TORCH[array.dtype]).view(array.shape)
            end = start + -(-num_bytes // _ALIGNMENT_BYTES) * _ALIGNMENT_BYTES
        self._device[:end].copy_(self._pinned[:end], non_blocking=True)
        return views


def arrays_of(chunk: PackedChunk, vocab_size: int, *, writes: bool = True) -> dict[str, Array]:
    """A chunk as the kernels read it. Without `writes` no KV is stored anywhere: a rehearsal."""
    spans = chunk.rows.spans
    width = max(len(span.block_table) for span in spans)
    tables = np.zeros((len(spans), width), np.int32)
    for table, span in zip(tables, spans, strict=True):
        table[: len(span.block_table)] = span.block_table.numpy()
    num_tokens = [span.num_tokens for span in spans]
    slots = chunk.rows.slots.numpy() if writes else np.full(len(chunk.positions), -1, np.int64)
    places, states = chunk.to_sample()
    return {
        "token_ids": chunk.token_ids.numpy().astype(np.int32),
        "positions": chunk.positions.numpy().astype(np.int32),
        "slots": slots,
        "cu_lens": np.concatenate(([0], np.cumsum(num_tokens))).astype(np.int32),
        "starts": np.array([span.start for span in spans], np.int32),
        "block_tables": tables,
        "places": np.array(places, np.int64),
        "index": np.arange(len(places), dtype=np.int32),
        **_sampling_arrays(states, vocab_size),
    }


def batch_rows(chunk: PackedChunk, views: Mapping[str, Tensor]) -> PrefillBatchRows:
    spans = chunk.rows.spans
    return PrefillBatchRows(
        positions=views["positions"],
        slots=views["slots"],
        cu_lens=views["cu_lens"],
        starts=views["starts"],
        block_tables=views["block_tables"],
        max_new=max(span.num_tokens for span in spans),
        max_context=max(span.context_len for span in spans),
        host_rows=tuple((span.start, span.num_tokens) for span in spans),
    )


def sampling_table(views: Mapping[str, Tensor]) -> SamplingTable:
    """A slot for each row that draws, in their order."""
    return SamplingTable(**{name: views[name] for name in TABLE_ROW.names or ()})


def _sampling_arrays(states: Sequence[SampleState], vocab_size: int) -> dict[str, Array]:
    records = np.array([table_row(state, vocab_size) for state in states], TABLE_ROW)
    return {name: np.ascontiguousarray(records[name]) for name in TABLE_ROW.names or ()}
