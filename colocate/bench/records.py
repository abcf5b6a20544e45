"""What a run writes down: one row per offered request, one row per look at the server, one manifest. Schema version 1.

    RUN/manifest.json    RunManifest
    RUN/requests.jsonl   RequestRow per line, in order of schedule
    RUN/server.jsonl     ServerSample per line, where the server tells
    SWEEP/sweep.json     SweepManifest
    SWEEP/runs/ID/       one run each
    SWEEP/recall/ARM.json  RecallRecord, where `--recall` asked for it

Times are seconds after the start of the run, on the client's monotonic clock. Raw facts only: whatever can be computed
from rows is computed when they are read (`bench/metrics`), so that a figure has one formula.
"""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

SCHEMA_VERSION = 1

Phase = Literal["warmup", "measured", "cooldown"]
Outcome = Literal["finished", "rejected", "failed", "timed_out", "cut_off", "not_sent"]
RunStatus = Literal["valid", "invalid", "partial", "failed"]


class Stages(Struct, frozen=True, omit_defaults=True):
    """Where a request spent its time, as the server tells it; None where it does not. They follow one another and do
    not overlap; `stream_s` is the rest, from the last token drawn to the last byte written."""

    tokenize_s: float | None = None
    queue_s: float | None = None  # accepted until its first prefill chunk starts
    prefill_s: float | None = None  # until its first token is drawn
    decode_s: float | None = None  # until its last token is drawn
    stream_s: float | None = None


class RequestRow(Struct, frozen=True, omit_defaults=True):
    """One offered request. A row exists for every request of the workload, whatever became of it.

    `token_s[i]` is when output token i arrived: tokens of one event share a time. `token_source` says how tokens were
    counted: `ids` (the server names them), `usage` (one event held several; spread evenly over its events) or `events`
    (one event, one token).
    """

    index: int  # 0, 1, .. in order of schedule
    scheduled_s: float  # latencies count from here: what the client sends late is the client's fault, and shows
    phase: Phase
    prompt_tokens: int
    max_tokens: int
    outcome: Outcome
    sent_s: float | None = None
    first_byte_s: float | None = None  # of the answer's body
    token_s: tuple[float, ...] = ()
    end_s: float | None = None  # the stream was complete, or broke
    status: int = 0  # of HTTP; 0: no answer
    finish_reason: str | None = None
    error: str | None = None
    error_kind: str = ""  # refused, reset, http_500, stream_error, timeout, ...
    output_tokens: int = 0
    token_source: Literal["ids", "usage", "events"] = "events"
    cached_tokens: int | None = None  # of the prompt, found in the server's prefix cache; None: not told
    retry_after_s: float | None = None
    slo_class: str = ""
    session: str = ""
    stages: Stages | None = None
    token_ids: tuple[int, ...] | None = None  # kept where quality is compared


class ServerSample(Struct, frozen=True, omit_defaults=True):
    """One look at `/state` (ours) or `/metrics` (anybody's) during the run."""

    at_s: float
    plan: str = ""  # in force
    waiting: int | None = None
    prefill_running: int | None = None
    decode_running: int | None = None
    kv_usage: float | None = None  # 0 .. 1
    preemptions: int | None = None  # so far
    switches: int | None = None  # so far
    power_w: float | None = None  # of the device, by NVML
    resident_bytes: int | None = None  # of the server's processes


class Switch(Struct, frozen=True):
    """One change of plan, on the run's clock. Applied times are None where a worker never acknowledged."""

    decided_s: float
    source: str
    target: str
    reason: str = ""
    prefill_applied_s: float | None = None
    decode_applied_s: float | None = None


class TargetFacts(Struct, frozen=True, omit_defaults=True):
    """Who was measured."""

    url: str
    system: str  # colocate, vllm, sglang, llama.cpp, transformers, unknown
    model: str
    version: str = ""
    command: tuple[str, ...] = ()  # where this run started it
    device: str = ""
    settings: dict[str, object] = {}  # what the server tells about itself


class RunManifest(Struct, frozen=True, omit_defaults=True):
    """Everything needed to read a run, and to repeat it."""

    schema_version: int
    run_id: str
    status: RunStatus
    reasons: tuple[str, ...]  # why it is not valid; empty where it is
    created: str  # ISO 8601, UTC
    command: tuple[str, ...]
    arm: str  # name within a sweep; else the target's name
    seed: int
    offered_rate: float | None  # requests per second; None: closed loop
    concurrency: int | None  # closed loop; None: open
    workload: str
    workload_sha256: str  # of its rows as JSONL
    duration_s: float  # of the load
    warmup_s: float
    cooldown_s: float
    elapsed_s: float
    target: TargetFacts
    slo_classes: tuple[str, ...]  # as `--slo-class` writes them
    default_slo_class: str
    client: dict[str, object]  # lateness quantiles and bound, streams at once, versions
    host: dict[str, object]  # processor, cores, memory, kernel; load of others while it ran
    git: dict[str, object]  # commit, dirty; empty outside a checkout
    residency: dict[str, float] = {}  # plan -> share of phase-active time, from the server
    switches: tuple[Switch, ...] = ()
    figures: dict[str, object] = {}  # of the server, that rows do not hold: preemptions, cache hits, joules


class SweepArm(Struct, frozen=True, omit_defaults=True):
    """One way to run the server. `group` is static, shared, chunked, dynamic or peer."""

    name: str
    group: str
    system: str
    flags: tuple[str, ...]


class RecallRecord(Struct, frozen=True, omit_defaults=True):
    """What one arm of a sweep recalled of what stood in its prompts. A question without an answer is not right. Where
    its server did not start, or ended while it was asked, `failure` says so and `asked` is 0."""

    schema_version: int
    arm: str
    model: str  # that was asked: the embedded one, whatever the sweep's own is
    right: int
    asked: int
    pairs: int  # key = value in each prompt
    seed: int  # of the questions
    command: tuple[str, ...]  # of the server
    created: str  # ISO 8601, UTC
    failure: str = ""


class SweepManifest(Struct, frozen=True, omit_defaults=True):
    """What a sweep set out to do; its runs say how far it came."""

    schema_version: int
    created: str
    command: tuple[str, ...]
    arms: tuple[SweepArm, ...]
    rates: tuple[float, ...]
    seeds: tuple[int, ...]
    recipe: dict[str, object]
    slo_classes: tuple[str, ...]
    min_requests: int
    budget_s: float | None
    host: dict[str, object]
    git: dict[str, object]
