"""What other programs take of the cores while we measure: a visit beside a compiler says little by itself.

Two measures: the share of the cores' time that was not ours, and how long a worker was ready to run and had no core.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path


class ForeignLoad:
    """Processor time on `core_ids` that is not of `pids`, as the kernel counts it: in ticks for the cores, so a lap
    shorter than a few of them is coarse."""

    def __init__(self, core_ids: Iterable[int], pids: Iterable[int]) -> None:
        self._core_names = {f"cpu{core}" for core in core_ids}
        self._pids = tuple(pids)
        self._tick_s = 1 / os.sysconf("SC_CLK_TCK")
        self._last = self._read()

    def lap(self) -> float:
        """Share of the cores' time that went to others since the last call, 0 to 1. 0 where the kernel does not say."""
        busy_s, own_s, now_s = self._read()
        last_busy_s, last_own_s, last_s = self._last
        self._last = busy_s, own_s, now_s
        offered_s = (now_s - last_s) * len(self._core_names)
        foreign_s = (busy_s - last_busy_s) - (own_s - last_own_s)
        return max(0.0, min(1.0, foreign_s / offered_s)) if offered_s > 0 else 0.0

    def _read(self) -> tuple[float, float, float]:
        try:
            return self._busy_s(), sum(map(_cpu_s, self._pids)), time.monotonic()
        except (OSError, ValueError):
            return 0.0, 0.0, time.monotonic()

    def _busy_s(self) -> float:
        """Of the cores together: everything but idle and waiting for disks (proc(5), /proc/stat)."""
        busy_ticks = 0
        for line in Path("/proc/stat").read_text().splitlines():
            name, *fields = line.split()
            if name in self._core_names:
                user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, fields[:8])
                busy_ticks += user + nice + system + irq + softirq + steal
        return busy_ticks * self._tick_s


class WaitingTime:
    """How long a process waited for a core, by the scheduler's own count (Documentation/scheduler/sched-stats.rst)."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._last = self._read()

    def lap(self) -> float:
        """Seconds since the last call, of the thread that waited longest: the others wait for it at the next barrier.
        0 where the kernel does not say."""
        last, self._last = self._last, self._read()
        return max((waited - last.get(thread, waited) for thread, waited in self._last.items()), default=0.0)

    def _read(self) -> dict[str, float]:
        try:
            return {thread: waited_ns / 1e9 for thread, _, waited_ns in _schedstats(self._pid)}
        except (OSError, ValueError):
            return {}


def _cpu_s(pid: int) -> float:
    """Of all threads of a process, in nanoseconds where the kernel keeps them."""
    return sum(run_ns for _, run_ns, _ in _schedstats(pid)) / 1e9


def _schedstats(pid: int) -> Iterator[tuple[str, int, int]]:
    """(thread, nanoseconds it ran, nanoseconds it waited to run) of every thread."""
    for task in Path(f"/proc/{pid}/task").iterdir():
        run_ns, waited_ns, _slices = (task / "schedstat").read_text().split()
        yield task.name, int(run_ns), int(waited_ns)
