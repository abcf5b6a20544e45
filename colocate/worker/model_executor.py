"""The executors that run a real model: a prefill forward cut into layer slices, and a decode step over standing rows.

Both map the keeper's two segments; the loops own queues, rows and reports. Nothing here waits or sends.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from colocate.errors import InvariantError
from colocate.messages.prefill import PrefillBatch, PrefillRow, PrefillRowDone
from colocate.messages.sampling import SampleState, TokenLogprob
from colocate.messages.spec import RuntimeFacts
from colocate.model.attention.choice import attention_for
from colocate.model.attention.seam import DecodeRows, DecodeTables, PrefillRows, PrefillSpan
from colocate.model.config import ModelConfig
from colocate.model.kv import KVPool
from colocate.model.layout import KVLayout, WeightLayout
from colocate.model.linear import linear_for
from colocate.model.llama import TORCH_DTYPES, LlamaModel, Packed, map_kv, map_weights
from colocate.model.native_layers import native_layers_for
from colocate.model.rope import RotaryTable
from colocate.model.sampler import Sampler
from colocate.types import Incarnation, RequestId
from colocate.worker.executor import StandingRow, StepTokens

_LOGPROB_ROWS = 64  # prompt places scored in one slice: bounds its time, and the logits held to 64 x vocab_size floats


class _Mapped:
    """What both executors hold: the model over the mapped memory, the rotation table, the sampler."""

    def __init__(
        self, config: ModelConfig, facts: RuntimeFacts, weights: memoryview, kv: memoryview, deterministic: bool
    ) -> None:
        self.config = config
        self.block_size = facts.block_size
        pool = KVPool(map_kv(KVLayout(config, facts.dtype, facts.num_blocks, facts.block_size), kv))
        thread_counts = sorted({1, 2, facts.total_units})
        attention = attention_for(config, pool, deterministic, thread_counts)
        tensors = map_weights(WeightLayout.of(config, facts.dtype), weights)
        fused = native_layers_for(config, tensors, pool, deterministic)
        linear = linear_for(tensors, deterministic, thread_counts)
        # The native layers compute in float32. Rounding between calls would make the result depend on the slicing.
        hidden_dtype = torch.float32 if deterministic and fused is not None else None
        self.model = LlamaModel(config, tensors, attention, linear, fused, hidden_dtype)
        self.rotary = RotaryTable(config.rope, config.head_dim, facts.max_model_len, TORCH_DTYPES[facts.dtype])
        self.sampler = Sampler(config.vocab_size)


class ModelPrefillExecutor:
    """Implements `PrefillExecutor`. `weights` may be read-only; `kv` is written in the blocks of the rows alone.

    `deterministic`: the same bits whatever the batch, the chunking, the thread count and the phase, at a cost.
    """

    def __init__(
        self,
        config: ModelConfig,
        facts: RuntimeFacts,
        weights: memoryview,
        kv: memoryview,
        deterministic: bool = False,
    ) -> None:
        self._mapped = _Mapped(config, facts, weights, kv, deterministic)

    @property
    def num_layers(self) -> int:
        return self._mapped.config.num_layers

    def begin(self, batch: PrefillBatch) -> ModelPrefillForward:
        return ModelPrefillForward(self._mapped, batch.rows)

    def units_changed(self, num_units: int) -> None:
        torch.set_num_threads(max(num_units, 1))


@dataclass(frozen=True, slots=True)
class _LiveRow:
    """A row still wanted, and where it lies in the packed tokens."""

    row: PrefillRow
    span: PrefillSpan

    @property
    def key(self) -> tuple[RequestId, Incarnation]:
        return self.row.request_id, self.row.incarnation

    @property
    def num_targets(self) -> int:
        """How many places are to be scored: every token's successor, where it is known."""
        if self.row.prompt_logprobs is None:
            return 0
        return len(self.row.token_ids) - (self.row.next_token_id is None)


class ModelPrefillForward:
    """Implements `PrefillForward`. Owns its hidden states, so a forward may be set aside between slices."""

    def __init__(self, mapped: _Mapped, rows: Sequence[PrefillRow]) -> None:
        self._mapped = mapped
        self._next_layer = 0
        self._hidden: Tensor | None = None
        self._rows: list[_LiveRow] = []
        self._scores: dict[tuple[RequestId, Incarnation], list[TokenLogprob]] = defaultdict(list)
        self._results: list[PrefillRowDone] | None = None
        with torch.inference_mode():
            self._pack(rows)

    @torch.inference_mode()
    def run_slice(self, max_layers: int = 1) -> bool:
        """Some layers, or after them one piece of a prompt to score. The first slice embeds, the last samples.

        A scored prompt needs a pass over the vocabulary per token, which may take longer than all layers together.
        """
        if not self._rows:
            self._results = []
            return True
        model, num_layers = self._mapped.model, self._mapped.config.num_layers
        if self._hidden is None:
            self._hidden = model.embed(self._token_ids)
        if self._next_layer < num_layers:
            stop = min(self._next_layer + max_layers, num_layers)
            model.run_layers(self._hidden, self._next_layer, stop, self._packed)
            self._next_layer = stop
        elif (live := self._next_unscored()) is not None:
            self._score_piece(live, self._hidden)
        if self._next_layer < num_layers or self._next_unscored() is not None:
            return False
        self._results = self._finish(self._hidden)
        return True

    @torch.inference_mode()
    def drop_rows(self, rows: set[tuple[RequestId, Incarnation]]) -> None:
        kept = [live for live in self._rows if live.key not in rows]
        if len(kept) == len(self._rows):
            return
        if self._hidden is not None and kept:
            spans = [live.span for live in kept]
            places = torch.cat([torch.arange(span.first, span.first + span.num_tokens) for span in spans])
            self._hidden = self._hidden.index_select(0, places)
        self._pack([live.row for live in kept])

    def results(self) -> list[PrefillRowDone]:
        if self._results is None:
            raise InvariantError("results of a prefill forward were asked for before its last slice")
        alive = {live.key for live in self._rows}
        return [done for done in self._results if (done.request_id, done.incarnation) in alive]

    def _pack(self, rows: Sequence[PrefillRow]) -> None:
        """Lay the rows' tokens one after another."""
        self._rows = []
        if not rows:
            return
        block_size = self._mapped.block_size
        positions: list[Tensor] = []
        slots: list[Tensor] = []
        first = 0
        for row in rows:
            span = PrefillSpan(first, len(row.token_ids), row.start, torch.tensor(row.block_table, dtype=torch.int64))
            own = torch.arange(row.start, span.context_len)
            positions.append(own)
            slots.append(span.block_table[own // block_size] * block_size + own % block_size)
            self._rows.append(_LiveRow(row, span))
            first += span.num_tokens
        self._token_ids = torch.tensor([token_id for row in rows for token_id in row.token_ids], dtype=torch.int64)
        cos, sin = self._mapped.rotary.at(torch.cat(positions))
        self._packed = Packed(cos, sin, PrefillRows(tuple(live.span for live in self._rows), torch.cat(slots)))

    def _finish(self, hidden: Tensor) -> list[PrefillRowDone]:
        sampled = [live for live in self._rows if live.row.sample is not None]
        tokens: dict[int, tuple[int, TokenLogprob | None]] = {}
        if sampled:
            places = torch.tensor([live.span.first + live.span.num_tokens - 1 for live in sampled])
            logits = self._mapped.model.logits(hidden.index_select(0, places))
            states = [live.row.sample for live in sampled if live.row.sample is not None]
            drawn = self._mapped.sampler.sample(logits, states)
            logprobs = drawn.logprobs or [None] * len(sampled)
            tokens = {
                live.span.first: (token_id, logprob)
                for live, token_id, logprob in zip(sampled, drawn.token_ids, logprobs, strict=True)
            }
        results = []
        for live in self._rows:
            token_id, logprob = tokens.get(live.span.first, (None, None))
            row = live.row
            results.append(PrefillRowDone(row.request_id, row.incarnation, token_id, logprob, self._scores[live.key]))
        return results

    def _next_unscored(self) -> _LiveRow | None:
        return next((live for live in self._rows if len(self._scores[live.key]) < live.num_targets), None)

    def _score_piece(self, live: _LiveRow, hidden: Tensor) -> None:
        row, scores = live.row, self._scores[live.key]
        assert row.prompt_logprobs is not None
        first = len(scores)
        targets = list(row.token_ids[first + 1 : first + 1 + _LOGPROB_ROWS])
        if len(targets) < _LOGPROB_ROWS and row.next_token_id is not None:
            targets.append(row.next_token_id)
        place = live.span.first + first
        logits = self._mapped.model.logits(hidden[place : place + len(targets)])
        scores += self._mapped.sampler.prompt_logprobs(logits, targets, row.prompt_logprobs)


class ModelDecodeExecutor:
    """Implements `DecodeExecutor`. Tensors that follow from rows and block tables are kept while `version` stands."""

    def __init__(
        self,
        config: ModelConfig,
        facts: RuntimeFacts,
        weights: memoryview,
        kv: memoryview,
        deterministic: bool = False,
    ) -> None:
        self._mapped = _Mapped(config, facts, weights, kv, deterministic)
        self._version: int | None = None
        self._tables = DecodeTables(torch.zeros(0, 0, dtype=torch.int64))

    def units_changed(self, num_units: int) -> None:
        torch.set_num_threads(max(num_units, 1))

    @torch.inference_mode()
    def step(self, rows: Sequence[StandingRow], version: int) -> StepTokens:
        if version != self._version:
            self._tables = _pad_tables(rows)
            self._version = version
        mapped, block_size = self._mapped, self._mapped.block_size
        token_ids = torch.tensor([row.last_token_id for row in rows], dtype=torch.int64)
        positions = torch.tensor([row.context_len for row in rows], dtype=torch.int64)
        blocks = self._tables.block_tables.gather(1, (positions // block_size).unsqueeze(1)).squeeze(1)
        cos, sin = mapped.rotary.at(positions)
        max_context_len = max(row.context_len for row in rows) + 1
        slots = blocks * block_size + positions % block_size
        packed = Packed(cos, sin, DecodeRows(self._tables, positions + 1, max_context_len, slots))
        hidden = mapped.model.embed(token_ids)
        mapped.model.run_layers(hidden, 0, mapped.config.num_layers, packed)
        drawn = mapped.sampler.sample(mapped.model.logits(hidden), [_state_of(row) for row in rows])
        return StepTokens(drawn.token_ids, drawn.logprobs)


def _pad_tables(rows: Sequence[StandingRow]) -> DecodeTables:
    """Padded with each row's own first block: what a kernel reads beyond a row's context is never another request's."""
    width = max(len(row.block_table) for row in rows)
    padded = [row.block_table + row.block_table[:1] * (width - len(row.block_table)) for row in rows]
    return DecodeTables(torch.tensor(padded, dtype=torch.int64))


def _state_of(row: StandingRow) -> SampleState:
    """The row's sampling state as of this step; the loop keeps `position` and `output_token_ids` current."""
    sample = row.sample
    return SampleState(sample.params, row.position, sample.prompt_token_ids, row.output_token_ids)
