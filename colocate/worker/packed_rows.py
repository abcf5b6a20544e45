"""Rows of messages as the tensors of one forward: a prefill chunk, and the standing batch of a decode step.

Chunks are packed the same way for every device; a GPU uploads what is packed here.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from colocate.messages.prefill import PrefillRow, PrefillRowDone
from colocate.messages.sampling import SampleState, TokenLogprob
from colocate.model.attention.seam import DecodeRows, DecodeTables, PrefillRows, PrefillSpan
from colocate.model.sampler import SampledTokens, Sampler
from colocate.types import Incarnation, RequestId
from colocate.worker.executor import StandingRow

_LOGPROB_ROWS = 64  # prompt places scored at once: bounds the time, and the logits held to 64 x vocab_size floats

RowKey = tuple[RequestId, Incarnation]


class Scorer(Protocol):
    """What a chunk asks of the model it runs on."""

    @property
    def block_size(self) -> int: ...

    @property
    def sampler(self) -> Sampler: ...

    def logits(self, hidden: Tensor) -> Tensor:
        """float32 [places, vocab_size] on the host, for hidden states [places, hidden_size] of the last layer. Valid
        until the next call."""
        ...


@dataclass(frozen=True, slots=True)
class _LiveRow:
    """A row still wanted, and where it lies in the packed tokens."""

    row: PrefillRow
    span: PrefillSpan

    @property
    def key(self) -> RowKey:
        return self.row.request_id, self.row.incarnation

    @property
    def num_targets(self) -> int:
        """How many places are to be scored: every token's successor, where it is known."""
        if self.row.prompt_logprobs is None:
            return 0
        return len(self.row.token_ids) - (self.row.next_token_id is None)


class PackedChunk:
    """The rows of a prefill batch, their tokens one after another, and what has been found out about them.

    `token_ids` and `positions` are int64 [tokens]. Hidden states that are passed in have these tokens first.
    """

    def __init__(self, mapped: Scorer, rows: Sequence[PrefillRow]) -> None:
        self._mapped = mapped
        self._scores: dict[RowKey, list[TokenLogprob]] = defaultdict(list)
        self._pack(rows)

    def __bool__(self) -> bool:
        """Whether any row is left."""
        return bool(self._live)

    @property
    def keys(self) -> set[RowKey]:
        return {live.key for live in self._live}

    def drop(self, keys: set[RowKey]) -> Tensor | None:
        """Pack without these rows. The places of the tokens that stay, None where nothing changed."""
        kept = [live for live in self._live if live.key not in keys]
        if len(kept) == len(self._live):
            return None
        spans = [live.span for live in kept]
        places = [torch.arange(span.first, span.first + span.num_tokens) for span in spans]
        self._pack([live.row for live in kept])
        return torch.cat(places) if places else torch.empty(0, dtype=torch.int64)

    @property
    def is_scored(self) -> bool:
        return self._next_unscored() is None

    def score_piece(self, hidden: Tensor) -> None:
        """Score the next places of a prompt that is not scored yet."""
        live = self._next_unscored()
        assert live is not None
        row, num_top, scores = live.row, live.row.prompt_logprobs, self._scores[live.key]
        assert num_top is not None
        first = len(scores)
        targets = list(row.token_ids[first + 1 : first + 1 + _LOGPROB_ROWS])
        if len(targets) < _LOGPROB_ROWS and row.next_token_id is not None:
            targets.append(row.next_token_id)
        place = live.span.first + first
        logits = self._mapped.logits(hidden[place : place + len(targets)])
        scores += self._mapped.sampler.prompt_logprobs(logits, targets, num_top)

    def to_sample(self) -> tuple[list[int], list[SampleState]]:
        """The places whose logits draw a first token, and how."""
        sampled = [(live, live.row.sample) for live in self._live]
        places = [live.span.first + live.span.num_tokens - 1 for live, state in sampled if state is not None]
        return places, [state for _, state in sampled if state is not None]

    def results(self, drawn: SampledTokens) -> list[PrefillRowDone]:
        """`drawn`: one token for each place of `to_sample`."""
        logprobs = drawn.logprobs or [None] * len(drawn.token_ids)
        tokens = iter(zip(drawn.token_ids, logprobs, strict=True))
        done = []
        for live in self._live:
            token_id, logprob = (None, None) if live.row.sample is None else next(tokens)
            done.append(PrefillRowDone(*live.key, token_id, logprob, self._scores[live.key]))
        return done

    def _pack(self, rows: Sequence[PrefillRow]) -> None:
        self._live: list[_LiveRow] = []
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
            self._live.append(_LiveRow(row, span))
            first += span.num_tokens
        self.token_ids = torch.tensor([token_id for row in rows for token_id in row.token_ids], dtype=torch.int64)
        self.positions = torch.cat(positions)
        self.rows = PrefillRows(tuple(live.span for live in self._live), torch.cat(slots))

    def _next_unscored(self) -> _LiveRow | None:
        return next((live for live in self._live if len(self._scores[live.key]) < live.num_targets), None)


class PackedStep(NamedTuple):
    """One token per standing row: int64 [rows] each."""

    token_ids: Tensor
    positions: Tensor
    rows: DecodeRows


class StepPacker:
    """Packs the standing batch; what follows from rows and block tables is kept while `version` stands."""

    def __init__(self, block_size: int) -> None:
        self._block_size = block_size
        self._version: int | None = None
        self._tables = DecodeTables(torch.zeros(0, 0, dtype=torch.int64))

    def pack(self, rows: Sequence[StandingRow], version: int) -> PackedStep:
        if version != self._version:
            self._tables = _pad_tables(rows)
            self._version = version
        block_size = self._block_size
        token_ids = torch.tensor([row.last_token_id for row in rows], dtype=torch.int64)
        positions = torch.tensor([row.context_len for row in rows], dtype=torch.int64)
        blocks = self._tables.block_tables.gather(1, (positions // block_size).unsqueeze(1)).squeeze(1)
        slots = blocks * block_size + positions % block_size
        max_context_len = max(row.context_len for row in rows) + 1
        return PackedStep(token_ids, positions, DecodeRows(self._tables, positions + 1, max_context_len, slots))


def _pad_tables(rows: Sequence[StandingRow]) -> DecodeTables:
    """Padded with each row's own first block: what a kernel reads beyond a row's context is never another request's."""
    width = max(len(row.block_table) for row in rows)
    padded = [row.block_table + row.block_table[:1] * (width - len(row.block_table)) for row in rows]
    return DecodeTables(torch.tensor(padded, dtype=torch.int64))


def state_of(row: StandingRow) -> SampleState:
    """The row's sampling state as of this step; the loop keeps `position` and `output_token_ids` current."""
    sample = row.sample
    return SampleState(sample.params, row.position, sample.prompt_token_ids, row.output_token_ids)
