"""What another policy would have done with the requests of a logged run.

Arrivals, prompts, classes and the tokens answered come from the log; the device is the log's own latency profile. The
logged policy is simulated as well: the difference between that and the log is the simulator's error, and only figures
of the simulator are compared with each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from colocate.config.profile import DeviceProfile, check_profile_fits
from colocate.config.slo import SloClass
from colocate.core.outbox import Command, SetPlanWord
from colocate.core.settings import EngineSettings
from colocate.errors import ConfigError
from colocate.messages.client import Abort, OutputItem, Outputs, Rejected, RequestTimes, Submit
from colocate.sim.load import NO_OWN_TARGETS, OwnTargets
from colocate.sim.records import RequestRecord, SimResult, Summary, itl_p99, summarise
from colocate.sim.run import Run
from colocate.sim.settings import SimSettings
from colocate.telemetry.event_log import LogRecord, read_event_log
from colocate.telemetry.promises import slo_by_name
from colocate.types import FinishReason, RequestId, TokenId


@dataclass(slots=True)
class _Logged:
    """One request of the log."""

    submit: Submit
    tokens: list[TokenId] = field(default_factory=list)  # answered
    times_ns: list[int] = field(default_factory=list)  # of those tokens, as the engine had them
    first: RequestTimes | None = None
    last: RequestTimes | None = None
    is_rejected: bool = False
    is_aborted: bool = False

    @property
    def own_targets(self) -> OwnTargets:
        return OwnTargets(self.submit.ttft_s, self.submit.tpot_s, self.submit.itl_s)


@dataclass(frozen=True, slots=True)
class LoggedRun:
    """What a log tells. `left_out` requests have no answer to repeat: given up, or cut off by the end of the log."""

    settings: EngineSettings
    requests: list[_Logged]
    left_out: int
    num_switches: int
    start_ns: int
    num_torn_bytes: int  # of a last record that a crash cut off

    @property
    def duration_s(self) -> float:
        """From the first arrival to the last, and one mean gap."""
        num = len(self.requests)
        span_s = (self.requests[-1].submit.arrival_ns - self.start_ns) / 1e9
        return span_s * num / (num - 1) if num > 1 and span_s > 0 else max(span_s, 1.0)

    def summary(self) -> Summary:
        """The figures of the run as it was logged."""
        records = [self._record(index, request) for index, request in enumerate(self.requests)]
        return summarise(records, self.duration_s, self.settings.slo_classes, self.settings.default_slo_class)

    def _record(self, index: int, request: _Logged) -> RequestRecord:
        first, last, own = request.first, request.last, request.own_targets
        return RequestRecord(
            request_id=index + 1,
            arrival_s=self._after_start(request.submit.arrival_ns) or 0.0,
            prompt_tokens=len(request.submit.prompt_token_ids),
            max_tokens=len(request.tokens),
            slo_class=request.submit.slo_class,
            scheduled_s=self._after_start(first.scheduled_ns) if first else None,
            first_token_s=self._after_start(first.first_token_ns) if first else None,
            finished_s=self._after_start(last.finished_ns) if last else None,
            output_tokens=len(request.tokens),
            cached_tokens=first.num_cached_tokens if first else 0,
            preemptions=last.preemptions if last else 0,
            itl_p99_s=itl_p99(request.times_ns) if last else None,
            rejected=request.is_rejected,
            slo=self._promised(request.submit.slo_class, own) if own != NO_OWN_TARGETS else None,
        )

    def _promised(self, slo_class: str, own: OwnTargets) -> SloClass:
        slos = slo_by_name(self.settings.slo_classes, self.settings.default_slo_class)
        return slos.get(slo_class, slos[""]).with_targets(*own)

    def _after_start(self, time_ns: int) -> float | None:
        return (time_ns - self.start_ns) / 1e9 if time_ns else None


class LoggedLoad:
    """Implements `Load`: the log's own prompts, and the tokens that were answered, so prefixes are shared as they were.

    A rejected request answers as many tokens as the median answer had: nobody knows what it would have said.
    """

    def __init__(self, run: LoggedRun) -> None:
        self._requests = run.requests
        self._start_ns = run.start_ns
        lengths = sorted(len(request.tokens) for request in run.requests if request.tokens)
        self._median = lengths[len(lengths) // 2]
        self.tokens_vary = True

    @property
    def arrivals_s(self) -> Sequence[float]:
        return [(request.submit.arrival_ns - self._start_ns) / 1e9 for request in self._requests]

    def submit(self, index: int, arrival_ns: int) -> Submit:
        logged = self._requests[index].submit
        params = msgspec.structs.replace(
            logged.params, max_tokens=self._num_tokens(index), ignore_eos=True, stop_token_ids=(), min_tokens=0
        )
        return msgspec.structs.replace(
            logged, request_id=index + 1, params=params, arrival_ns=arrival_ns, output_token_ids=[], resubmitted=False
        )

    def token_of(self, request_id: RequestId, position: int) -> TokenId:
        tokens = self._requests[request_id - 1].tokens
        return tokens[position] if position < len(tokens) else 0

    def lengths(self, index: int) -> tuple[int, int, str]:
        submit = self._requests[index].submit
        return len(submit.prompt_token_ids), self._num_tokens(index), submit.slo_class

    def own_targets(self, index: int) -> OwnTargets:
        return self._requests[index].own_targets

    def _num_tokens(self, index: int) -> int:
        return len(self._requests[index].tokens) or min(self._requests[index].submit.params.max_tokens, self._median)


def read_logged_run(path: Path) -> LoggedRun:
    """Raises ConfigError where the file is no log of this version, or holds no answered request."""
    header, records = read_event_log(path)
    reader = _Reader()
    for record in records:
        reader.read(record)
    requests = reader.requests.values()
    # A client that left after some tokens still cost the device those tokens.
    kept = [each for each in requests if each.is_rejected or (each.tokens and (each.last or each.is_aborted))]
    kept.sort(key=lambda each: each.submit.arrival_ns)
    if not any(each.tokens for each in kept):
        raise ConfigError(str(path), "holds no answered request", "record a longer run with `serve --event-log`")
    start_ns, num_torn_bytes = kept[0].submit.arrival_ns, records.num_torn_bytes
    return LoggedRun(header.settings, kept, len(requests) - len(kept), reader.num_switches, start_ns, num_torn_bytes)


class _Reader:
    """Gathers requests from the records of a log."""

    def __init__(self) -> None:
        self.requests: dict[RequestId, _Logged] = {}
        self.num_switches = 0
        self._decode = msgspec.msgpack.Decoder(list[Command]).decode

    def read(self, record: LogRecord) -> None:
        event = record.event
        if isinstance(event, Submit):
            self.requests.setdefault(event.request_id, _Logged(event, list(event.output_token_ids)))
        elif isinstance(event, Abort):
            self._aborted(event)
        for command in self._decode(record.commands):
            message = command.message
            if isinstance(message, SetPlanWord):
                self.num_switches += 1
            elif isinstance(message, Rejected):
                self.requests[message.request_id].is_rejected = True
            elif isinstance(message, Outputs):
                for item in message.items:
                    self._hear(item, record.now_ns)

    def _aborted(self, event: Abort) -> None:
        for request_id in event.request_ids:
            request = self.requests.get(request_id)
            if request is not None and request.last is None:
                request.is_aborted = True

    def _hear(self, item: OutputItem, now_ns: int) -> None:
        request = self.requests[item.request_id]
        request.tokens += item.token_ids
        request.times_ns += [now_ns] * len(item.token_ids)
        if item.times is None:
            return
        request.first = request.first or item.times
        if item.finish is not None and item.finish != FinishReason.ERROR:
            request.last = item.times


def settings_of(run: LoggedRun, path: Path, profile: DeviceProfile | None = None) -> SimSettings:
    """The logged engine's settings on a simulated device. `profile` must be of the device and model that the log's own
    profile names. Raises ConfigError, also where no profile is known."""
    core, logged = run.settings, run.settings.latency
    if profile is not None:
        device, model = (logged.name, logged.model or None) if logged is not None else (None, None)
        remedy = "give the profile of the logged device and model, or drop --profile"
        check_profile_fits(profile, "--profile", core.total_units, device, model, remedy)
    profile = profile or logged
    if profile is None:
        problem = "its engine had no latency profile, so there is no device to simulate"
        raise ConfigError(str(path), problem, "give one of that device with --profile")
    return SimSettings(
        profile=profile,
        truth_error=0.0,  # the device of this very run is what the profile stands for
        kv_tokens=core.num_blocks * core.block_size,
        **{name: getattr(core, name) for name in SHARED_NAMES},
    )


# Settings that mean the same to the logged engine and to a simulated one.
SHARED_NAMES = (
    "admission",
    "best_static",
    "block_size",
    "candidates",
    "default_slo_class",
    "discipline",
    "guards",
    "max_num_batched_tokens",
    "max_num_seqs",
    "max_queue",
    "max_slice_ms",
    "mode",
    "plan",
    "prefix_caching",
    "shadow",
    "slo_classes",
)


def simulate_logged(run: LoggedRun, settings: SimSettings) -> SimResult:
    """The log's requests under these settings."""
    return Run(LoggedLoad(run), settings).result(run.duration_s)
