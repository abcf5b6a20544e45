"""Replay: feed a log's events to a fresh core at their logged times; the commands must come out byte for byte."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import msgspec

from colocate.core.engine import Engine
from colocate.core.invariants import check_invariants
from colocate.errors import InvariantError
from colocate.telemetry.event_log import LogHeader, LogRecord, read_event_log


@dataclass(frozen=True, slots=True)
class Difference:
    """The first event after which core and log disagree."""

    index: int
    record: LogRecord
    logged: object
    replayed: object


@dataclass(frozen=True, slots=True)
class ReplayResult:
    header: LogHeader
    num_events: int
    num_commands: int
    first_ns: int
    last_ns: int
    difference: Difference | None
    num_torn_bytes: int = 0  # of a last record that a crash cut off; 0 where a difference ended the replay before it


def replay(path: Path, *, check: bool = False) -> ReplayResult:
    """Stops at the first difference. `check` also runs the invariants after every event (slow).

    Raises ConfigError for a file that is no log, InvariantError naming the event where one is found broken.
    """
    header, records = read_event_log(path)
    engine = Engine(header.settings)
    engine.first_commands()
    encode = msgspec.msgpack.Encoder().encode
    num_events = num_commands = first_ns = last_ns = 0
    for index, record in enumerate(records):
        try:
            commands = engine.handle(record.event, record.now_ns)
            if check:
                check_invariants(engine)
        except InvariantError as error:
            raise InvariantError(f"after event {index}, {type(record.event).__name__}: {error}") from error
        num_events += 1
        num_commands += len(commands)
        first_ns = first_ns or record.now_ns
        last_ns = record.now_ns
        replayed = encode(commands)
        if replayed != bytes(record.commands):
            difference = Difference(
                index, record, msgspec.msgpack.decode(record.commands), msgspec.msgpack.decode(replayed)
            )
            return ReplayResult(header, num_events, num_commands, first_ns, last_ns, difference)
    return ReplayResult(header, num_events, num_commands, first_ns, last_ns, None, records.num_torn_bytes)
