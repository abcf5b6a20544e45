"""Frontend <-> engine."""

from __future__ import annotations

from msgspec import Struct

from colocate.messages.sampling import SamplingParams, TokenLogprob
from colocate.types import FinishReason, RequestId, TokenId


class Submit(Struct, frozen=True, tag=True, omit_defaults=True):
    """A validated, tokenized request (one choice).

    `output_token_ids` is empty except on resubmission after an engine or keeper was lost: then it holds the output
    tokens the frontend has already received, which count for penalties, limits, usage and position.
    """

    request_id: RequestId
    prompt_token_ids: list[TokenId]
    params: SamplingParams
    arrival_ns: int  # monotonic, when the HTTP request was read
    output_token_ids: list[TokenId] = []
    priority: int = 0
    resubmitted: bool = False  # was admitted before: the queue bound does not apply again


class Abort(Struct, frozen=True, tag=True):
    """The client is gone, or a stop string was seen. Idempotent; an unknown request is ignored."""

    request_ids: list[RequestId]


class StateQuery(Struct, frozen=True, tag=True):
    """Asks for one EngineState; `query_id` comes back."""

    query_id: int


class RequestTimes(Struct, frozen=True, array_like=True):
    """Monotonic nanoseconds. Queue time is `scheduled - arrival`; 0 where the request has not got so far."""

    arrival_ns: int
    scheduled_ns: int
    first_token_ns: int
    finished_ns: int
    preemptions: int


class OutputItem(Struct, frozen=True, array_like=True, omit_defaults=True):
    """New tokens of one request. `finish` ends it; `error` goes with `finish == error`."""

    request_id: RequestId
    token_ids: list[TokenId]
    finish: FinishReason | None = None
    logprobs: list[TokenLogprob] = []
    prompt_logprobs: list[TokenLogprob] = []  # with the first item only
    times: RequestTimes | None = None  # with the first token after a prefill, and with `finish`
    error: str | None = None


class Outputs(Struct, frozen=True, tag=True):
    """Everything one event produced for the frontend, in one message."""

    items: list[OutputItem]


class Rejected(Struct, frozen=True, tag=True):
    """Not admitted. `status` is the HTTP status: 400 does not fit, 429 queue full, 503 draining."""

    request_id: RequestId
    status: int
    reason: str
    retry_after_s: float


class SwitchRecord(Struct, frozen=True):
    """One plan switch. Times are monotonic nanoseconds; an applied time is 0 until that worker has applied it."""

    seq: int
    from_plan: str
    to_plan: str
    reason: str
    decided_ns: int
    prefill_applied_ns: int
    decode_applied_ns: int


class PlanInfo(Struct, frozen=True):
    name: str
    prefill_units: int
    decode_units: int


class EngineState(Struct, frozen=True, tag=True):
    """A consistent snapshot of the engine, the source of `/state` and of the engine's part of `/metrics`."""

    query_id: int
    now_ns: int
    mode: str
    policy: str
    plan: PlanInfo
    plan_seq: int
    plans: list[PlanInfo]
    num_waiting: int
    num_prefill_running: int
    num_decode_running: int
    blocks_total: int
    blocks_free: int
    blocks_draining: int
    block_size: int
    switch_count: int
    switch_counts: list[tuple[str, str, int]]  # from, to, how many
    switch_last: SwitchRecord | None
    switch_latency_ns: list[int]  # decided -> applied by both workers, the most recent ones
    residency_ns: dict[str, int]  # phase-active time per plan truly in force; "(switching)" while a switch is under way
    num_preemptions: int
    num_ignored_commands: int
    workers_ready: dict[str, bool]
