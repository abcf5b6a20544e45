"""The same load faster, slower, shorter, or offered at another rate."""

from __future__ import annotations

import msgspec

from colocate.errors import ConfigError
from colocate.workload.rows import Workload, make_workload


def at_speed(workload: Workload, speed: float) -> Workload:
    """Time runs `speed` times as fast. Raises ConfigError."""
    if not speed > 0:
        raise ConfigError("speed", f"cannot be {speed}", "1 is as recorded, 2 twice as fast")
    replace = msgspec.structs.replace
    rows = [replace(row, arrival_s=row.arrival_s / speed) for row in workload.rows]
    return make_workload(workload.name, rows, workload.duration_s / speed)


def at_rate(workload: Workload, rate: float) -> Workload:
    """The same order and burstiness at `rate` requests per second on average. Raises ConfigError."""
    if not rate > 0:
        raise ConfigError("rate", f"cannot be {rate}", "requests per second, above 0")
    return at_speed(workload, rate / workload.rate)


def first_seconds(workload: Workload, duration_s: float) -> Workload:
    """What arrives before `duration_s`. Raises ConfigError where nothing does."""
    if duration_s >= workload.duration_s:
        return workload
    rows = [row for row in workload.rows if row.arrival_s < duration_s]
    if not rows:
        raise ConfigError("duration", f"nothing of {workload.name} arrives before {duration_s} s", "take longer")
    return make_workload(workload.name, rows, duration_s)
