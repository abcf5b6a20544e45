"""Engine <-> decode worker: differences to the standing batch one way, step reports the other."""

from __future__ import annotations

from msgspec import Struct

from colocate.messages.sampling import SampleState, TokenLogprob
from colocate.types import BlockId, FinishReason, Incarnation, RequestId, TokenId


class DecodeRow(Struct, frozen=True):
    """A row that joins. The hand-over from prefill is this and no more: a block table.

    KV of positions `0 .. context_len - 1` is in the pool; the next step feeds `last_token_id` at position
    `context_len`, writes its KV there and samples output position `sample.position`. The row may be stepped while
    `context_len < len(block_table) * block_size`; beyond that it is masked until a grow arrives.
    """

    request_id: RequestId
    incarnation: Incarnation
    last_token_id: TokenId
    context_len: int
    block_table: list[BlockId]
    sample: SampleState


class DecodeUpdate(Struct, frozen=True, tag=True, omit_defaults=True):
    """Applied at the next step boundary, in the order grows, leaves, joins. Every leave is acknowledged."""

    joins: list[DecodeRow] = []
    leaves: list[tuple[RequestId, Incarnation]] = []
    grows: list[tuple[RequestId, Incarnation, list[BlockId]]] = []  # blocks appended to the row's table


class StepRow(Struct, frozen=True, array_like=True, omit_defaults=True):
    """One row of a step. `finish` is set where the worker saw the end (EOS, stop token id, length): the row has left
    the standing batch and its blocks may be freed."""

    request_id: RequestId
    incarnation: Incarnation
    token_id: TokenId
    finish: FinishReason | None = None
    logprob: TokenLogprob | None = None


class StepReport(Struct, frozen=True, tag=True, omit_defaults=True):
    """What one completed step produced, and which leaves are in force: after this report the worker touches neither
    the finished nor the left rows. A report without rows only acknowledges leaves or names masked rows."""

    step: int
    rows: list[StepRow]
    left: list[tuple[RequestId, Incarnation]] = []
    masked: list[tuple[RequestId, Incarnation]] = []  # newly without a granted slot
    started_ns: int = 0
    finished_ns: int = 0
    plan_seq: int = 0
