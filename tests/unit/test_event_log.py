"""The event log is read back as it was written, by us and by any MessagePack reader; replay reproduces the commands."""

from __future__ import annotations

import re
from pathlib import Path

import msgpack
import msgspec
import pytest

from colocate.cli.replay import run_replay
from colocate.core.blocks import BlockPool
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


def test_the_check_holds_the_invariants_and_names_the_event(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "log"
    write_log(path)
    assert run_replay(path, check=False) == 0
    assert "cut off" not in (told := capsys.readouterr().out) and "invariant" not in told
    assert run_replay(path, check=True) == 0
    assert "every invariant held" in capsys.readouterr().out
    share = BlockPool.share
    monkeypatch.setattr(BlockPool, "share", lambda pool, blocks: share(pool, [*blocks, *blocks]))  # a leak
    assert run_replay(path, check=True) == 1
    assert re.search(r"BROKEN after event \d+, \w+: block \d+ counts \d holders", capsys.readouterr().out)


def test_a_changed_log_is_told_apart(tmp_path: Path) -> None:
    path = tmp_path / "log"
    write_log(path)
    header, read = read_event_log(path)
    records = list(read)
    writer = EventLogWriter(
        path, msgspec.structs.replace(header, settings=msgspec.structs.replace(SETTINGS, max_num_seqs=1))
    )
    for record in records:
        writer.record(record.now_ns, record.event, msgspec.msgpack.decode(record.commands, type=list[Command]))
    writer.close()
    result = replay(path)
    assert result.difference is not None
    assert result.difference.logged != result.difference.replayed


def test_a_torn_tail_ends_the_log_and_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "log"
    num_events = write_log(path)
    _, records = read_event_log(path)
    last = list(records)[-1]
    frame = 5 + len(msgspec.msgpack.encode(last))
    path.write_bytes(path.read_bytes()[:-3])
    result = replay(path)
    assert result.difference is None
    assert result.num_events == num_events - 1
    assert result.num_torn_bytes == frame - 3
    assert run_replay(path, check=False) == 0
    assert f"the last record was cut off, as a crash leaves it: {frame - 3} bytes" in capsys.readouterr().out


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
    with pytest.raises(ConfigError, match="cannot read") as refused:
        replay(tmp_path / "missing")
    assert refused.value.remedy
    with pytest.raises(ConfigError, match="no such file or directory"):
        run_replay(tmp_path / "missing", check=False)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="holds no event log"):
        run_replay(tmp_path / "empty", check=False)
    write_log(tmp_path / "old", version=99)
    with pytest.raises(ConfigError, match="log version 99"):
        replay(tmp_path / "old")
