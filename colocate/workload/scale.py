"""The same load faster, slower, shorter, offered at another rate, or divided into SLO classes."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping

import msgspec

from colocate.errors import ConfigError
from colocate.workload.rows import Workload, make_workload


def at_speed(workload: Workload, speed: float) -> Workload:
    """Time runs `speed` times as fast. Raises ConfigError."""
    if not (math.isfinite(speed) and speed > 0):
        raise ConfigError("speed", f"cannot be {speed}", "1 is as recorded, 2 twice as fast")
    if speed == 1:
        return workload
    replace = msgspec.structs.replace
    rows = [replace(row, arrival_s=row.arrival_s / speed) for row in workload.rows]
    return make_workload(workload.name, rows, workload.duration_s / speed)


def at_rate(workload: Workload, rate: float) -> Workload:
    """The same order and burstiness at `rate` requests per second on average. Raises ConfigError."""
    if not (math.isfinite(rate) and rate > 0):
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


def with_classes(workload: Workload, classes: Mapping[str, float], seed: int = 0) -> Workload:
    """Give every request one of these SLO classes, drawn by weight; a conversation keeps its own. One class with any
    weight is everybody's. Raises ConfigError."""
    for name, weight in classes.items():
        if not name or not (math.isfinite(weight) and weight > 0):
            raise ConfigError("--slo-class", f"{name!r} has weight {weight:g}", "write NAME, or NAME=WEIGHT above 0")
    rng = random.Random(f"{seed}/classes")
    names, weights = list(classes), list(classes.values())
    of_session: dict[str, str] = {}
    rows = []
    for row in workload.rows:
        drawn = rng.choices(names, weights)[0]
        name = of_session.setdefault(row.session, drawn) if row.session else drawn
        rows.append(msgspec.structs.replace(row, slo_class=name))
    return make_workload(workload.name, rows, workload.duration_s)
