"""Frontend <-> engine."""

from __future__ import annotations

from msgspec import Struct

from colocate.messages.sampling import SamplingParams, TokenLogprob
from colocate.messages.slo import SloClass
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
    slo_class: str = ""  # a configured class; empty: the default one
    ttft_s: float | None = None  # overrides of the class for this request
    tpot_s: float | None = None
    cache_salt: str = ""  # prefixes are shared only among requests of one salt
    itl_s: float | None = None  # override of the class, as ttft_s and tpot_s are


class Abort(Struct, frozen=True, tag=True):
    """The client is gone, or a stop string was seen. Idempotent; an unknown request is ignored."""

    request_ids: list[RequestId]


class StateQuery(Struct, frozen=True, tag=True):
    """Asks for one EngineState; `query_id` comes back."""

    query_id: int


class PinPlan(Struct, frozen=True, tag=True):
    """An operator holds one plan in force whatever the policy says; None gives the policy its say again."""

    query_id: int
    plan: str | None


class ChangeSlo(Struct, frozen=True, tag=True):
    """An operator changes targets of existing classes, for requests that arrive from now on."""

    query_id: int
    classes: list[SloClass]


class UsePlans(Struct, frozen=True, tag=True):
    """An operator's plan file was read again: the policy chooses among these plans from now on."""

    query_id: int
    plans: list[str]  # names in the device's plan table
    best_static: str


class ControlReply(Struct, frozen=True, tag=True):
    """Answer to PinPlan, ChangeSlo or UsePlans. `problem` is empty where it was done."""

    query_id: int
    problem: str = ""
    remedy: str = ""


class RequestTimes(Struct, frozen=True, array_like=True):
    """Monotonic nanoseconds. Queue time is `scheduled - arrival`; 0 where the request has not got so far."""

    arrival_ns: int
    scheduled_ns: int
    first_token_ns: int
    finished_ns: int
    preemptions: int
    num_cached_tokens: int = 0  # of the prompt: KV found in the prefix tree, not computed again


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


class ShadowRecord(Struct, frozen=True):
    """What another policy would have done with the same views."""

    policy: str
    wants: str  # its plan now
    agreement: float  # share of phase-active time in which it wanted the plan that was asked for, 0 to 1
    switch_count: int


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
    # The rest has defaults so that snapshots in tests stay short.
    blocks_cached: int = 0  # in the prefix tree and referenced by no request: free as soon as somebody needs them
    prefix_queries_total: int = 0  # prompt tokens looked up in the prefix tree
    prefix_hits_total: int = 0  # of those, found
    prefix_evictions_total: int = 0  # blocks of the prefix tree given up to make room
    discipline: str = "fcfs"
    candidates: list[str] = []  # plans the policy may choose from
    best_static: str = ""
    pinned: str | None = None
    slo_classes: list[SloClass] = []
    shadow: ShadowRecord | None = None
    guards: dict[str, int] = {}  # how often each guard changed what the policy wanted
    prediction_error: dict[str, float] = {}  # per phase, the recent mean of |measured - predicted| / predicted
    latency_source: str = ""  # where the engine's latency model comes from
    set_aside_count: int = 0  # forwards put aside for an urgent prompt
    switch_recent: list[SwitchRecord] = []  # the most recent ones in order; ends with switch_last
