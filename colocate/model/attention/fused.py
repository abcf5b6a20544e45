"""Attention by torch's fused kernel: the path that needs no compiler.

Prefill calls it per span, on the activations where nothing is cached and on gathered blocks otherwise. Decode gathers
the blocks of all rows and calls it once, the heads of a KV group standing as its query positions, so that keys are
read once per group.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from colocate.model.attention.seam import DecodeRows, DecodeTables, PrefillRows, PrefillSpan
from colocate.model.kv import KVPool

_GATHER_BYTES = 4 << 20
_MAX_KEPT_RUNS = 256


@dataclass(frozen=True, slots=True)
class _DecodePart:
    """Neighbouring rows of a step that are gathered and attended together."""

    first: int
    num_rows: int
    max_context_len: int
    runs: Tensor
    context_lens: Tensor
    uniform: bool  # all contexts are equally long


class FusedAttention:
    """Implements `seam.Attention`. Keeps masks and gather indices of the rows it saw last."""

    def __init__(self, pool: KVPool, num_heads: int, windows: Sequence[int | None]) -> None:
        self._pool = pool
        self._num_heads = num_heads
        self._group = num_heads // pool.num_kv_heads
        self._windows = tuple(windows)
        self._prefill_rows: PrefillRows | None = None
        self._prefill_masks: dict[tuple[int, int | None], Tensor] = {}
        self._prefill_runs: dict[tuple[int, int], Tensor] = {}
        self._tables: DecodeTables | None = None
        self._decode_runs: dict[tuple[int, int, int], Tensor] = {}
        self._decode_rows: DecodeRows | None = None
        self._decode_masks: dict[tuple[int, int | None], Tensor] = {}
        self._parts: list[_DecodePart] = []
        self._scratch = pool.new_runs(0)

    def write(self, layer: int, kv: Tensor, slots: Tensor) -> None:
        self._pool.write(layer, kv, slots)

    def prefill(self, layer: int, q: Tensor, kv: Tensor, rows: PrefillRows, out: Tensor) -> None:
        if rows is not self._prefill_rows:
            self._prefill_rows = rows
            self._prefill_masks.clear()
            self._prefill_runs.clear()
        out_heads = out.view(out.shape[0], self._num_heads, -1)
        for index, span in enumerate(rows.spans):
            places = slice(span.first, span.first + span.num_tokens)
            window = self._windows[layer]
            if window is not None and window >= span.context_len:
                window = None
            query = q[places].transpose(0, 1).unsqueeze(0)
            if span.start == 0:
                own = kv[places]
                keys, values = own[:, 0].transpose(0, 1).unsqueeze(0), own[:, 1].transpose(0, 1).unsqueeze(0)
                first_key = 0
            else:
                keys, values, first_key = self._cached(layer, index, span, window)
            mask = self._prefill_mask(index, span, window, first_key, q.dtype)
            result = scaled_dot_product_attention(
                query, keys, values, attn_mask=mask, is_causal=mask is None, enable_gqa=self._group > 1
            )
            out_heads[places].copy_(result[0].transpose(0, 1))

    def decode(self, layer: int, q: Tensor, rows: DecodeRows, out: Tensor) -> None:
        if rows is not self._decode_rows:
            self._plan_decode(rows)
        query = q.view(q.shape[0], self._pool.num_kv_heads, self._group, -1)
        out_heads = out.view(query.shape)
        window = self._windows[layer]
        for part in self._parts:
            places = slice(part.first, part.first + part.num_rows)
            keys, values = self._pool.gather(layer, part.runs, part.num_rows, self._scratch[: len(part.runs)])
            keys, values = keys[:, :, : part.max_context_len], values[:, :, : part.max_context_len]
            mask = self._decode_mask(part, window, q.dtype)
            result = scaled_dot_product_attention(query[places], keys, values, attn_mask=mask)
            out_heads[places].copy_(result)

    def _plan_decode(self, rows: DecodeRows) -> None:
        """Cut the batch into runs of rows whose gathered blocks fit the caches together: what is copied there is read
        back from there, and the pool is read from memory once."""
        if rows.tables is not self._tables:
            self._tables = rows.tables
            self._decode_runs.clear()
        self._decode_rows = rows
        self._decode_masks.clear()
        self._parts = []
        lens: list[int] = rows.context_lens.tolist()
        first = 0
        while first < len(lens):
            end, longest = first + 1, lens[first]
            while end < len(lens) and self._gathered_bytes(max(longest, lens[end]), end + 1 - first) <= _GATHER_BYTES:
                longest = max(longest, lens[end])
                end += 1
            runs = self._runs_of(rows.tables, first, end, -(-longest // self._pool.block_size))
            uniform = all(length == longest for length in lens[first:end])
            self._parts.append(_DecodePart(first, end - first, longest, runs, rows.context_lens[first:end], uniform))
            first = end
        most = max(len(part.runs) for part in self._parts)
        if len(self._scratch) < most:
            self._scratch = self._pool.new_runs(most)

    def _gathered_bytes(self, context_len: int, num_rows: int) -> int:
        return -(-context_len // self._pool.block_size) * self._pool.block_bytes * num_rows

    def _runs_of(self, tables: DecodeTables, first: int, end: int, num_blocks: int) -> Tensor:
        key = (first, end, num_blocks)
        runs = self._decode_runs.get(key)
        if runs is None:
            if len(self._decode_runs) > _MAX_KEPT_RUNS:
                self._decode_runs.clear()
            runs = self._decode_runs[key] = self._pool.run_index(tables.block_tables[first:end, :num_blocks])
        return runs

    def _cached(self, layer: int, index: int, span: PrefillSpan, window: int | None) -> tuple[Tensor, Tensor, int]:
        """Keys and values from the first block the window reaches, and the position of the first of them."""
        block_size = self._pool.block_size
        first_block = 0 if window is None else max(0, span.start + 1 - window) // block_size
        last_block = -(-span.context_len // block_size)
        runs = self._prefill_runs.get((index, first_block))
        if runs is None:
            runs = self._pool.run_index(span.block_table[first_block:last_block].unsqueeze(0))
            self._prefill_runs[index, first_block] = runs
        if len(self._scratch) < len(runs):
            self._scratch = self._pool.new_runs(len(runs))
        gathered = self._pool.gather(layer, runs, 1, self._scratch[: len(runs)])[
            :, 0, :, : span.context_len - first_block * block_size
        ]
        return gathered[:1], gathered[1:], first_block * block_size

    def _prefill_mask(
        self, index: int, span: PrefillSpan, window: int | None, first_key: int, dtype: torch.dtype
    ) -> Tensor | None:
        if span.start == 0 and window is None:
            return None
        mask = self._prefill_masks.get((index, window))
        if mask is None:
            queries = torch.arange(span.start, span.context_len).unsqueeze(1)
            keys = torch.arange(first_key, span.context_len).unsqueeze(0)
            hidden = keys > queries
            if window is not None:
                hidden |= keys <= queries - window
            mask = torch.zeros(hidden.shape, dtype=dtype).masked_fill_(hidden, float("-inf"))
            self._prefill_masks[index, window] = mask
        return mask

    def _decode_mask(self, part: _DecodePart, window: int | None, dtype: torch.dtype) -> Tensor | None:
        """Additive [rows, 1, 1, keys]; None where every row sees every gathered key."""
        if part.uniform and (window is None or window >= part.max_context_len):
            return None
        mask = self._decode_masks.get((part.first, window))
        if mask is None:
            keys = torch.arange(part.max_context_len).unsqueeze(0)
            context = part.context_lens.unsqueeze(1)
            hidden = keys >= context
            if window is not None:
                hidden |= keys < context - window
            mask = torch.zeros(hidden.shape, dtype=dtype).masked_fill_(hidden, float("-inf"))
            mask = self._decode_masks[part.first, window] = mask.view(part.num_rows, 1, 1, -1)
        return mask
