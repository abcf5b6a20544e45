"""Runs the two model executors in one process over one KV buffer, the way the two workers share it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from colocate.messages.prefill import PrefillBatch, PrefillRow, PrefillRowDone
from colocate.messages.sampling import SampleState, SamplingParams
from colocate.messages.spec import RuntimeFacts
from colocate.model.config import ModelConfig, load_model_config
from colocate.model.layout import KVLayout, WeightLayout
from colocate.model.loader import HostMemory, load_weights
from colocate.worker.executor import StandingRow
from colocate.worker.mapped_model import MappedModel
from colocate.worker.model_executor import ModelDecodeExecutor, ModelPrefillExecutor


def facts_for(config: ModelConfig, dtype: str, num_blocks: int, block_size: int) -> RuntimeFacts:
    return RuntimeFacts(
        device_kind="cpu", device_name="cpu", total_units=2, unit_granularity=1, unit_ids=(0, 1), model_name="test",
        model_dir="", dtype=dtype, vocab_size=config.vocab_size, max_model_len=config.max_position_embeddings,
        num_blocks=num_blocks, block_size=block_size,
    )  # fmt: skip


def greedy(max_tokens: int = 1 << 20, **params: object) -> SamplingParams:
    return SamplingParams(max_tokens=max_tokens, temperature=0.0, ignore_eos=True, **params)  # type: ignore[arg-type]


@dataclass
class Harness:
    """Both executors of one model, and a block allocator that scatters blocks on purpose."""

    config: ModelConfig
    prefill: ModelPrefillExecutor
    decode: ModelDecodeExecutor
    kv_layout: KVLayout
    block_size: int
    free: list[int]
    kv: bytearray
    weights: bytearray
    version: int = 0

    @staticmethod
    def load(
        model_dir: Path,
        dtype: str = "float32",
        num_blocks: int = 256,
        block_size: int = 16,
        deterministic: bool = False,
    ) -> Harness:
        config = load_model_config(model_dir)
        layout = WeightLayout.of(config, dtype)
        weights = bytearray(layout.nbytes)
        load_weights(model_dir, config, layout, HostMemory(memoryview(weights)), lambda done, total: None)
        facts = facts_for(config, dtype, num_blocks, block_size)
        kv_layout = KVLayout(config, dtype, num_blocks, block_size)
        kv = bytearray(kv_layout.nbytes)
        read_only = memoryview(weights).toreadonly()
        prefill = ModelPrefillExecutor(MappedModel(config, facts, read_only, memoryview(kv), deterministic))
        decode = ModelDecodeExecutor(MappedModel(config, facts, read_only, memoryview(kv), deterministic))
        scattered = [block * 101 % num_blocks for block in range(num_blocks)]  # 101 is prime: a permutation
        return Harness(config, prefill, decode, kv_layout, block_size, scattered, kv, weights)

    def stored_kv(self, blocks: Sequence[int], num_tokens: int) -> npt.NDArray[Any]:
        """The bits of positions 0 .. num_tokens - 1: [layer, 2, kv_head, position, head_dim] of unsigned integers."""
        layout = self.kv_layout
        pool = np.frombuffer(self.kv, np.uint32 if layout.dtype == "float32" else np.uint16).reshape(layout.shape)
        chosen = pool[:, :, list(blocks)].transpose(0, 1, 3, 2, 4, 5)
        return chosen.reshape(*chosen.shape[:3], -1, layout.config.head_dim)[:, :, :, :num_tokens].copy()

    def allocate(self, num_tokens: int) -> list[int]:
        count = -(-num_tokens // self.block_size)
        taken, self.free = self.free[:count], self.free[count:]
        assert len(taken) == count, "the test asks for more blocks than the pool has"
        return taken

    def run_prefill(self, rows: Sequence[PrefillRow]) -> list[PrefillRowDone]:
        forward = self.prefill.begin(PrefillBatch(0, list(rows)))
        while not forward.run_slice():
            pass
        return forward.results()

    def prompt(
        self, request_id: int, prompt: Sequence[int], blocks: list[int], chunk: int = 1 << 20,
        params: SamplingParams | None = None,
    ) -> int:  # fmt: skip
        """Prefill one prompt in chunks of `chunk` tokens; returns the first token."""
        for start in range(0, len(prompt), chunk):
            end = min(start + chunk, len(prompt))
            sample = SampleState(params or greedy(), 0) if end == len(prompt) else None
            done = self.run_prefill([PrefillRow(request_id, 1, list(prompt[start:end]), start, blocks, sample)])
        token_id = done[0].token_id
        assert token_id is not None
        return token_id

    def row(
        self,
        request_id: int,
        prompt: Sequence[int],
        first: int,
        blocks: list[int],
        params: SamplingParams | None = None,
    ) -> StandingRow:
        state = SampleState(params or greedy(), 1)
        return StandingRow(request_id, 1, first, len(prompt), blocks, state, 1, [first])

    def step(self, rows: Sequence[StandingRow], version: int) -> list[int]:
        """One decode step, with the bookkeeping a decode loop does."""
        tokens = self.decode.step(rows, version).token_ids
        for row, token_id in zip(rows, tokens, strict=True):
            row.last_token_id = token_id
            row.context_len += 1
            row.position += 1
            row.output_token_ids.append(token_id)
        return tokens

    def generate_in(self, blocks: list[int], prompt: Sequence[int], num_tokens: int) -> list[int]:
        """Greedy tokens of one prompt in given blocks."""
        row = self.row(1, prompt, self.prompt(1, prompt, blocks), blocks)
        self.version += 1
        for _ in range(num_tokens - 1):
            self.step([row], self.version)
        return row.output_token_ids

    def generate(self, prompts: Sequence[Sequence[int]], num_tokens: int, chunk: int = 1 << 20) -> list[list[int]]:
        """Greedy tokens of all prompts, decoded as one standing batch."""
        rows = []
        for index, prompt in enumerate(prompts):
            blocks = self.allocate(len(prompt) + num_tokens)
            rows.append(self.row(index, prompt, self.prompt(index, prompt, blocks, chunk), blocks))
        self.version += 1
        for _ in range(num_tokens - 1):
            self.step(rows, self.version)
        for row in rows:
            self.free += row.block_table
        return [row.output_token_ids for row in rows]
