"""Attention whose result for a token has the same bits whatever is computed beside it, on torch's own kernels.

Keys come in chunks of CHUNK_KEYS at fixed absolute positions, queries in row tiles. A query's scores over one chunk are
one product of fixed shape; its maximum over all chunks is exact in any order; sums over chunks are taken one after
another. Chunks that only other queries of the tile can see add exact zeros. So a position has the same result as a
prompt token, in any chunking, and as a decode step. What is assumed of the library is probed at start
(`model.deterministic`).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from colocate.errors import ConfigError
from colocate.model.attention.seam import DecodeRows, PrefillRows, PrefillSpan
from colocate.model.deterministic import TILE_ROWS, restored_threads
from colocate.model.kv import KVPool

CHUNK_KEYS = 256
_GATHER_BYTES = 16 << 20
_TILE_QUERIES = 64  # positions of a prompt attended together


class DeterministicAttention:
    """Implements `seam.Attention`."""

    def __init__(
        self, pool: KVPool, num_heads: int, windows: Sequence[int | None], thread_counts: Sequence[int]
    ) -> None:
        self._pool = pool
        self._group = num_heads // pool.num_kv_heads
        self._windows = tuple(windows)
        self._chunk_blocks = -(-CHUNK_KEYS // pool.block_size)
        self._chunk_keys = self._chunk_blocks * pool.block_size
        self._group_rows = -(-self._group // TILE_ROWS) * TILE_ROWS  # rows of a decode tile
        stable = self._probe(thread_counts)
        self._tile_queries = _TILE_QUERIES if stable else 1

    def write(self, layer: int, kv: Tensor, slots: Tensor) -> None:
        self._pool.write(layer, kv, slots)

    def prefill(self, layer: int, q: Tensor, kv: Tensor, rows: PrefillRows, out: Tensor) -> None:
        for span in rows.spans:
            places = slice(span.first, span.first + span.num_tokens)
            self._attend_span(layer, q[places], span, out[places])

    def decode(self, layer: int, q: Tensor, rows: DecodeRows, out: Tensor) -> None:
        """Tiles of one query each, [rows * kv_heads] of them in a product, as many rows as the gather room holds."""
        num_chunks = -(-rows.max_context_len // self._chunk_keys)
        tables = _padded(rows.tables.block_tables, num_chunks * self._chunk_blocks)
        most = max(1, _GATHER_BYTES // (tables.shape[1] * self._pool.block_bytes))
        for first in range(0, q.shape[0], most):
            part = slice(first, first + most)
            self._attend_rows(layer, q[part], tables[part], rows.context_lens[part], out[part])

    def _attend_rows(self, layer: int, q: Tensor, tables: Tensor, context_lens: Tensor, out: Tensor) -> None:
        num_rows, kv_heads, head_dim = q.shape[0], self._pool.num_kv_heads, self._pool.head_dim
        keys, values = self._gather(layer, tables)
        tile = q.new_zeros(num_rows, kv_heads, self._group_rows, head_dim)
        tile[:, :, : self._group] = q.reshape(num_rows, kv_heads, self._group, head_dim)
        last = (context_lens - 1).view(-1, 1, 1, 1)
        result = self._attend(tile, keys, values, last, self._windows[layer])
        out.view(num_rows, kv_heads, self._group, head_dim).copy_(result[:, :, : self._group])

    def _attend_span(self, layer: int, q: Tensor, span: PrefillSpan, out: Tensor) -> None:
        kv_heads, head_dim, group = self._pool.num_kv_heads, self._pool.head_dim, self._group
        num_chunks = -(-span.context_len // self._chunk_keys)
        tables = _padded(span.block_table.unsqueeze(0), num_chunks * self._chunk_blocks)
        keys, values = self._gather(layer, tables)
        width = self._tile_queries
        rows = self._group_rows if width == 1 else width * group
        for first in range(0, span.num_tokens, width):
            count = min(width, span.num_tokens - first)
            tile = q.new_zeros(1, kv_heads, rows, head_dim)
            # Row `query * group + head` of the tile; the rows after the last query stay zero.
            heads = q[first : first + count].reshape(count, kv_heads, group, head_dim).transpose(0, 1)
            tile[0, :, : count * group] = heads.reshape(kv_heads, count * group, head_dim)
            positions = span.start + first + torch.arange(rows).div(group, rounding_mode="floor").clamp_(max=count - 1)
            seen = -(-(span.start + first + count) // self._chunk_keys) * self._chunk_keys
            last = positions.view(1, 1, -1, 1)
            result = self._attend(tile, keys[:, :, :seen], values[:, :, :seen], last, self._windows[layer])
            heads = result[0, :, : count * group].reshape(kv_heads, count, group, head_dim).transpose(0, 1)
            out[first : first + count].view(count, kv_heads, group, head_dim).copy_(heads)

    def _gather(self, layer: int, tables: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values, each [rows, kv_heads, chunks * chunk_keys, head_dim]."""
        runs = self._pool.run_index(tables)
        keys, values = self._pool.gather(layer, runs, tables.shape[0], self._pool.new_runs(len(runs)))
        return keys, values

    def _attend(self, q: Tensor, keys: Tensor, values: Tensor, last: Tensor, window: int | None) -> Tensor:
        """q [rows, kv_heads, tile, head_dim]; keys, values [rows, kv_heads, n * chunk_keys, head_dim]; `last`, which
        broadcasts to [rows, 1, tile, 1], is the last position each query sees."""
        batch, tile, head_dim, width = q.shape[0] * q.shape[1], q.shape[2], q.shape[3], self._chunk_keys
        num_chunks = keys.shape[2] // width
        scores = torch.empty(num_chunks, batch, tile, width, dtype=torch.float32)
        positions = torch.arange(num_chunks * width)
        hidden = positions > last  # [rows, 1, tile, keys]
        if window is not None:
            hidden |= positions <= last - window
        flat_q = (q.float() * head_dim**-0.5).view(batch, tile, head_dim)
        flat_keys = keys.float().reshape(batch, num_chunks * width, head_dim)
        flat_values = values.float().reshape(batch, num_chunks * width, head_dim)
        for chunk in range(num_chunks):
            place = slice(chunk * width, (chunk + 1) * width)
            torch.bmm(flat_q, flat_keys[:, place].transpose(1, 2), out=scores[chunk])
            scores[chunk].view(q.shape[0], q.shape[1], tile, width).masked_fill_(hidden[..., place], float("-inf"))
        peak = scores.amax(dim=(0, 3)).unsqueeze(-1)
        weights = scores.sub_(peak).exp_()
        total = torch.zeros_like(peak)
        result = torch.zeros(batch, tile, head_dim, dtype=torch.float32)
        for chunk in range(num_chunks):
            total.add_(weights[chunk].sum(-1, keepdim=True))
            result.add_(torch.bmm(weights[chunk], flat_values[:, chunk * width : (chunk + 1) * width]))
        return result.div_(total).view(q.shape).to(q.dtype)

    def _probe(self, thread_counts: Sequence[int]) -> bool:
        """True if wide tiles agree with those of a decode step; raises ConfigError if decode tiles are not stable."""
        generator = torch.Generator().manual_seed(2)
        head_dim, wide = self._pool.head_dim, _TILE_QUERIES * self._group
        tiles = wide // self._group_rows
        if wide % self._group_rows:
            return False
        q = torch.randn(6, wide, head_dim, generator=generator)
        weights = torch.rand(6, wide, self._chunk_keys, generator=generator)
        keys = torch.randn(6, 2 * self._chunk_keys, head_dim, generator=generator)[:, : self._chunk_keys]
        with restored_threads():
            torch.set_num_threads(1)
            narrow = [slice(i * self._group_rows, (i + 1) * self._group_rows) for i in range(tiles)]
            single = [
                torch.cat(
                    [torch.cat([_products(q, weights, keys, b, b + 1, at)[i] for at in narrow], 1) for b in range(6)]
                )
                for i in range(2)
            ]
            stable = True
            for num_threads in thread_counts:
                torch.set_num_threads(num_threads)
                for batch in (2, 6):
                    decode = _products(q, weights, keys, 0, batch, narrow[0])
                    if not all(torch.equal(decode[i], single[i][:batch, narrow[0]]) for i in range(2)):
                        raise ConfigError(
                            "model.deterministic",
                            "on this machine batched products of torch depend on batch or threads",
                            "start without --deterministic, or install a C++ compiler for the native kernels",
                        )
                    together = _products(q, weights, keys, 0, batch, slice(0, wide))
                    stable &= all(torch.equal(together[i], single[i][:batch]) for i in range(2))
        return stable


def _products(q: Tensor, weights: Tensor, keys: Tensor, first: int, end: int, at: slice) -> tuple[Tensor, Tensor]:
    """The two products of `_attend` for some tiles and rows: scores, and weighted values."""
    scores = torch.bmm(q[first:end, at].contiguous(), keys[first:end].transpose(1, 2))
    return scores, torch.bmm(weights[first:end, at].contiguous(), keys[first:end])


def _padded(tables: Tensor, num_blocks: int) -> Tensor:
    """Block tables cut or padded to `num_blocks`; the padding repeats each row's first block and is never seen."""
    if tables.shape[1] >= num_blocks:
        return tables[:, :num_blocks]
    return torch.cat((tables, tables[:, :1].expand(-1, num_blocks - tables.shape[1])), dim=1)
