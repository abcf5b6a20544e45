"""A share of CPU cores: the affinity of every thread of this process.

The number of intra-op threads follows the share too; that is the executor's part (`units_changed`).
"""

from __future__ import annotations

import os
from pathlib import Path

from colocate.errors import ConfigError

_TASKS = Path("/proc/self/task")
_MAX_PASSES = 8


class CpuPartition:
    """Implements `device.partition.Partition`: unit i is core `core_ids[i]`.

    An empty share leaves the affinity as it is: nothing is launched, and the loop's own polling stays off the cores
    that it never had.
    """

    def __init__(self, core_ids: tuple[int, ...]) -> None:
        allowed = os.sched_getaffinity(0)
        missing = [core for core in core_ids if core not in allowed]
        if missing or not core_ids:
            raise ConfigError(
                "device.units",
                f"this process may not use core(s) {missing}; allowed are {sorted(allowed)}",
                "start with a wider affinity mask (taskset, cpuset) or fewer units",
            )
        self._core_ids = core_ids
        self._unit_of = {core: unit for unit, core in enumerate(core_ids)}
        self._is_empty = True

    @property
    def total_units(self) -> int:
        return len(self._core_ids)

    def apply(self, units: tuple[int, ...]) -> None:
        self._is_empty = not units
        if self._is_empty:
            return
        cores = {self._core_ids[unit] for unit in units}
        # A thread started meanwhile inherits its creator's mask, which may be the old one: look until none is new.
        done: set[int] = set()
        for _ in range(_MAX_PASSES):
            fresh = _thread_ids() - done
            if not fresh:
                return
            for thread_id in fresh:
                _confine(thread_id, cores)
            done |= fresh

    def settled(self) -> bool:
        """Always: `apply` is called between two pieces of work."""
        return True

    def realised(self) -> tuple[int, ...]:
        """Units that any thread of this process may run on; () under an empty share."""
        if self._is_empty:
            return ()
        cores: set[int] = set()
        for thread_id in _thread_ids():
            try:
                cores |= os.sched_getaffinity(thread_id)
            except ProcessLookupError:
                continue
        return tuple(sorted(self._unit_of.get(core, -1) for core in cores))


def _thread_ids() -> set[int]:
    return {int(name) for name in os.listdir(_TASKS)}  # noqa: PTH208 - names only, on the switching path


def _confine(thread_id: int, cores: set[int]) -> None:
    try:
        os.sched_setaffinity(thread_id, cores)
    except ProcessLookupError:
        return  # the thread ended meanwhile
    except OSError as error:
        raise ConfigError(
            "device.units", f"cannot confine this process to cores {sorted(cores)}: {error.strerror}", "check cpusets"
        ) from None
