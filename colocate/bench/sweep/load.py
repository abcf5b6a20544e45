"""The load of one run: the recipe at a rate, long enough for the requests that a point needs."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from colocate.errors import ConfigError
from colocate.workload.recipe import Recipe, cook
from colocate.workload.rows import Workload
from colocate.workload.scale import at_rate, first_seconds

_GROWTH = 1.05  # arrivals are random: a load may have to be a little longer than the mean says
_TRIES = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """`recipe.rates` are proportions of the patterns that have two (phase-shifting, ramp); a run's rate is their mean.
    `min_requests`: due in the measured part of every run."""

    recipe: Recipe
    min_requests: int = 100
    warmup_s: float = 5.0
    cooldown_s: float = 0.0

    def duration_s(self, rate: float) -> float:
        """About how long a run's load is. A pattern of phases is made of whole periods."""
        measured_s = max(self.min_requests / rate, self.recipe.duration_s or 0.0)
        whole_s = self.warmup_s + measured_s + self.cooldown_s
        if self.recipe.pattern == "phase-shifting":
            return math.ceil(whole_s / self.recipe.period_s) * self.recipe.period_s
        return whole_s

    def at(self, rate: float, seed: int) -> Workload:
        """Raises ConfigError: a recipe that cannot be, a trace with too few requests."""
        whole = self._whole_trace(rate, seed)
        duration_s = self.duration_s(rate)
        for _ in range(_TRIES):
            workload = self._pattern(rate, seed, duration_s) if whole is None else first_seconds(whole, duration_s)
            if self._num_measured(workload) >= self.min_requests:
                return workload
            if whole is not None and workload.duration_s >= whole.duration_s:
                break
            longer_s = duration_s * _GROWTH
            is_phased = self.recipe.pattern == "phase-shifting"
            duration_s = duration_s + self.recipe.period_s if is_phased else longer_s
        problem = f"has {self._num_measured(workload)} requests to measure, {self.min_requests} are needed"
        raise ConfigError("--workload", problem, "give a longer trace, a shorter --warmup, or a smaller --min-requests")

    def _num_measured(self, workload: Workload) -> int:
        end_s = workload.duration_s - self.cooldown_s
        return sum(self.warmup_s <= row.arrival_s < end_s for row in workload.rows)

    def _whole_trace(self, rate: float, seed: int) -> Workload | None:
        if self.recipe.trace is None:
            return None
        return at_rate(cook(replace(self.recipe, rates=(), duration_s=None), seed), rate)

    def _pattern(self, rate: float, seed: int, duration_s: float) -> Workload:
        shape = self.recipe.rates or (1.0,)
        mean = sum(shape) / len(shape)
        rates = tuple(rate * part / mean for part in shape)
        return cook(replace(self.recipe, rates=rates, duration_s=duration_s), seed)
