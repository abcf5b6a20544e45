"""What a worker loop asks of the thing that computes: the seam between loops and models.

Implementations: `worker/model_executor.py` and `worker/hybrid_executor.py` run a real model on CPU cores,
`worker/cuda` runs it on a GPU, `worker/emulated_executor.py` draws deterministic tokens and takes its time from a
profile. Loops hold the bookkeeping (inbox, board, standing batch, reports); executors hold the arithmetic.

Work is launched and then waited for, so that a device never waits for its host: `depth` says how many pieces may be
launched and not waited for. Where it is 1, a piece is computed when its launch returns (`worker/at_once.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from colocate.messages.prefill import PrefillBatch, PrefillRowDone
from colocate.messages.sampling import SampleState, TokenLogprob
from colocate.types import BlockId, Incarnation, RequestId, TokenId


class PrefillForward(Protocol):
    """One forward under way. It owns what it has computed: two may be under way, one of them set aside between two of
    its slices while the other runs."""

    def run_slice(self, max_layers: int = 1) -> bool:
        """Launch the next layers, at most so many, on the units in force now. True once all layers and the sampling
        are launched; with the last layer, unless the prompt is scored: that takes further calls, each about as long as
        a layer.

        Writes KV of the rows' positions into their blocks, nothing else.
        """
        ...

    def wait_slice(self) -> None:
        """Wait for the oldest slice under way; raises what went wrong in it."""
        ...

    def drop_rows(self, rows: set[tuple[RequestId, Incarnation]]) -> None:
        """Between slices: these rows are cancelled. Waits for the slices under way; from here on the blocks of these
        rows are neither read nor written."""
        ...

    def results(self) -> list[PrefillRowDone]:
        """Once, after run_slice returned True and every slice was waited for: one entry per row that was not dropped,
        in batch order. The forward is over."""
        ...

    def abandon(self) -> None:
        """Nobody wants this forward. Waits for its slices under way; from here on it reads and writes nothing."""
        ...


class PrefillExecutor(Protocol):
    @property
    def num_layers(self) -> int:
        """How many layers every forward has."""
        ...

    @property
    def depth(self) -> int:
        """How many slices, of all forwards together, may be launched and not waited for."""
        ...

    def begin(self, batch: PrefillBatch) -> PrefillForward:
        """Prepare a forward; no kernel runs yet. The batch is not modified."""
        ...

    def units_changed(self, num_units: int) -> None:
        """The partition in force has this many units from the next slice on (0: nothing will be run)."""
        ...


@dataclass(slots=True)
class StandingRow:
    """A row of the standing batch, owned by the decode loop; executors read it and keep no reference to it.

    `context_len` positions of KV are written; the next step feeds `last_token_id` at position `context_len`.
    `output_token_ids` grows by the loop after every step and is complete only where a penalty needs it. All of it is as
    of the last step collected: of `num_ahead` further steps, launched already, nothing is known yet.
    """

    request_id: RequestId
    incarnation: Incarnation
    last_token_id: TokenId
    context_len: int
    block_table: list[BlockId]
    sample: SampleState
    position: int  # the output position the next step draws
    output_token_ids: list[TokenId] = field(default_factory=list)
    num_ahead: int = 0


@dataclass(frozen=True, slots=True)
class StepTokens:
    """Result of one decode step: `token_ids[i]` belongs to row i of those it was launched over; `logprobs[i]` where
    that row asked for it. -1 stands for nothing: the device knew that the row had ended in the step before."""

    token_ids: list[TokenId]
    logprobs: list[TokenLogprob | None] | None = None


class DecodeExecutor(Protocol):
    @property
    def depth(self) -> int:
        """How many steps may be launched and not collected."""
        ...

    def may_run_ahead(self, rows: Sequence[StandingRow], version: int) -> bool:
        """Whether a step over these rows may be launched before the step under way is collected. Not asked where none
        is. No where tokens of either are drawn on the host."""
        ...

    def launch(self, rows: Sequence[StandingRow], version: int) -> None:
        """One forward over these rows: write KV of the last token at the next position, sample the next token of each.

        `rows` is never empty and each row has a slot for position `context_len + num_ahead`. A row that a step under
        way ends (its end-of-sequence is seen there, or its length) writes nothing and draws -1. `version` changes
        whenever rows, their order or a block table changed since the last launch, so what is derived from those may be
        cached under it; while it stays the same, each row goes on from the previous step. A row that was not in the
        previous step has `num_ahead` 0.
        """
        ...

    def collect(self) -> StepTokens:
        """Wait for the oldest step launched. Raises what went wrong in it; it is collected then, too."""
        ...

    def abandon(self) -> None:
        """Wait for every step launched and forget them, and every row: nothing of them is read or written from here
        on. Legal at any time."""
        ...

    def units_changed(self, num_units: int) -> None:
        """The partition in force has this many units from the next step on (0: nothing will be launched)."""
        ...


@dataclass(frozen=True, slots=True)
class HybridResult:
    """What one forward of both phases yields. `tokens` is None where no row stood; `done` has one entry per row of the
    chunk, in batch order."""

    tokens: StepTokens | None
    done: list[PrefillRowDone]


class HybridExecutor(Protocol):
    """As `DecodeExecutor`, with a chunk of prompts in the forward: it is one of `PrefillExecutor.begin`, run whole. KV
    of the chunk's positions and of one position per row is written into their own blocks, nothing else. A row is in one
    of the two at most, and there is at least one of the two."""

    @property
    def depth(self) -> int: ...

    def may_run_ahead(self, batch: PrefillBatch | None, rows: Sequence[StandingRow], version: int) -> bool: ...

    def launch(self, batch: PrefillBatch | None, rows: Sequence[StandingRow], version: int) -> None: ...

    def collect(self) -> HybridResult: ...

    def abandon(self) -> None: ...

    def units_changed(self, num_units: int) -> None: ...
