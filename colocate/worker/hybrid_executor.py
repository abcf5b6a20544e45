"""The executor of mode `chunked` on a real model: a prefill chunk and the standing batch in one forward.

The tokens of both go through every matrix product together, so the weights are read once; attention takes each part by
the kernel of its phase. A forward of one part alone is the one that the other two executors run.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from colocate.messages.prefill import PrefillBatch, PrefillRowDone
from colocate.model.attention.seam import HybridRows
from colocate.model.llama import Packed
from colocate.model.sampler import SampledTokens
from colocate.worker.executor import HybridResult, StandingRow, StepTokens
from colocate.worker.mapped_model import MappedModel
from colocate.worker.model_executor import ModelPrefillForward, decode_step, use_threads
from colocate.worker.packed_rows import PackedChunk, StepPacker, state_of


class ModelHybridExecutor:
    """A forward at a time; `worker/at_once.py` makes it a `HybridExecutor`."""

    def __init__(self, mapped: MappedModel) -> None:
        self._mapped = mapped
        self._packer = StepPacker(mapped.block_size)

    def units_changed(self, num_units: int) -> None:
        use_threads(num_units)

    def step(self, batch: PrefillBatch | None, rows: Sequence[StandingRow], version: int) -> HybridResult:
        if batch is None:
            return HybridResult(decode_step(self._mapped, self._packer, rows, version), [])
        if not rows:
            return HybridResult(None, self._prefill(batch))
        return self._together(batch, rows, version)

    def _prefill(self, batch: PrefillBatch) -> list[PrefillRowDone]:
        forward = ModelPrefillForward(self._mapped, batch.rows)
        while not forward.run_slice(self._mapped.config.num_layers):
            pass
        return forward.results()

    @torch.inference_mode()
    def _together(self, batch: PrefillBatch, rows: Sequence[StandingRow], version: int) -> HybridResult:
        mapped, model = self._mapped, self._mapped.model
        chunk, step = PackedChunk(mapped, batch.rows), self._packer.pack(rows, version)
        hidden = model.embed(torch.cat((chunk.token_ids, step.token_ids)))
        both = HybridRows(chunk.rows, step.rows, torch.cat((chunk.rows.slots, step.rows.slots)))
        packed = Packed(*mapped.rotary.at(torch.cat((chunk.positions, step.positions))), both)
        model.run_layers(hidden, 0, mapped.config.num_layers, packed)
        while not chunk.is_scored:
            chunk.score_piece(hidden)
        places, states = chunk.to_sample()
        num_tokens, num_first = len(chunk.token_ids), len(places)
        wanted = torch.cat((torch.tensor(places, dtype=torch.int64), torch.arange(num_tokens, len(hidden))))
        logits = model.logits(hidden.index_select(0, wanted))
        drawn = mapped.sampler.sample(logits, [*states, *(state_of(row) for row in rows)])
        first, later = _split(drawn, num_first)
        return HybridResult(StepTokens(later.token_ids, later.logprobs), chunk.results(first))


def _split(drawn: SampledTokens, at: int) -> tuple[SampledTokens, SampledTokens]:
    logprobs = drawn.logprobs
    if logprobs is None:
        return SampledTokens(drawn.token_ids[:at]), SampledTokens(drawn.token_ids[at:])
    return SampledTokens(drawn.token_ids[:at], logprobs[:at]), SampledTokens(drawn.token_ids[at:], logprobs[at:])
