"""How much processor time a live run took, and who took it: an emulated device is only as good as its host is idle."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field

import psutil


@dataclass
class HostWatch:
    """From `start` to `stop`, for a daemon and for this process, which is its client."""

    pid: int  # of the daemon's supervisor
    _before: dict[str, float] = field(default_factory=dict)
    _started_s: float = 0.0

    def start(self) -> None:
        self._before, self._started_s = self._seconds(), time.perf_counter()

    def stop(self) -> dict[str, float]:
        """Cores in use on average, by process; `others` is everything on the machine that is none of ours."""
        elapsed_s = time.perf_counter() - self._started_s
        after = self._seconds()
        used = {name: (after[name] - self._before.get(name, 0.0)) / elapsed_s for name in after}
        used["others"] = max(0.0, used.pop("machine") - sum(used[name] for name in used if name != "machine"))
        return {name: round(cores, 3) for name, cores in used.items()}

    def _seconds(self) -> dict[str, float]:
        machine = psutil.cpu_times()
        seconds = {
            "machine": machine.user + machine.system + machine.nice + machine.irq + machine.softirq + machine.steal,
            "client": time.process_time(),
        }
        daemon = psutil.Process(self.pid)
        for process in (daemon, *daemon.children(recursive=True)):
            times = process.cpu_times()
            name = _role(process.cmdline())
            seconds[name] = seconds.get(name, 0.0) + times.user + times.system
        return seconds


def _role(words: list[str]) -> str:
    """`colocate:engine` of a titled process, `... colocate.launch engine` of one without a title."""
    if words and words[0].startswith("colocate:"):
        return words[0].removeprefix("colocate:").split()[0]
    if "colocate.launch" in words:
        return words[words.index("colocate.launch") + 1]
    return "supervisor"


def num_cores() -> int:
    return len(os.sched_getaffinity(0))
