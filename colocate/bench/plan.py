"""What one run of `colocate bench` is asked to do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from colocate.errors import ConfigError
from colocate.workload.rows import Workload

Endpoint = Literal["completions", "chat"]
PromptKind = Literal["auto", "ids", "text"]

LATENESS_BOUND_S = 0.010
TIMEOUT_S = 600.0
DRAIN_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchPlan:
    """One run against one server that is ready.

    Open loop (`concurrency` is None): every row is sent at its `arrival_s`, whatever became of the others. Closed loop:
    so many requests are in flight until `workload.duration_s` is over or the rows have run out; arrivals are ignored.
    A turn of a session waits for the answer to the turn before, in both.

    `workload.duration_s` is the whole load: warm-up, measured part and cool-down.
    """

    url: str  # http://host:port, with or without /v1
    workload: Workload
    out: Path  # the run folder; made, and must not hold a run already
    api_key: str | None = None
    model: str | None = None  # None: the first one the server offers
    system: str = ""  # what the server is, where the caller started it; empty: found out by asking
    endpoint: Endpoint = "completions"
    seed: int = 0  # of the prompts' tokens
    rate: float | None = None  # for the manifest; None: the workload's own
    concurrency: int | None = None
    warmup_s: float = 0.0
    cooldown_s: float = 0.0
    timeout_s: float = TIMEOUT_S  # of one request, from when it was sent
    drain_s: float = DRAIN_S  # after the load: what is unfinished then is cut off
    lateness_bound_s: float = LATENESS_BOUND_S  # of the 99th percentile of sent - scheduled
    slo_classes: tuple[str, ...] = ()  # as `--slo-class` writes them
    default_slo_class: str = ""
    arm: str = ""  # empty: the target's system
    keep_token_ids: bool = False
    extra_body: Mapping[str, object] = field(default_factory=dict)  # laid over every request's body
    headers: Mapping[str, str] = field(default_factory=dict)
    prompts: PromptKind = "auto"
    tokenizer: Path | None = None  # the target's, for text of an exact token count; None: ask the server
    sample_s: float = 1.0  # between two looks at the server
    command: tuple[str, ...] = ()  # that asked for this run
    server_command: tuple[str, ...] = ()  # where this run's server was started for it

    def __post_init__(self) -> None:
        around_s = self.warmup_s + self.cooldown_s
        if not (self.warmup_s >= 0 and self.cooldown_s >= 0 and around_s < self.workload.duration_s):
            problem = f"leave nothing to measure of a load of {self.workload.duration_s:g} s"
            raise ConfigError("--warmup, --cooldown", problem, "make the load longer, or them shorter")
        if self.concurrency is not None and self.concurrency < 1:
            raise ConfigError("--concurrency", f"cannot be {self.concurrency}", "at least 1")
        for flag, value in (("--timeout", self.timeout_s), ("--lateness-bound", self.lateness_bound_s)):
            if not value > 0:
                raise ConfigError(flag, f"cannot be {value:g}", "seconds, above 0")
        if not self.drain_s >= 0:
            raise ConfigError("--drain", f"cannot be {self.drain_s:g}", "seconds, 0 or more")
