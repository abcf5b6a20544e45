"""Synthetic loads: segments of time, each with its own rate and lengths, one seeded stream of arrivals through all.

Arrivals are drawn in operational time: gaps of mean 1 (constant, exponential, or gamma), carried to seconds through the
inverse of the integrated rate. So burstiness keeps its meaning on ramps and across phase changes.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from colocate.errors import ConfigError
from colocate.workload.lengths import Lengths
from colocate.workload.rows import Workload, WorkloadRow, make_workload

ARRIVALS_HELP = "constant, poisson, or gamma:CV with the coefficient of variation of the gaps"


@dataclass(frozen=True, slots=True)
class Segment:
    """`duration_s` of requests at `rate` per second, going linearly to `end_rate` where that is given."""

    duration_s: float
    rate: float
    lengths: Lengths
    end_rate: float | None = None

    @property
    def num_expected(self) -> float:
        """Mean number of arrivals."""
        return self.duration_s * (self.rate + self.last_rate) / 2

    @property
    def last_rate(self) -> float:
        return self.rate if self.end_rate is None else self.end_rate

    def time_of(self, num_arrived: float) -> float:
        """Seconds into the segment at which `num_arrived` of its expected arrivals have come."""
        slope = (self.last_rate - self.rate) / self.duration_s
        if slope == 0.0:
            return num_arrived / self.rate
        return (math.sqrt(max(self.rate**2 + 2 * slope * num_arrived, 0.0)) - self.rate) / slope


def synthetic(
    name: str,
    segments: Sequence[Segment],
    *,
    seed: int,
    arrivals: str = "poisson",
    classes: Mapping[str, float] | None = None,
) -> Workload:
    """One workload of consecutive segments. `classes` are SLO classes and their weights. Raises ConfigError."""
    rng = random.Random(f"{seed}/lengths")
    names, weights = list(classes or {}), list((classes or {}).values())
    rows = [
        WorkloadRow(arrival_s, *segment.lengths.draw(rng), slo_class=rng.choices(names, weights)[0] if names else "")
        for arrival_s, segment in arrival_times(name, segments, seed=seed, arrivals=arrivals)
    ]
    return make_workload(name, rows, sum(segment.duration_s for segment in segments))


def arrival_times(
    name: str, segments: Sequence[Segment], *, seed: int, arrivals: str = "poisson"
) -> Iterator[tuple[float, Segment]]:
    """Every arrival in order, with the segment it falls into. Raises ConfigError."""
    gaps = _gaps(arrivals, random.Random(f"{seed}/arrivals"))
    start_s, owed = 0.0, next(gaps)  # `owed`: operational time until the next arrival
    for segment in segments:
        if segment.duration_s <= 0 or min(segment.rate, segment.last_rate) < 0 or segment.num_expected <= 0:
            raise ConfigError("rate", f"{name} has a part without arrivals", "rates and durations must be above 0")
        while owed <= segment.num_expected:
            yield start_s + segment.time_of(owed), segment
            owed += next(gaps)
        owed -= segment.num_expected
        start_s += segment.duration_s


def phase_shifting(
    rates: tuple[float, float], lengths: tuple[Lengths, Lengths], period_s: float, duration_s: float
) -> list[Segment]:
    """Two kinds of load that take turns, each for half a period: prompt-heavy, then answer-heavy."""
    segments: list[Segment] = []
    elapsed_s = 0.0
    while elapsed_s < duration_s:
        part_s = min(period_s / 2, duration_s - elapsed_s)
        which = len(segments) % 2
        segments.append(Segment(part_s, rates[which], lengths[which]))
        elapsed_s += part_s
    return segments


def ramp(from_rate: float, to_rate: float, lengths: Lengths, duration_s: float) -> list[Segment]:
    """Up from one rate to another in the first half, and down again in the second."""
    half = Segment(duration_s / 2, from_rate, lengths, to_rate)
    return [half, replace(half, rate=to_rate, end_rate=from_rate)]


def _gaps(arrivals: str, rng: random.Random) -> Iterator[float]:
    kind, _, number = arrivals.partition(":")
    if kind == "constant" and not number:
        while True:
            yield 1.0
    if kind == "poisson" and not number:
        while True:
            yield rng.expovariate(1.0)
    try:
        cv = float(number) if kind == "gamma" else math.nan
    except ValueError:
        cv = math.nan
    if not (math.isfinite(cv) and cv > 0):
        raise ConfigError("arrivals", f"{arrivals!r} names no arrival process", f"write {ARRIVALS_HELP}")
    shape = 1 / cv**2
    while True:
        yield rng.gammavariate(shape, 1 / shape)
