"""`colocate replay`: the same events into a fresh core; the commands must come out byte for byte."""

from __future__ import annotations

from pathlib import Path

from colocate.errors import ConfigError
from colocate.runtime.replay import ReplayResult, replay


def run_replay(path: Path) -> int:
    """0 where every log came out equal, 1 at a difference. A directory means all logs in it."""
    logs = sorted(path.glob("*.log")) if path.is_dir() else [path]
    if not logs or not path.exists():
        raise ConfigError(str(path), "holds no event log", "record one with `colocate serve --event-log DIR`")
    return max([_replay_one(log) for log in logs])


def _replay_one(log: Path) -> int:
    result = replay(log)
    span_s = (result.last_ns - result.first_ns) / 1e9
    counts = f"{result.num_events} events, {result.num_commands} commands over {span_s:.1f} s"
    if result.difference is None:
        print(f"{log}: equal ({counts})")
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
