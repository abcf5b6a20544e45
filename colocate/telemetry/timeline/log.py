"""An engine's event log as a trace: the events are fed to a fresh core, which says what became of everybody.

The log is read once and nothing of it is kept but what is under way.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import msgspec

from colocate.config.roles import roles_of
from colocate.core.engine import Engine
from colocate.errors import ConfigError
from colocate.telemetry.event_log import LogHeader, LogRecord, LogRecords, read_event_log
from colocate.telemetry.timeline.plans import EngineCounters, PlanTracks
from colocate.telemetry.timeline.requests import RequestLanes
from colocate.telemetry.timeline.trace import TraceWriter
from colocate.telemetry.timeline.workers import WorkerTracks


@dataclass(frozen=True, slots=True)
class LogSummary:
    """What a log held. `num_torn_bytes` of its last record were cut off, as a crash leaves it."""

    num_events: int
    num_requests: int
    num_forwards: int
    num_steps: int
    num_switches: int
    last_ns: int
    num_torn_bytes: int


def log_start_ns(path: Path) -> int | None:
    """When the first event of a log was handled, monotonic; None where it has none. Raises ConfigError."""
    _, records = read_event_log(path)
    first = next(records, None)
    return None if first is None else first.now_ns


def add_log(path: Path, writer: TraceWriter, prefix: str = "") -> LogSummary:
    """Write the whole log. `prefix` stands before the names of its groups of tracks.

    Raises ConfigError where the file is no log, or where this program decides otherwise than the one that wrote it:
    what it would show then has not happened.
    """
    header, records = read_event_log(path)
    return _LogTrace(path, header, writer, prefix).write(records)


class _LogTrace:
    def __init__(self, path: Path, header: LogHeader, writer: TraceWriter, prefix: str) -> None:
        self._path, self._header, self._writer = path, header, writer
        self._engine = Engine(header.settings)
        self._engine.first_commands()
        engine = self._engine
        plans, requests = writer.process(f"{prefix}plans"), writer.process(f"{prefix}requests")
        roles = roles_of(header.settings.mode)
        workers = {role: writer.process(f"{prefix}{role} worker") for role in roles}
        self._plans_pid, self._start_ns = plans, 0
        self._plans: PlanTracks | None = None
        self._requests = RequestLanes(engine, writer, requests)
        self._workers = WorkerTracks(engine, writer, workers)
        self._counters = EngineCounters(engine, writer, writer.process(f"{prefix}engine"))
        self._encode = msgspec.msgpack.Encoder().encode

    def write(self, records: LogRecords) -> LogSummary:
        num_events = last_ns = 0
        for index, record in enumerate(records):
            self._follow(index, record)
            num_events, last_ns = index + 1, record.now_ns
        plans = self._plans
        self._requests.close(last_ns)
        if plans is not None:
            plans.close(last_ns)
        return LogSummary(
            num_events=num_events,
            num_requests=self._requests.num_requests,
            num_forwards=self._workers.num_forwards,
            num_steps=self._workers.num_steps,
            num_switches=0 if plans is None else plans.num_switches,
            last_ns=last_ns,
            num_torn_bytes=records.num_torn_bytes,
        )

    def _follow(self, index: int, record: LogRecord) -> None:
        event, now_ns = record.event, record.now_ns
        if self._plans is None:
            self._plans = PlanTracks(self._engine, self._writer, self._plans_pid, now_ns)
        commands = self._engine.handle(event, now_ns)
        if self._encode(commands) != bytes(record.commands):
            problem = (
                f"at event {index} this program decides otherwise than version {self._header.colocate_version} did"
            )
            raise ConfigError(str(self._path), problem, "use the version that wrote it")
        self._workers.follow(event, commands, now_ns)
        self._requests.follow(event, commands, now_ns)
        self._plans.follow(event, commands, now_ns)
        self._counters.follow(now_ns)
