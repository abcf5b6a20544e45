"""`simulate`: one workload through one simulated daemon; and `Run`, the same with several on one clock."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path

from colocate import __version__
from colocate.config.slo import SloClass
from colocate.core.settings import EngineSettings
from colocate.core.snapshot import snapshot
from colocate.errors import ConfigError
from colocate.messages.client import EngineState, OutputItem, Rejected
from colocate.sim.clock import START_NS, VirtualClock
from colocate.sim.give_up import GiveUp
from colocate.sim.load import NO_OWN_TARGETS, Load, WorkloadLoad
from colocate.sim.records import RequestRecord, SimResult, itl_p99, summarise
from colocate.sim.replica import Replica
from colocate.sim.settings import SimSettings, engine_settings
from colocate.telemetry.event_log import LOG_VERSION, EventLogWriter, LogHeader
from colocate.telemetry.promises import slo_by_name
from colocate.workload.prompts import lay_out
from colocate.workload.rows import Workload

# Which replica takes the request at this index, by how many are in flight at each.
Choice = Callable[[int, Sequence[int]], int]


def simulate(
    workload: Workload, settings: SimSettings, *, event_log: Path | None = None, most_misses: int | None = None
) -> SimResult:
    """Offer the workload to one replica. The same arguments give the same result, and the same bytes in `event_log`.

    With `most_misses` the run ends once more requests than that have missed their SLO; what was not served by then
    counts as a miss. Raises ConfigError where the settings cannot be served.
    """
    load = WorkloadLoad(workload.rows, lay_out(workload.rows))
    run = Run(load, settings, logs=[event_log] if event_log is not None else [])
    if most_misses is not None:
        run.give_up_after(most_misses)
    return run.result(workload.duration_s)


@dataclass(slots=True)
class _Heard:
    """What the client of one request knows."""

    replica: int = 0
    scheduled_ns: int = 0
    first_token_ns: int = 0
    finished_ns: int = 0
    num_cached: int = 0
    num_preemptions: int = 0
    is_rejected: bool = False
    itl_p99_s: float | None = None
    prefilled_ns: list[int] = field(default_factory=list)  # tokens that prefill made: the first, one per preemption


@dataclass(slots=True)
class _Clients:
    """Implements `Clients`: keeps what was heard, and counts what is in flight."""

    heard_of: list[_Heard]
    num_open: int
    in_flight: list[int] = field(default_factory=list)
    give_up: GiveUp | None = None
    arrivals_s: Sequence[float] = ()
    num_output_tokens: Sequence[int] = ()
    itl_of: Callable[[int], float | None] = lambda index: None

    def heard(self, item: OutputItem, now_ns: int) -> None:
        heard, times = self.heard_of[item.request_id - 1], item.times
        assert times is not None
        if not heard.first_token_ns:
            heard.first_token_ns = now_ns
            heard.scheduled_ns = times.scheduled_ns
            if self.give_up is not None:
                index = item.request_id - 1
                self.give_up.first_token(index, (now_ns - START_NS) / 1e9 - self.arrivals_s[index])
        if item.finish is None:
            heard.prefilled_ns.append(now_ns)
        else:
            heard.finished_ns = now_ns
            heard.num_cached, heard.num_preemptions = times.num_cached_tokens, times.preemptions
            self._over(heard)
            if self.give_up is not None:
                self._judge(item.request_id - 1, heard, self.give_up)

    def _judge(self, index: int, heard: _Heard, give_up: GiveUp) -> None:
        ttft_s = (heard.first_token_ns - START_NS) / 1e9 - self.arrivals_s[index]
        num_gaps = self.num_output_tokens[index] - 1
        heard.itl_p99_s = self.itl_of(index)
        tpot_s = (heard.finished_ns - heard.first_token_ns) / 1e9 / num_gaps if num_gaps > 0 else None
        give_up.finished(index, ttft_s, tpot_s, heard.itl_p99_s)

    def refused(self, message: Rejected) -> None:
        heard = self.heard_of[message.request_id - 1]
        heard.is_rejected = True
        self._over(heard)
        if self.give_up is not None:
            self.give_up.missed()

    def _over(self, heard: _Heard) -> None:
        self.in_flight[heard.replica] -= 1
        self.num_open -= 1


class Run:
    """One load, sent to one or several replicas on one clock. Used once."""

    def __init__(
        self,
        load: Load,
        settings: SimSettings,
        *,
        logs: Sequence[Path] = (),
        replicas: Sequence[int] = (0,),
        choose: Choice | None = None,
    ) -> None:
        """`logs`: none, or one path per replica. `replicas` are their numbers, by which their devices differ."""
        self._load = load
        self._arrivals_s = load.arrivals_s
        self._settings = settings
        self._choose = choose
        self._clock = VirtualClock()
        num_offered = len(self._arrivals_s)
        self._slos = slo_by_name(settings.slo_classes, settings.default_slo_class)
        self._clients = _Clients([_Heard() for _ in range(num_offered)], num_offered, [0] * len(replicas))
        core = engine_settings(settings)
        self._logs = [_open_log(path, core) for path in logs]
        self._replicas = [
            Replica(self._clock, settings, core, number, load, self._clients, log)
            for number, log in zip_longest(replicas, self._logs)
        ]

    def give_up_after(self, most_misses: int) -> None:
        """End the run once more requests than that have missed their SLO."""
        lengths = [self._load.lengths(index) for index in range(len(self._arrivals_s))]
        classes = [self._promised(index) for index in range(len(lengths))]
        clients = self._clients
        clients.arrivals_s = self._arrivals_s
        clients.num_output_tokens = [num_output_tokens for _, num_output_tokens, _ in lengths]
        prompt_tokens = [num_prompt_tokens for num_prompt_tokens, _, _ in lengths]
        clients.itl_of = self._itl_p99_s
        clients.give_up = GiveUp(most_misses, classes, prompt_tokens, self._clock.stop)

    def result(self, duration_s: float) -> SimResult:
        """Run to the end and read the figures."""
        records, states = self.play(self._arrivals_s[-1])
        classes, default = self._settings.slo_classes, self._settings.default_slo_class
        return SimResult(records, states, summarise(records, duration_s, classes, default), self.elapsed_s)

    def play(self, last_arrival_s: float) -> tuple[tuple[RequestRecord, ...], tuple[EngineState, ...]]:
        """Until every request has ended, or `drain_s` after the last arrival."""
        was_collecting = gc.isenabled()
        gc.disable()  # a run allocates a lot and makes no cycles
        try:
            self._clock.at(self._arrival_ns(0), self._arrive, 0)
            self._clock.run(START_NS + int((last_arrival_s + self._settings.drain_s) * 1e9))
        finally:
            if was_collecting:
                gc.enable()
            for log in self._logs:
                log.close()
        records = tuple(self._record(index) for index in range(len(self._arrivals_s)))
        return records, tuple(snapshot(replica.engine, 0) for replica in self._replicas)

    @property
    def elapsed_s(self) -> float:
        """Virtual seconds so far."""
        return (self._clock.now_ns - START_NS) / 1e9

    def _arrival_ns(self, index: int) -> int:
        return START_NS + int(self._arrivals_s[index] * 1e9)

    def _arrive(self, index: int) -> None:
        clients = self._clients
        replica = self._choose(index, clients.in_flight) if self._choose is not None else 0
        clients.heard_of[index].replica = replica
        clients.in_flight[replica] += 1
        self._replicas[replica].submit(self._load.submit(index, self._clock.now_ns))
        if index + 1 < len(self._arrivals_s):
            self._clock.at(self._arrival_ns(index + 1), self._arrive, index + 1)

    def _promised(self, index: int) -> SloClass:
        _, _, slo_class = self._load.lengths(index)
        slo = self._slos.get(slo_class, self._slos[""])
        return slo.with_targets(*self._load.own_targets(index))

    def _record(self, index: int) -> RequestRecord:
        heard = self._clients.heard_of[index]
        prompt_tokens, max_tokens, slo_class = self._load.lengths(index)
        request = self._replicas[heard.replica].engine.books.requests.get(index + 1)  # where it has not ended
        return RequestRecord(
            request_id=index + 1,
            arrival_s=self._arrivals_s[index],
            prompt_tokens=prompt_tokens,
            max_tokens=max_tokens,
            slo_class=slo_class,
            replica=heard.replica,
            scheduled_s=_seconds(request.scheduled_ns if request is not None else heard.scheduled_ns),
            first_token_s=_seconds(heard.first_token_ns),
            finished_s=_seconds(heard.finished_ns),
            output_tokens=max_tokens if heard.finished_ns else len(request.output_token_ids) if request else 0,
            cached_tokens=max(request.first_cached, 0) if request is not None else heard.num_cached,
            preemptions=request.num_preemptions if request is not None else heard.num_preemptions,
            itl_p99_s=self._itl_p99_s(index),
            rejected=heard.is_rejected,
            slo=self._promised(index) if self._load.own_targets(index) != NO_OWN_TARGETS else None,
        )

    def _itl_p99_s(self, index: int) -> float | None:
        """Known once the request has ended. Every token takes the same way to the client, so its times are the worker's
        own; those that prefill made were heard one message later."""
        heard = self._clients.heard_of[index]
        if not heard.finished_ns or heard.itl_p99_s is not None:
            return heard.itl_p99_s
        message_ns = int(self._settings.message_s * 1e9)
        by_prefill_ns = [heard_ns - message_ns for heard_ns in heard.prefilled_ns]
        by_decode_ns = self._replicas[heard.replica].rows.token_times_ns(index + 1)
        heard.itl_p99_s = itl_p99(sorted(by_prefill_ns + by_decode_ns))
        return heard.itl_p99_s


def _seconds(time_ns: int) -> float | None:
    """After the start of the run; None where it never came."""
    return (time_ns - START_NS) / 1e9 if time_ns else None


def _open_log(path: Path, core: EngineSettings) -> EventLogWriter:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return EventLogWriter(path, LogHeader(LOG_VERSION, __version__, "simulated", 1, core))
    except OSError as error:
        raise ConfigError("event_log", f"cannot write {path}: {error.strerror}", "name a writable file") from None
