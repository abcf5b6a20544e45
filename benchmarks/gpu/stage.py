"""One process with a device, lanes for shares, random weights and a KV pool: what kernels and steps are measured on.

Everything is the product's own: the partition makes the lanes, the model runs on them. Weights are drawn on the device;
the keeper and its memory belong to the live sections.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import Tensor

from colocate.core.plan import Plan
from colocate.device.cuda.backend import Backend, open_backend
from colocate.device.cuda.driver import GpuFacts
from colocate.device.cuda.lane import Lane
from colocate.device.cuda.partition import CudaPartition
from colocate.model.config import ModelConfig
from colocate.model.cuda.rows import PrefillBatchRows
from colocate.model.cuda.state import DecodeState
from colocate.model.dummy import STANDARD_DEVIATION, is_norm
from colocate.model.layout import KVLayout, WeightLayout
from colocate.model.llama import TORCH_DTYPES, map_weights
from colocate.types import Role

BLOCK_SIZE = 16
DECODE_REPEATS_ROOM = 64  # tokens that a measured row may grow by


class Device:
    """A backend and the lanes of the shares named at the start. One per process."""

    def __init__(self, role: Role, shares: Iterable[int]) -> None:
        """`shares` in SMs; 0 stands for the whole device."""
        self.backend: Backend = open_backend()
        self.facts: GpuFacts = self.backend.driver.facts(0)
        self._role = role
        wanted = [self.units(share) for share in shares]
        self.partition = CudaPartition(self.backend, 0, role, wanted)

    def units(self, share: int) -> tuple[int, ...]:
        num = share or self.facts.num_sms
        return Plan("", num, num).units_of(self._role, self.facts.num_sms)

    def lane(self, share: int) -> Lane:
        """Of one of the shares named at the start."""
        return self.partition.lane_of(self.units(share))

    def num_sms(self, share: int) -> int:
        """Read back from the driver; what was asked for on the fake device."""
        return self.lane(share).num_sms or share or self.facts.num_sms


class Pool:
    """A KV pool of random numbers on a device. `kv_tokens`: how many positions it holds."""

    def __init__(self, device: Device, config: ModelConfig, dtype: str, kv_tokens: int) -> None:
        self.device = device
        self.config = config
        self.dtype = dtype
        self.num_blocks = -(-kv_tokens // BLOCK_SIZE)
        layout = KVLayout(config, dtype, self.num_blocks, BLOCK_SIZE)
        self.kv = torch.empty(layout.shape, dtype=TORCH_DTYPES[dtype], device=device.backend.torch_device)
        for layer in self.kv:  # by layers: a draw of the whole pool may need a second one
            layer.normal_()
        device.backend.driver.synchronize()

    def decode_state(self, batch: int, context: int) -> DecodeState:
        """Rows of equal length whose blocks lie scattered over the pool, none shared: nothing is read from a cache
        twice."""
        blocks_per_row = -(-(context + DECODE_REPEATS_ROOM) // BLOCK_SIZE)
        if batch * blocks_per_row > self.num_blocks:
            raise ValueError(f"{batch} rows of {context} tokens need more than the pool's {self.num_blocks} blocks")
        where = self.device.backend.torch_device
        state = DecodeState.allocate(batch, blocks_per_row, where)
        rows = slice(0, batch)
        order = torch.randperm(self.num_blocks, generator=torch.Generator().manual_seed(0))[: batch * blocks_per_row]
        state.block_table[rows] = order.view(batch, blocks_per_row).to(torch.int32).to(where)
        state.token[rows] = torch.arange(batch, dtype=torch.int32, device=where) % self.config.vocab_size
        state.context_len[rows] = context
        state.granted_len[rows] = blocks_per_row * BLOCK_SIZE
        state.active[rows] = 1
        state.sampling.max_tokens[rows] = 1 << 30
        self.device.backend.driver.synchronize()
        return state

    def prompt(self, num_tokens: int, num_cached: int = 0) -> tuple[Tensor, PrefillBatchRows]:
        """Token ids int32 [T] of one row, and the row."""
        where = self.device.backend.torch_device
        num_blocks = -(-(num_cached + num_tokens) // BLOCK_SIZE)
        order = torch.randperm(self.num_blocks, generator=torch.Generator().manual_seed(1))[:num_blocks]
        positions = torch.arange(num_cached, num_cached + num_tokens)
        slots = order[positions // BLOCK_SIZE] * BLOCK_SIZE + positions % BLOCK_SIZE
        token_ids = (positions * 7 + 3) % self.config.vocab_size
        rows = PrefillBatchRows(
            positions=positions.to(torch.int32).to(where),
            slots=slots.to(torch.int64).to(where),
            cu_lens=torch.tensor([0, num_tokens], dtype=torch.int32, device=where),
            starts=torch.tensor([num_cached], dtype=torch.int32, device=where),
            block_tables=order.to(torch.int32).view(1, -1).to(where),
            max_new=num_tokens,
            max_context=num_cached + num_tokens,
        )
        placed = token_ids.to(torch.int32).to(where)
        self.device.backend.driver.synchronize()
        return placed, rows


def one_layer(config: ModelConfig) -> ModelConfig:
    """The same heads with one layer: what a kernel by itself needs of a model."""
    return replace(config, num_layers=1, sliding_windows=config.sliding_windows[:1])


def draw_weights(config: ModelConfig, dtype: str, device: Device) -> dict[str, Tensor]:
    """Random weights by the product's layout and sizes, drawn by torch on the device."""
    layout, where = WeightLayout.of(config, dtype), device.backend.torch_device
    weights = map_weights(layout, torch.empty(layout.nbytes, dtype=torch.uint8, device=where))
    for entry in layout.entries:
        if is_norm(entry):
            weights[entry.name].fill_(1.0)
        else:
            weights[entry.name].normal_(0.0, STANDARD_DEVIATION)
    device.backend.driver.synchronize()
    return weights
