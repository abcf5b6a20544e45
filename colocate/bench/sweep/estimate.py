"""How long a sweep takes: before it starts from its loads, later from what its runs took."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from colocate.bench.sweep.load import Load
from colocate.bench.sweep.order import RunSpec
from colocate.bench.sweep.plan import SweepPlan
from colocate.errors import ConfigError

OVERHEAD_S = {"colocate": 12.0}  # start, look at it, wait for the last answers, stop; of a small model on a CPU
OTHER_OVERHEAD_S = 60.0  # another system, which often takes a minute to start
_SECONDS = {"": 1.0, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}


@dataclass(frozen=True, slots=True)
class Estimate:
    """Of runs still to make. A search does not know its rates: between `least_s`, where every point is decided at once
    and the rates are high, and `most_s`, where they are low and every point needs all its requests."""

    num_runs: int
    likely_s: float
    least_s: float
    most_s: float

    def words(self) -> str:
        if self.least_s == self.most_s:
            return f"{self.num_runs} runs, about {duration(self.likely_s)}"
        spread = f"between {duration(self.least_s)} and {duration(self.most_s)}"
        return f"about {self.num_runs} runs, {duration(self.likely_s)}, {spread}"


@dataclass(slots=True)
class Pace:
    """What runs take beyond their load, by arm. `observe` is called once for each run that was made."""

    load: Load
    system_of: dict[str, str]
    _spent_s: dict[str, list[float]] = field(default_factory=dict)

    def observe(self, spec: RunSpec, whole_s: float) -> None:
        """`whole_s`: from the start of its server to its end."""
        self._spent_s.setdefault(spec.arm, []).append(max(0.0, whole_s - self.load.duration_s(spec.rate)))

    def run_s(self, arm: str, rate: float) -> float:
        return self.load.duration_s(rate) + self._overhead_s(arm)

    def _overhead_s(self, arm: str) -> float:
        own = self._spent_s.get(arm)
        if own:
            return sum(own) / len(own)
        system = self.system_of[arm]
        alike = [s for other, spent in self._spent_s.items() if self.system_of[other] == system for s in spent]
        return sum(alike) / len(alike) if alike else OVERHEAD_S.get(system, OTHER_OVERHEAD_S)


def pace_of(plan: SweepPlan) -> Pace:
    return Pace(plan.load, {arm.name: arm.system for arm in plan.arms})


def estimate_runs(pace: Pace, specs: Iterable[RunSpec]) -> Estimate:
    """Of a list of runs."""
    seconds = [pace.run_s(spec.arm, spec.rate) for spec in specs]
    total_s = sum(seconds)
    return Estimate(len(seconds), total_s, total_s, total_s)


def estimate_search(pace: Pace, plan: SweepPlan) -> Estimate:
    """Of a whole search that has not begun."""
    assert plan.search is not None
    num_probes = math.ceil(math.log2(len(plan.rates) + 1))
    per_probe = len(plan.seeds)
    parts = max(1, math.ceil(plan.search.max_requests / (plan.load.min_requests * per_probe)))
    middle = math.sqrt(plan.rates[0] * plan.rates[-1])
    per_point_s = {
        rate: sum(pace.run_s(arm.name, rate) for arm in plan.arms) * per_probe for rate in (*plan.rates, middle)
    }
    # The last probe or two of a search lie at the crossing, where the interval straddles the target.
    num_runs = len(plan.arms) * per_probe * (num_probes + parts - 1)
    return Estimate(
        num_runs,
        per_point_s[middle] * (num_probes + parts - 1),
        per_point_s[plan.rates[-1]] * num_probes,
        per_point_s[plan.rates[0]] * num_probes * parts,
    )


def parse_duration(text: str, where: str) -> float:
    """Seconds of `90`, `90s`, `10m` or `1.5h`. Raises ConfigError at `where`."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(s|m|min|h|)", text.strip())
    seconds = float(match[1]) * _SECONDS[match[2]] if match else 0.0
    if seconds <= 0:
        raise ConfigError(where, f"{text!r} is not a time", "give for example 90s, 10m or 2h")
    return seconds


def duration(seconds: float) -> str:
    """`45 s`, `12 min`, `1 h 40 min`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
