"""`simulate`: one workload through one simulated daemon."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path

from colocate import __version__
from colocate.core.settings import EngineSettings
from colocate.core.snapshot import snapshot
from colocate.errors import ConfigError
from colocate.messages.client import OutputItem, Rejected, Submit
from colocate.messages.sampling import SamplingParams
from colocate.sim.clock import START_NS, VirtualClock
from colocate.sim.records import RequestRecord, SimResult, summarise
from colocate.sim.replica import Answers, Replica
from colocate.sim.settings import SimSettings, engine_settings
from colocate.telemetry.event_log import LOG_VERSION, EventLogWriter, LogHeader
from colocate.types import TokenId
from colocate.workload.prompts import PromptLayout, lay_out, plain_tokens
from colocate.workload.rows import Workload, WorkloadRow


def simulate(workload: Workload, settings: SimSettings, *, event_log: Path | None = None) -> SimResult:
    """Offer the workload to one replica. The same arguments give the same result, and the same bytes in `event_log`.

    Raises ConfigError where the settings cannot be served.
    """
    run = Run(workload.rows, lay_out(workload.rows), settings, [event_log] if event_log is not None else [])
    return run.finish(workload.duration_s)


# Which replica takes the request of this number; the argument is the number of those in flight at each.
Choice = Callable[[int, Sequence[int]], int]


@dataclass(slots=True)
class _Heard:
    """What the client of one request knows."""

    replica: int = 0
    scheduled_ns: int = 0
    first_token_ns: int = 0
    finished_ns: int = 0
    num_cached: int = 0
    num_preemptions: int = 0
    is_over: bool = False
    is_rejected: bool = False


@dataclass(slots=True)
class _Clients:
    """Implements `Clients`: keeps what was heard, and counts what is in flight."""

    heard_of: list[_Heard]
    in_flight: list[int] = field(default_factory=list)
    num_open: int = 0

    def heard(self, item: OutputItem, now_ns: int) -> None:
        heard, times = self.heard_of[item.request_id - 1], item.times
        assert times is not None
        if not heard.first_token_ns:
            heard.first_token_ns = now_ns
            heard.scheduled_ns = times.scheduled_ns
        if item.finish is not None:
            heard.finished_ns = now_ns
            heard.num_cached, heard.num_preemptions = times.num_cached_tokens, times.preemptions
            self._over(heard)

    def refused(self, message: Rejected, now_ns: int) -> None:
        heard = self.heard_of[message.request_id - 1]
        heard.is_rejected = True
        self._over(heard)

    def _over(self, heard: _Heard) -> None:
        heard.is_over = True
        self.in_flight[heard.replica] -= 1
        self.num_open -= 1


class Run:
    """Rows in order of arrival, sent to one or several replicas on one clock."""

    def __init__(
        self,
        rows: Sequence[WorkloadRow],
        layouts: Sequence[PromptLayout],
        settings: SimSettings,
        logs: Sequence[Path],
        replicas: Sequence[int] = (0,),
        choose: Choice | None = None,
    ) -> None:
        """`logs`: none, or one path per replica. `replicas` are their numbers, which make their devices differ."""
        self._rows = rows
        self._layouts = layouts
        self._settings = settings
        self._choose = choose
        self._clock = VirtualClock()
        self._clients = _Clients([_Heard() for _ in rows], [0] * len(replicas), len(rows))
        core = engine_settings(settings)
        self._logs = [_open_log(path, core) for path in logs]
        answers = Answers(self._token_of)
        self._replicas = [
            Replica(self._clock, settings, core, number, answers, self._clients, log)
            for number, log in zip_longest(replicas, self._logs)
        ]

    def finish(self, duration_s: float) -> SimResult:
        """Run to the end and read the figures."""
        settings, clock = self._settings, self._clock
        was_collecting = gc.isenabled()
        gc.disable()  # nothing here makes cycles, and a run allocates a lot
        try:
            clock.at(self._arrival_ns(0), self._arrive, 0)
            clock.run(self._arrival_ns(len(self._rows) - 1) + int(settings.drain_s * 1e9))
        finally:
            if was_collecting:
                gc.enable()
            for log in self._logs:
                log.close()
        records = tuple(self._record(index) for index in range(len(self._rows)))
        summary = summarise(records, duration_s, settings.slo_classes, settings.default_slo_class)
        states = tuple(snapshot(replica.engine, 0) for replica in self._replicas)
        return SimResult(records, states, summary, (clock.now_ns - START_NS) / 1e9)

    def _arrival_ns(self, index: int) -> int:
        return START_NS + int(self._rows[index].arrival_s * 1e9)

    def _arrive(self, index: int) -> None:
        row, clients = self._rows[index], self._clients
        replica = self._choose(index, clients.in_flight) if self._choose is not None else 0
        clients.heard_of[index].replica = replica
        clients.in_flight[replica] += 1
        self._replicas[replica].submit(
            Submit(
                request_id=index + 1,
                prompt_token_ids=plain_tokens(self._layouts[index].pieces),
                params=SamplingParams(max_tokens=row.output_tokens, ignore_eos=True),
                arrival_ns=self._clock.now_ns,
                slo_class=row.slo_class,
            )
        )
        if index + 1 < len(self._rows):
            self._clock.at(self._arrival_ns(index + 1), self._arrive, index + 1)

    def _token_of(self, request_id: int, position: int) -> TokenId:
        return self._layouts[request_id - 1].answer

    def _record(self, index: int) -> RequestRecord:
        row, heard = self._rows[index], self._clients.heard_of[index]
        request = self._replicas[heard.replica].engine.books.requests.get(index + 1)  # unfinished
        num_output_tokens = row.output_tokens if heard.finished_ns else len(request.output_token_ids) if request else 0
        scheduled_ns = heard.scheduled_ns or (request.scheduled_ns if request else 0)
        return RequestRecord(
            request_id=index + 1,
            arrival_s=row.arrival_s,
            prompt_tokens=row.prompt_tokens,
            max_tokens=row.output_tokens,
            slo_class=row.slo_class,
            replica=heard.replica,
            scheduled_s=_seconds(scheduled_ns),
            first_token_s=_seconds(heard.first_token_ns),
            finished_s=_seconds(heard.finished_ns),
            output_tokens=num_output_tokens,
            cached_tokens=heard.num_cached if heard.finished_ns else max(request.first_cached, 0) if request else 0,
            preemptions=request.num_preemptions if request else heard.num_preemptions,
            rejected=heard.is_rejected,
        )


def _seconds(time_ns: int) -> float | None:
    """Since the start of the run; None where it never came."""
    return (time_ns - START_NS) / 1e9 if time_ns else None


def _open_log(path: Path, core: EngineSettings) -> EventLogWriter:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return EventLogWriter(path, LogHeader(LOG_VERSION, __version__, "simulated", 1, core))
    except OSError as error:
        raise ConfigError("event_log", f"cannot write {path}: {error.strerror}", "name a writable file") from None
