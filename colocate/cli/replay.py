"""`colocate replay`: the same events into a fresh core; the commands must come out byte for byte."""

from __future__ import annotations

from pathlib import Path

from colocate.errors import ConfigError, InvariantError
from colocate.runtime.replay import ReplayResult, replay


def run_replay(path: Path, *, check: bool) -> int:
    """0 where every log came out equal, 1 at a difference or, with `check`, a broken invariant. A directory means all
    logs in it."""
    return max([_replay_one(log, check) for log in logs_at(path)])


def logs_at(path: Path) -> list[Path]:
    """The file, or every log of the directory: at least one. Raises ConfigError."""
    remedy = "record one with `colocate serve --event-log DIR`"
    if not path.exists():
        raise ConfigError(str(path), "no such file or directory", remedy)
    logs = sorted(path.glob("*.log")) if path.is_dir() else [path]
    if not logs:
        raise ConfigError(str(path), "holds no event log", remedy)
    return logs


def torn_text(num_bytes: int) -> str:
    """Behind a count of what was read; empty where nothing was cut off."""
    return f"; the last record was cut off, as a crash leaves it: {num_bytes} bytes left out" if num_bytes else ""


def _replay_one(log: Path, check: bool) -> int:
    try:
        result = replay(log, check=check)
    except InvariantError as error:
        print(f"{log}: BROKEN {error}")
        return 1
    span_s = (result.last_ns - result.first_ns) / 1e9
    counts = f"{result.num_events} events, {result.num_commands} commands over {span_s:.1f} s"
    if result.difference is None:
        held = ", every invariant held" if check else ""
        print(f"{log}: equal ({counts}){held}{torn_text(result.num_torn_bytes)}")
        return 0
    _show_difference(log, result)
    return 1


def _show_difference(log: Path, result: ReplayResult) -> None:
    difference = result.difference
    assert difference is not None
    print(f"{log}: DIFFERENT at event {difference.index}; version {result.header.colocate_version} wrote it")
    print(f"  event    {difference.record.event}")
    print(f"  logged   {difference.logged}")
    print(f"  replayed {difference.replayed}")
