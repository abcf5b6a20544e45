"""Which cores this process may use: affinity mask, SMT siblings, cgroup quota."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from colocate.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Topology:
    """`core_ids` are the units of the CPU device, ascending: one logical CPU per physical core, as many as the quota
    feeds. The rest of the affinity mask is in the two lists of what was left out, and why."""

    core_ids: tuple[int, ...]
    smt_siblings: tuple[int, ...] = ()  # share a physical core with one of `core_ids`
    over_quota: tuple[int, ...] = ()  # allowed, but the cgroup gives no time for them
    quota_cores: float | None = None  # CPU seconds per second that the cgroup allows; None: no limit

    def select(self, num_units: int | None) -> tuple[int, ...]:
        """The cores to serve on: all, or the first `num_units`. Raises ConfigError where there are not so many."""
        if num_units is None:
            return self.core_ids
        if not 1 <= num_units <= len(self.core_ids):
            reason = f"this process may use {len(self.core_ids)} core(s): {', '.join(map(str, self.core_ids))}"
            if self.smt_siblings:
                reason += f"; {len(self.smt_siblings)} more are SMT siblings of these"
            if self.over_quota:
                reason += f"; {len(self.over_quota)} more are beyond the cgroup quota of {self.quota_cores:g}"
            raise ConfigError("device.units", f"cannot use {num_units}: {reason}", "ask for fewer, or widen the limit")
        return self.core_ids[:num_units]


def usable_cores(root: Path = Path("/")) -> Topology:
    """Read this process's limits. `root` is where /proc and /sys are looked for."""
    allowed = sorted(os.sched_getaffinity(0))
    cores: list[int] = []
    siblings: list[int] = []
    taken: set[int] = set()
    for cpu in allowed:
        (siblings if cpu in taken else cores).append(cpu)
        taken |= _thread_siblings(root, cpu)
    quota = cpu_quota(root)
    num_fed = len(cores) if quota is None else max(1, min(len(cores), math.floor(quota)))
    return Topology(tuple(cores[:num_fed]), tuple(siblings), tuple(cores[num_fed:]), quota)


def _thread_siblings(root: Path, cpu: int) -> set[int]:
    path = root / f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list"
    try:
        return parse_cpu_list(path.read_text())
    except (OSError, ValueError):
        return {cpu}


def parse_cpu_list(text: str) -> set[int]:
    """The kernel's list format: `0-3,8,10-11`."""
    cpus: set[int] = set()
    for part in text.strip().split(","):
        first, _, last = part.partition("-")
        cpus |= set(range(int(first), int(last or first) + 1))
    return cpus


def cpu_quota(root: Path = Path("/")) -> float | None:
    """Cores' worth of time per second: the tightest limit among this process's cgroup and its ancestors, v2 or v1."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return None
    quotas: list[float] = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            quotas += _quotas_along(root / "sys/fs/cgroup", path, _quota_v2)
        elif "cpu" in controllers.split(","):
            for mount in ("cpu,cpuacct", "cpu"):
                quotas += _quotas_along(root / "sys/fs/cgroup" / mount, path, _quota_v1)
    return min(quotas, default=None)


def _quotas_along(mount: Path, path: str, read: Callable[[Path], float | None]) -> list[float]:
    """Limits of the group and of every group above it. In a container the path may lie outside what is mounted."""
    found: list[float] = []
    group = mount / path.strip("/")
    for directory in (group, *group.parents):
        if directory == mount or mount in directory.parents:
            quota = read(directory)
            if quota is not None:
                found.append(quota)
    return found


def _quota_v2(directory: Path) -> float | None:
    try:
        quota, period = (directory / "cpu.max").read_text().split()
    except (OSError, ValueError):
        return None
    return None if quota == "max" else int(quota) / int(period)


def _quota_v1(directory: Path) -> float | None:
    try:
        quota = int((directory / "cpu.cfs_quota_us").read_text())
        period = int((directory / "cpu.cfs_period_us").read_text())
    except (OSError, ValueError):
        return None
    return None if quota <= 0 else quota / period
