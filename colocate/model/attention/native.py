"""Attention by the native kernels: blocks are read where they lie, none is gathered. Prefill in bfloat16 stays torch's,
whose kernel multiplies in that type."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from colocate.model.attention.fused import FusedAttention
from colocate.model.attention.seam import DecodeRows, PrefillRows
from colocate.model.kv import KVPool
from colocate.model.native_kernels import DecodeBatch, DecoderShape, LayerPointers, NativeKernels


class NativeAttention:
    """Implements `seam.Attention`. In float32 a token's result is the same bits in any batch and with any thread
    count."""

    def __init__(
        self, kernels: NativeKernels, pool: KVPool, num_heads: int, windows: Sequence[int | None], scale: float
    ) -> None:
        self._kernels = kernels
        self._pool = pool
        self._shape = DecoderShape(0, 0, num_heads, pool.num_kv_heads, pool.head_dim, pool.block_size, 0.0, scale)
        self._layers = [
            LayerPointers(keys=pool.pool[i, 0].data_ptr(), values=pool.pool[i, 1].data_ptr(), window=window or 0)
            for i, window in enumerate(windows)
        ]
        self._fused = FusedAttention(pool, num_heads, windows)
        self._spans_of: PrefillRows | None = None
        self._spans = torch.empty(0, 4, dtype=torch.int64)
        self._workspace = torch.empty(0)

    def write(self, layer: int, kv: Tensor, slots: Tensor) -> None:
        self._kernels.write_kv(self._pool.pool[layer], kv, slots)

    def prefill(self, layer: int, q: Tensor, kv: Tensor, rows: PrefillRows, out: Tensor) -> None:
        if q.dtype is not torch.float32:
            self._fused.prefill(layer, q, kv, rows, out)
            return
        if rows is not self._spans_of:
            self._spans_of = rows  # keeps the block tables alive, whose addresses stand in the spans
            assert all(span.block_table.is_contiguous() for span in rows.spans)
            self._spans = torch.tensor(
                [(span.first, span.num_tokens, span.start, span.block_table.data_ptr()) for span in rows.spans]
            )
        needed = self._kernels.prefill_workspace_floats(self._shape) * torch.get_num_threads() + 16
        if self._workspace.numel() < needed:
            self._workspace = torch.empty(needed)
        base = self._workspace.data_ptr()
        self._kernels.prefill_attention(self._shape, self._layers[layer], self._spans, q, out, base + -base % 64)

    def decode(self, layer: int, q: Tensor, rows: DecodeRows, out: Tensor) -> None:
        query = q if q.dtype is torch.float32 else q.float()
        result = out if out.dtype is torch.float32 else torch.empty(out.shape)
        tables = rows.tables.block_tables
        batch = DecodeBatch(
            num_rows=len(q),
            num_threads=torch.get_num_threads(),
            table_stride=tables.stride(0),
            tables=tables.data_ptr(),
            context_lens=rows.context_lens.data_ptr(),
            max_context_len=rows.max_context_len,
        )
        self._kernels.decode_attention(self._shape, self._layers[layer], batch, query, result, q.dtype)
        if result is not out:
            out.copy_(result)
