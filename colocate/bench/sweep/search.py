"""Goodput of an arm: the highest rate of a grid at which enough requests keep their promises, by bisection.

Everything follows from the runs that exist: the same results give the same next probe, so a search that was cut off
goes on where it was, with nothing remembered.

A point whose Wilson interval straddles the target says neither yes nor no. It gets more requests, with new seeds, until
it does or until `max_requests`; then bisection goes on by the share itself, and the answer is `unresolved`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from colocate.bench.statistics import proportion, side_of
from colocate.errors import ConfigError

Status = Literal["found", "below-lowest", "at-least-highest", "failed"]


@dataclass(frozen=True, slots=True)
class Search:
    """`max_requests`: of one point, over all its runs."""

    target: float = 0.9
    max_requests: int = 600

    def __post_init__(self) -> None:
        if not 0 < self.target < 1:
            raise ConfigError("--goodput-at", f"cannot be {self.target:g}", "a share between 0 and 1, for example 0.9")


@dataclass(frozen=True, slots=True)
class Tally:
    """What is known of one point: runs of one arm at one rate, `num_parts` times one per seed."""

    good: int = 0
    offered: int = 0
    num_parts: int = 0
    has_failed: bool = False


@dataclass(frozen=True, slots=True)
class Probe:
    """Run this rate once per seed; `part` 0 with the sweep's seeds, later ones with new seeds."""

    level: int
    part: int


@dataclass(frozen=True, slots=True)
class Answer:
    """`level` is the highest that keeps the target (None: none does, or the arm failed). `unresolved`: levels that
    bisection passed on their share alone. The answer is resolved where neither of its two ends is among them."""

    status: Status
    level: int | None
    unresolved: tuple[int, ...] = ()

    @property
    def is_resolved(self) -> bool:
        ends = () if self.level is None else (self.level, self.level + 1)
        return self.status != "failed" and not set(ends or (0,)) & set(self.unresolved)


def next_step(search: Search, num_levels: int, tally_of: Callable[[int], Tally]) -> Probe | Answer:
    """What to do next for one arm, from what is known of its levels 0 .. num_levels - 1 (rates ascend; attainment is
    taken to fall). At most log2(num_levels) + 1 levels are ever probed."""
    low, high = -1, num_levels  # the highest that is known to keep the target, the lowest that is known not to
    unresolved: list[int] = []
    while high - low > 1:
        middle = (low + high) // 2
        tally = tally_of(middle)
        if tally.has_failed:
            return Answer("failed", low if low >= 0 else None, tuple(unresolved))
        if tally.num_parts == 0:
            return Probe(middle, 0)
        found = proportion(tally.good, tally.offered)
        side = side_of(search.target, found)
        if side == "unresolved":
            if tally.offered < search.max_requests and tally.offered > 0:
                return Probe(middle, tally.num_parts)
            unresolved.append(middle)
            side = "above" if (found.value or 0.0) >= search.target else "below"
        low, high = (middle, high) if side == "above" else (low, middle)
    status: Status = "below-lowest" if low < 0 else "at-least-highest" if high == num_levels else "found"
    return Answer(status, low if low >= 0 else None, tuple(unresolved))


def grid(low: float, high: float, step: float) -> tuple[float, ...]:
    """Rates from `low` to about `high`, each `step` times the one before, to four digits. Raises ConfigError."""
    if not (0 < low <= high and step > 1):
        raise ConfigError("--search", f"{low:g}:{high:g}:{step:g} is no range of rates", "for example 0.5:8:1.05")
    rates: list[float] = []
    rate = low
    while rate <= high * (1 + 1e-9):
        rates.append(float(f"{rate:.4g}"))
        rate *= step
    if len(set(rates)) != len(rates):
        raise ConfigError("--search", f"steps of {step:g} are too small", "1.01 or more")
    return tuple(rates)


def seeds_of_part(seeds: tuple[int, ...], part: int) -> tuple[int, ...]:
    """New seeds for each part: those of the sweep, moved on past its last one."""
    return tuple(seed + part * (max(seeds) - min(seeds) + 1) for seed in seeds)
