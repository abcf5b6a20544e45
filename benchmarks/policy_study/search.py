"""Goodput of one arm on one load: the highest rate at which at least 90% of the offered requests meet their SLO.

Rates stand on a grid of 4% steps, the same for all arms, so equal goodputs are equal. The search gallops from a guess
and then halves. A run ends early once more than 10% have missed: it cannot pass any more.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from colocate.config.profile import DeviceProfile, load_profile
from colocate.sim.run import simulate
from colocate.sim.settings import SimSettings
from policy_study.arms import MAX_NUM_SEQS, Arm, with_contention
from policy_study.loads import LOADS, Load

STEP = 1.04
ATTAINMENT = 0.9
LOWEST, HIGHEST = -60, 60  # scales 0.095 to 10.5
KV_TOKENS = 800_000  # about what 141 GB hold beside 16 GB of weights at 131,072 bytes a token


@dataclass(frozen=True, slots=True)
class Point:
    """Goodput of one seed. `level` is the place on the grid; `rate` in requests per second; 0 where none passed."""

    load: str
    arm: str
    seed: int
    level: int
    rate: float
    attainment: float
    num_requests: int
    num_switches: int
    num_runs: int


@dataclass(frozen=True, slots=True)
class Task:
    load: str
    arm: Arm
    seed: int
    guess: int
    profile: Path
    base: dict[str, object]  # settings for every arm


def scale_of(level: int) -> float:
    return float(STEP**level)


def find_goodput(task: Task) -> Point:
    """About five runs. Entry of a worker process."""
    load = next(load for load in LOADS if load.name == task.load)
    trial = _Trial(load, task, load_profile(task.profile))
    level = _highest(trial, task.guess)
    if level is None:
        return Point(load.name, task.arm.name, task.seed, LOWEST, 0.0, 0.0, 0, 0, len(trial.seen))
    attainment, rate, num_requests, num_switches = trial.seen[level]
    return Point(
        load.name, task.arm.name, task.seed, level, rate, attainment, num_requests, num_switches, len(trial.seen)
    )


class _Trial:
    """Runs of one arm, load and seed, by level."""

    def __init__(self, load: Load, task: Task, profile: DeviceProfile) -> None:
        self._load = load
        self._task = task
        self._profile = with_contention(profile, task.arm.contention)
        self.seen: dict[int, tuple[float, float, int, int]] = {}

    def passes(self, level: int) -> bool:
        if level not in self.seen:
            self.seen[level] = self._run(level)
        return self.seen[level][0] >= ATTAINMENT

    def _run(self, level: int) -> tuple[float, float, int, int]:
        load, task = self._load, self._task
        workload = load.make(scale_of(level), task.seed)
        settings = SimSettings(
            profile=self._profile,
            kv_tokens=KV_TOKENS,
            slo_classes=(load.slo,),
            seed=task.seed,
            drain_s=20.0,
            **{"max_num_seqs": MAX_NUM_SEQS, **task.base, **task.arm.settings},  # type: ignore[arg-type]
        )
        most_misses = int((1 - ATTAINMENT) * len(workload.rows))
        result = simulate(workload, settings, most_misses=most_misses)
        return result.summary.attainment, workload.rate, len(workload.rows), result.num_switches


def _highest(trial: _Trial, guess: int) -> int | None:
    """The highest level that passes, None where none does. Levels are taken to be monotone."""
    if trial.passes(guess):
        low, stride = guess, 1
        while (high := low + stride) <= HIGHEST and trial.passes(high):
            low, stride = high, stride * 2
    else:
        high, stride = guess, 1
        while not trial.passes(low := high - stride):
            high, stride = low, stride * 2
            if high <= LOWEST:
                return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if trial.passes(middle) else (low, middle)
    return low
