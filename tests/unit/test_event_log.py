"""The event log is read back as it was written, by us and by any MessagePack reader; replay reproduces the commands."""

from __future__ import annotations

from pathlib import Path

import msgpack
import msgspec
import pytest

from colocate.core.outbox import Command
from colocate.core.settings import EngineSettings
from colocate.errors import ConfigError
from colocate.runtime.replay import replay
from colocate.telemetry.event_log import LOG_VERSION, EventLogWriter, LogHeader, read_event_log
from colocate.types import Role
from tests.property.engine_world import World

SETTINGS = EngineSettings(
    num_blocks=12, block_size=4, max_num_seqs=4, max_num_batched_tokens=8, max_queue=8, total_units=2
)


def write_log(path: Path, version: int = LOG_VERSION) -> int:
    """A run with a killed worker and a preemption; returns how many events it logged."""
    writer = EventLogWriter(path, LogHeader(version, "0", "run", 1, SETTINGS))
    world = World(SETTINGS)
    handle, num_events = world.engine.handle, 0

    def logged(event, now_ns):  # type: ignore[no-untyped-def]
        nonlocal num_events
        num_events += 1
        commands = handle(event, now_ns)
        writer.record(now_ns, event, commands)
        return commands

    world.engine.handle = logged  # type: ignore[method-assign]
    world.start(Role.PREFILL)
    world.start(Role.DECODE)
    for _ in range(4):
        world.submit(5, 14)
    for _ in range(6):
        world.prefill_read()
        world.prefill_run()
        world.decode_turn()
    world.kill(Role.DECODE)
    world.run_until_quiet()
    world.check_end()
    writer.close()
    return num_events


def test_replay_reproduces_every_command(tmp_path: Path) -> None:
    num_events = write_log(tmp_path / "log")
    result = replay(tmp_path / "log", check=True)
    assert result.difference is None
    assert result.num_events == num_events
    assert result.num_commands > num_events


def test_a_changed_log_is_told_apart(tmp_path: Path) -> None:
    path = tmp_path / "log"
    write_log(path)
    header, records = read_event_log(path)
    writer = EventLogWriter(
        path, msgspec.structs.replace(header, settings=msgspec.structs.replace(SETTINGS, max_num_seqs=1))
    )
    for record in list(records):
        writer.record(record.now_ns, record.event, msgspec.msgpack.decode(record.commands, type=list[Command]))
    writer.close()
    result = replay(path)
    assert result.difference is not None
    assert result.difference.logged != result.difference.replayed


def test_a_torn_tail_ends_the_log(tmp_path: Path) -> None:
    path = tmp_path / "log"
    num_events = write_log(path)
    path.write_bytes(path.read_bytes()[:-3])
    result = replay(path)
    assert result.difference is None
    assert result.num_events == num_events - 1


def test_any_messagepack_reader_can_walk_the_log(tmp_path: Path) -> None:
    path = tmp_path / "log"
    num_events = write_log(path)
    with path.open("rb") as file:
        values = [msgpack.unpackb(frame) for frame in msgpack.Unpacker(file)]
    assert values[0]["version"] == LOG_VERSION
    assert len(values) == num_events + 1
    assert {record[1]["type"] for record in values[1:]} >= {"Submit", "PrefillDone", "StepReport", "WorkerGone"}


def test_refusals_name_the_file_and_the_remedy(tmp_path: Path) -> None:
    junk = tmp_path / "junk"
    junk.write_bytes(b"not a log")
    with pytest.raises(ConfigError, match="not an event log"):
        replay(junk)
    with pytest.raises(ConfigError, match="cannot read"):
        replay(tmp_path / "missing")
    write_log(tmp_path / "old", version=99)
    with pytest.raises(ConfigError, match="log version 99"):
        replay(tmp_path / "old")
