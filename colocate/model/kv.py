"""The KV pool as tensors: writing tokens at slots and gathering whole blocks."""

from __future__ import annotations

import torch
from torch import Tensor


class KVPool:
    """Views of the shared pool `[layer, 2, block, kv_head, slot, head_dim]` (see `model.layout.KVLayout`).

    Does not own the memory. Two processes write disjoint blocks; the engine sees to that.
    """

    def __init__(self, pool: Tensor) -> None:
        self.pool = pool
        self.num_layers, _, self.num_blocks, self.num_kv_heads, self.block_size, self.head_dim = pool.shape
        self.block_bytes = 2 * self.num_kv_heads * self.block_size * self.head_dim * pool.element_size()  # in one layer
        # One row is a run: one head of one block.
        num_runs = 2 * self.num_blocks * self.num_kv_heads
        self._runs = pool.view(self.num_layers, num_runs, self.block_size * self.head_dim)
        self._which = torch.arange(2).view(1, 2, 1)
        self._heads = torch.arange(self.num_kv_heads).view(1, 1, -1)

    def write(self, layer: int, kv: Tensor, slots: Tensor) -> None:
        """kv [tokens, 2, num_kv_heads, head_dim] -> slots int64 [tokens]."""
        places = slots.view(-1, 1, 1)
        index = (self._which, places // self.block_size, self._heads, places % self.block_size)
        self.pool[layer].index_put_(index, kv)

    def run_index(self, block_tables: Tensor) -> Tensor:
        """Index for `gather`, int64 [2 * rows * num_kv_heads * blocks], from block tables int64 [rows, blocks]."""
        heads = self._heads.view(1, 1, -1, 1)
        which = self._which.view(2, 1, 1, 1) * (self.num_blocks * self.num_kv_heads)
        runs = which + block_tables.view(1, block_tables.shape[0], 1, -1) * self.num_kv_heads + heads
        return runs.reshape(-1)

    def new_runs(self, num_runs: int) -> Tensor:
        """Uninitialised room for `gather`."""
        return torch.empty(num_runs, self.block_size * self.head_dim, dtype=self.pool.dtype)

    def gather(self, layer: int, run_index: Tensor, num_rows: int, out: Tensor) -> Tensor:
        """Copy whole blocks into `out` (from `new_runs`, as long as the index) and return it as
        [2, rows, num_kv_heads, blocks * block_size, head_dim]."""
        runs = torch.index_select(self._runs[layer], 0, run_index, out=out)
        return runs.view(2, num_rows, self.num_kv_heads, -1, self.head_dim)
