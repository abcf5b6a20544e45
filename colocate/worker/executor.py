"""What a worker loop asks of the thing that computes: the seam between loops and models.

Two implementations of each: `worker/model_executor.py` and `worker/hybrid_executor.py` run a real model on the device's
kernels; `worker/emulated_executor.py` draws deterministic tokens and takes its time from a profile. Loops hold the
bookkeeping (inbox, board, standing batch, reports); executors hold the arithmetic.
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
        """Run the next layers, at most so many, on the units in force now. True once all layers and the sampling are
        done; with the last layer, unless the prompt is scored: that takes further calls, each about as long as a layer.

        Writes KV of the rows' positions into their blocks, nothing else.
        """
        ...

    def drop_rows(self, rows: set[tuple[RequestId, Incarnation]]) -> None:
        """Between slices: these rows are cancelled. From here on their blocks are neither read nor written."""
        ...

    def results(self) -> list[PrefillRowDone]:
        """After run_slice returned True: one entry per row that was not dropped, in batch order."""
        ...


class PrefillExecutor(Protocol):
    @property
    def num_layers(self) -> int:
        """How many layers every forward has."""
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
    `output_token_ids` grows by the loop after every step and is complete only where a penalty needs it.
    """

    request_id: RequestId
    incarnation: Incarnation
    last_token_id: TokenId
    context_len: int
    block_table: list[BlockId]
    sample: SampleState
    position: int  # the output position the next step draws
    output_token_ids: list[TokenId] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class StepTokens:
    """Result of one decode step: `token_ids[i]` belongs to `rows[i]`; `logprobs[i]` where that row asked for it."""

    token_ids: list[TokenId]
    logprobs: list[TokenLogprob | None] | None = None


class DecodeExecutor(Protocol):
    def step(self, rows: Sequence[StandingRow], version: int) -> StepTokens:
        """One forward over these rows: write KV of `last_token_id` at `context_len`, sample the next token of each.

        `rows` is never empty and each row has a slot for `context_len`. `version` changes whenever rows, their order
        or a block table changed since the last call, so tensors derived from those may be cached under it; while it
        stays the same, each row's `last_token_id` is the token the previous step returned for it and `context_len`
        and `position` grew by one.
        """
        ...

    def units_changed(self, num_units: int) -> None:
        """The partition in force has this many units from the next step on (0: nothing will be run)."""
        ...


@dataclass(frozen=True, slots=True)
class HybridResult:
    """What one forward of both phases yields. `tokens` is None where no row stood; `done` has one entry per row of the
    chunk, in batch order."""

    tokens: StepTokens | None
    done: list[PrefillRowDone]


class HybridExecutor(Protocol):
    def step(self, batch: PrefillBatch | None, rows: Sequence[StandingRow], version: int) -> HybridResult:
        """One forward over a chunk and the standing batch together; there is at least one of them.

        `rows` and `version` are those of `DecodeExecutor.step`, the batch is one of `PrefillExecutor.begin`, run whole:
        KV of the chunk's positions and of one position per row is written into their own blocks, nothing else. A row is
        in one of the two at most.
        """
        ...

    def units_changed(self, num_units: int) -> None:
        """The partition in force has this many units from the next forward on (0: nothing will be run)."""
        ...
