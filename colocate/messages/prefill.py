"""Engine <-> prefill worker."""

from __future__ import annotations

from msgspec import Struct

from colocate.messages.sampling import SampleState, TokenLogprob
from colocate.types import BlockId, Incarnation, RequestId, TokenId


class PrefillRow(Struct, frozen=True, omit_defaults=True):
    """One chunk of one request.

    `token_ids` are fed at positions `start .. start + len(token_ids) - 1`; KV of positions before `start` is already
    in the pool. `block_table` covers every position up to the end of the chunk. `sample` is set on the last chunk only.
    """

    request_id: RequestId
    incarnation: Incarnation
    token_ids: list[TokenId]
    start: int
    block_table: list[BlockId]
    sample: SampleState | None = None
    prompt_logprobs: int | None = None  # alternatives per prompt token, where the client echoes with logprobs
    next_token_id: TokenId | None = None  # with prompt_logprobs and more chunks to come: scores the chunk's last place


class PrefillBatch(Struct, frozen=True, tag=True, omit_defaults=True):
    """One forward: rows of at most `max_num_batched_tokens` tokens together, run layer slice by layer slice."""

    batch_id: int
    rows: list[PrefillRow]
    urgent: bool = False  # runs before batches that wait, and between two layer slices of the one under way


class PrefillCancel(Struct, frozen=True, tag=True):
    """Drop these rows, wherever they are. Always answered: by PrefillDone (it was too late) or PrefillCancelled."""

    rows: list[tuple[RequestId, Incarnation]]


class PrefillRowDone(Struct, frozen=True, omit_defaults=True):
    """`token_id` is the first sampled token, None where the chunk was not the last.

    `prompt_logprobs[i]` scores the token at position `start + 1 + i`, i.e. entry i comes from the logits at
    `start + i`; the last place of the last chunk has no successor and no entry.
    """

    request_id: RequestId
    incarnation: Incarnation
    token_id: TokenId | None = None
    logprob: TokenLogprob | None = None
    prompt_logprobs: list[TokenLogprob] = []


class PrefillDone(Struct, frozen=True, tag=True):
    """All layers of these rows are written. Rows cancelled in time are absent (and named by PrefillCancelled)."""

    batch_id: int
    rows: list[PrefillRowDone]
    started_ns: int  # monotonic
    finished_ns: int
    plan_seq: int  # the plan in force at the last slice


class PrefillCancelled(Struct, frozen=True, tag=True):
    """The worker touches these rows no more: their blocks may be freed."""

    rows: list[tuple[RequestId, Incarnation]]


class BatchFailed(Struct, frozen=True, tag=True):
    """A forward raised; the worker lives on. Counts like a death for every request named."""

    role: str
    rows: list[tuple[RequestId, Incarnation]]
    batch_id: int  # -1 for a decode step
    error: str
