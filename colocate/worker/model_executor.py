"""The executors that run a real model: a prefill forward cut into layer slices, and a decode step over standing rows.

Both run a `MappedModel`, over which `hybrid_executor.py` runs the two together; the loops own queues, rows and reports.
Nothing here waits or sends.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from colocate.errors import InvariantError
from colocate.messages.prefill import PrefillBatch, PrefillRow, PrefillRowDone
from colocate.model.llama import Packed
from colocate.model.sampler import SampledTokens
from colocate.types import Incarnation, RequestId
from colocate.worker.executor import StandingRow, StepTokens
from colocate.worker.mapped_model import MappedModel
from colocate.worker.packed_rows import PackedChunk, StepPacker, state_of


class ModelPrefillExecutor:
    """Implements `PrefillExecutor`."""

    depth = 1

    def __init__(self, mapped: MappedModel) -> None:
        self._mapped = mapped

    @property
    def num_layers(self) -> int:
        return self._mapped.config.num_layers

    def begin(self, batch: PrefillBatch) -> ModelPrefillForward:
        return ModelPrefillForward(self._mapped, batch.rows)

    def units_changed(self, num_units: int) -> None:
        use_threads(num_units)


class ModelPrefillForward:
    """Implements `PrefillForward`. Owns its hidden states, so a forward may be set aside between slices."""

    def __init__(self, mapped: MappedModel, rows: Sequence[PrefillRow]) -> None:
        self._mapped = mapped
        self._next_layer = 0
        self._hidden: Tensor | None = None
        self._results: list[PrefillRowDone] | None = None
        with torch.inference_mode():
            self._chunk = PackedChunk(mapped, rows)
            self._pack()

    @torch.inference_mode()
    def run_slice(self, max_layers: int = 1) -> bool:
        """Some layers, or after them one piece of a prompt to score. The first slice embeds, the last samples.

        A scored prompt needs a pass over the vocabulary per token, which may take longer than all layers together.
        """
        if not self._chunk:
            self._results = []
            return True
        model, num_layers = self._mapped.model, self._mapped.config.num_layers
        if self._hidden is None:
            self._hidden = model.embed(self._chunk.token_ids)
        if self._next_layer < num_layers:
            stop = min(self._next_layer + max_layers, num_layers)
            model.run_layers(self._hidden, self._next_layer, stop, self._packed)
            self._next_layer = stop
        elif not self._chunk.is_scored:
            self._chunk.score_piece(self._hidden)
        if self._next_layer < num_layers or not self._chunk.is_scored:
            return False
        self._results = self._finish(self._hidden)
        return True

    def wait_slice(self) -> None:
        """It is done."""

    def abandon(self) -> None:
        self._hidden = None

    @torch.inference_mode()
    def drop_rows(self, rows: set[tuple[RequestId, Incarnation]]) -> None:
        places = self._chunk.drop(rows)
        if places is None:
            return
        if self._hidden is not None:
            self._hidden = self._hidden.index_select(0, places)
        self._pack()

    def results(self) -> list[PrefillRowDone]:
        if self._results is None:
            raise InvariantError("results of a prefill forward were asked for before its last slice")
        alive = self._chunk.keys
        return [done for done in self._results if (done.request_id, done.incarnation) in alive]

    def _pack(self) -> None:
        if self._chunk:
            self._packed = Packed(*self._mapped.rotary.at(self._chunk.positions), self._chunk.rows)

    def _finish(self, hidden: Tensor) -> list[PrefillRowDone]:
        places, states = self._chunk.to_sample()
        if not places:
            return self._chunk.results(SampledTokens([]))
        logits = self._mapped.model.logits(hidden.index_select(0, torch.tensor(places)))
        return self._chunk.results(self._mapped.sampler.sample(logits, states))


class ModelDecodeExecutor:
    """A step at a time; `worker/at_once.py` makes it a `DecodeExecutor`."""

    def __init__(self, mapped: MappedModel) -> None:
        self._mapped = mapped
        self._packer = StepPacker(mapped.block_size)

    def units_changed(self, num_units: int) -> None:
        use_threads(num_units)

    def step(self, rows: Sequence[StandingRow], version: int) -> StepTokens:
        return decode_step(self._mapped, self._packer, rows, version)


def use_threads(num_units: int) -> None:
    """The intra-op threads of this process, one per core of its share."""
    torch.set_num_threads(max(num_units, 1))


@torch.inference_mode()
def decode_step(mapped: MappedModel, packer: StepPacker, rows: Sequence[StandingRow], version: int) -> StepTokens:
    """As `DecodeExecutor.launch`, and its tokens."""
    step = packer.pack(rows, version)
    hidden = mapped.model.embed(step.token_ids)
    packed = Packed(*mapped.rotary.at(step.positions), step.rows)
    mapped.model.run_layers(hidden, 0, mapped.config.num_layers, packed)
    drawn = mapped.sampler.sample(mapped.model.logits(hidden), [state_of(row) for row in rows])
    return StepTokens(drawn.token_ids, drawn.logprobs)
