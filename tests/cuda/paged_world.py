"""Rows over a paged KV pool in which everything that must not be read is NaN, and attention in float64.

The pool starts as NaN and gets random keys and values only where a row has written. Blocks are scattered and out of
order, rows may share the blocks of a common prefix, and entries of a block table beyond a row's context point at a
block of NaN: one element too many read, even under a weight of zero, and a result is NaN.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from colocate.model.config import ModelConfig
from colocate.model.cuda.rows import PrefillBatchRows
from colocate.model.cuda.state import DecodeState
from colocate.model.rope_config import RopeConfig


def heads_config(num_heads: int, num_kv_heads: int, head_dim: int, windows: Sequence[int | None]) -> ModelConfig:
    """A model of which only the attention matters."""
    return ModelConfig(
        architecture="LlamaForCausalLM", vocab_size=16, hidden_size=num_heads * head_dim, intermediate_size=16,
        num_layers=len(windows), num_heads=num_heads, num_kv_heads=num_kv_heads, head_dim=head_dim, rms_norm_eps=1e-5,
        max_position_embeddings=1 << 20, tie_word_embeddings=True, qkv_bias=False, o_bias=False, qk_norm=False,
        rope=RopeConfig(), sliding_windows=tuple(windows), eos_token_ids=(), checkpoint_dtype="bfloat16",
    )  # fmt: skip


@dataclass(frozen=True, eq=False, slots=True)
class PagedWorld:
    """`contexts[r]` positions of row r are written in every layer; `block_tables` int32 [rows, width]."""

    config: ModelConfig
    pool: Tensor
    contexts: tuple[int, ...]
    block_tables: Tensor

    @staticmethod
    def make(
        config: ModelConfig,
        contexts: Sequence[int],
        *,
        block_size: int,
        dtype: torch.dtype,
        shared_blocks: int = 0,
        seed: int = 0,
    ) -> PagedWorld:
        """The first `shared_blocks` full blocks are the same for all rows that have them."""
        generator = torch.Generator().manual_seed(seed)
        counts = [-(-context // block_size) for context in contexts]
        order = (torch.randperm(sum(counts) + shared_blocks, generator=generator) + 1).tolist()  # block 0 stays NaN
        shared = [order.pop() for _ in range(shared_blocks)]
        width = max(counts, default=0) + 2
        tables = torch.zeros(len(contexts), width, dtype=torch.int32)
        shape = (
            config.num_layers,
            2,
            sum(counts) + shared_blocks + 1,
            config.num_kv_heads,
            block_size,
            config.head_dim,
        )
        pool = torch.full(shape, torch.nan, dtype=dtype)
        for row, (context, count) in enumerate(zip(contexts, counts, strict=True)):
            for place in range(count):
                is_shared = place < len(shared) and (place + 1) * block_size <= context
                block = shared[place] if is_shared else order.pop()
                tables[row, place] = block
                used = min(context - place * block_size, block_size)
                values = torch.randn(config.num_layers, 2, *shape[3:], generator=generator)
                pool[:, :, block, :, :used] = values[:, :, :, :used].to(dtype)
        return PagedWorld(config, pool, tuple(contexts), tables)

    def behind(self, num_elements: int) -> PagedWorld:
        """The same rows in a pool so large that their blocks lie behind `num_elements` of a layer's keys.

        The memory is reserved, not used: only what is touched gets pages.
        """
        first = num_elements // self.pool[0, 0, 0].numel() + 1
        shape = (*self.pool.shape[:2], first + self.pool.shape[2], *self.pool.shape[3:])
        nbytes = prod(shape) * self.pool.element_size()
        descriptor = os.memfd_create("pool")
        os.ftruncate(descriptor, nbytes)
        memory = mmap.mmap(descriptor, nbytes)
        os.close(descriptor)
        pool = torch.frombuffer(memory, dtype=self.pool.dtype).view(shape)
        pool[:, :, first:] = self.pool
        return PagedWorld(self.config, pool, self.contexts, self.block_tables + first)

    def attend(self, layer: int, row: int, q: Tensor, position: int) -> Tensor:
        """float64 [num_heads * head_dim]: q [num_heads, head_dim] at `position` over what it sees of row `row`."""
        config = self.config
        window = config.sliding_windows[layer]
        low = 0 if window is None else max(0, position + 1 - window)
        block_size = self.pool.shape[4]
        places = torch.arange(low, position + 1)
        blocks = self.block_tables[row, places // block_size].long()
        keys, values = (
            self.pool[layer].transpose(2, 3)[:, blocks, places % block_size].double()
        )  # [keys, kv_heads, head_dim]
        grouped = q.double().view(config.num_kv_heads, -1, config.head_dim)
        scores = torch.einsum("hgd,khd->hgk", grouped, keys) * config.head_dim**-0.5
        return torch.einsum("hgk,khd->hgd", scores.softmax(-1), values).flatten()

    def queries(self, num_tokens: int, seed: int = 1) -> Tensor:
        """[num_tokens, num_heads, head_dim], as a slice of a wider projection, so rows lie apart."""
        config = self.config
        wide = torch.randn(
            num_tokens, config.num_heads + 2, config.head_dim, generator=torch.Generator().manual_seed(seed)
        )
        return wide.to(self.pool.dtype)[:, : config.num_heads]

    def new_out(self, num_tokens: int) -> Tensor:
        """NaN, so that what is not written shows."""
        return torch.full((num_tokens, self.config.q_size), torch.nan, dtype=self.pool.dtype)

    def prefill_rows(self, own: Sequence[int]) -> PrefillBatchRows:
        """The last own[r] positions of each row are the tokens of this forward, those before are cached."""
        block_size = self.pool.shape[4]
        starts = [context - new for context, new in zip(self.contexts, own, strict=True)]
        spans = list(zip(starts, self.contexts, strict=True))
        positions = torch.cat([torch.arange(start, end) for start, end in spans])
        owners = torch.repeat_interleave(torch.arange(len(own)), torch.tensor(own))
        blocks = self.block_tables[owners, positions // block_size].long()
        return PrefillBatchRows(
            positions=positions.int(),
            slots=blocks * block_size + positions % block_size,
            cu_lens=torch.tensor([0, *own]).cumsum(0).int(),
            starts=torch.tensor(starts, dtype=torch.int32),
            block_tables=self.block_tables,
            max_new=max(own),
            max_context=max(self.contexts),
            host_rows=tuple(zip(starts, own, strict=True)),
        )

    def decode_state(self, slots: Sequence[int], inactive: Sequence[int] = (), full: Sequence[int] = ()) -> DecodeState:
        """Row r in slot slots[r], about to attend from its last written position. `full` rows lack room for it."""
        state = DecodeState.allocate(max(slots) + 1, self.block_tables.shape[1], "cpu")
        block_size = self.pool.shape[4]
        for row, slot in enumerate(slots):
            state.block_table[slot] = self.block_tables[row]
            state.context_len[slot] = self.contexts[row] - 1
            state.active[slot] = int(row not in inactive)
            blocks = -(-self.contexts[row] // block_size)
            state.granted_len[slot] = self.contexts[row] - 1 if row in full else blocks * block_size
        return state


def assert_close(out: Tensor, expected: Tensor) -> None:
    """float32: rounding of a few sums. bf16: the output's and the weights' own rounding, 2^-8 of values around one."""
    assert not out.isnan().any()
    rtol, atol = (2e-5, 2e-6) if out.dtype == torch.float32 else (2**-7, 2**-7)
    torch.testing.assert_close(out.double(), expected, rtol=rtol, atol=atol)
