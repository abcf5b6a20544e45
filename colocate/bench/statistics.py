"""Intervals: Wilson's of a share, and the bootstrap over seeds of anything else.

A bench has few seeds and many requests, and requests of one seed share their arrivals: they are no independent sample.
So the bootstrap draws seeds first, then requests within each (cluster bootstrap, Davison and Hinkley 1997, 3.8). With
two or three seeds it sees little of what differs between seeds: the interval is then too narrow, and says how many
there were. Everything is seeded: the same rows give the same interval.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

Values = NDArray[np.float64]
Side = Literal["above", "below", "unresolved"]

NUM_DRAWS = 2000
Z_95 = 1.959963984540054  # of the normal distribution, two-sided 95%

_MAX_CELLS = 2_000_000  # of one matrix of draws: 16 MB


class Proportion(Struct, frozen=True):
    """`good` of `of`, with Wilson's 95% interval; None of nothing."""

    good: int
    of: int
    value: float | None
    low: float | None
    high: float | None


class Interval(Struct, frozen=True):
    """A figure with its 95% interval, in its unit; None where it cannot be had. `num_seeds` runs stand behind it."""

    value: float | None
    low: float | None
    high: float | None
    num_seeds: int = 1


def proportion(good: int, of: int) -> Proportion:
    """good / of with Wilson's 95% score interval (Wilson 1927): it stays within [0, 1] and holds near both ends."""
    if not of:
        return Proportion(good, of, None, None, None)
    share, square = good / of, Z_95 * Z_95
    centre = (share + square / (2 * of)) / (1 + square / of)
    half = Z_95 * math.sqrt(share * (1 - share) / of + square / (4 * of * of)) / (1 + square / of)
    low = 0.0 if good == 0 else max(0.0, centre - half)
    high = 1.0 if good == of else min(1.0, centre + half)
    return Proportion(good, of, share, low, high)


def side_of(target: float, found: Proportion | Interval) -> Side:
    """Whether a share is above (or at) the target or below it; `unresolved` where its interval straddles the target:
    then bisection must not go on as if it knew."""
    if found.low is None or found.high is None:
        return "unresolved"
    if found.low >= target:
        return "above"
    return "below" if found.high < target else "unresolved"


Statistic = Callable[[Values], Values]  # [draws, values] -> [draws, figures]


def means(draws: Values) -> Values:
    """Of each draw its mean: [draws, 1]."""
    return np.asarray(draws.mean(axis=1, keepdims=True), dtype=np.float64)


def quantiles_at(*shares: float) -> Statistic:
    """Of each draw these quantiles (type 7): [draws, len(shares)]."""

    def statistic(draws: Values) -> Values:
        return np.asarray(np.quantile(draws, shares, axis=1).T, dtype=np.float64)

    return statistic


def pick_seeds(num_seeds: int, rng: np.random.Generator, num_draws: int = NUM_DRAWS) -> NDArray[np.int64]:
    """Which seeds each draw consists of, with replacement: [draws, num_seeds]."""
    return rng.integers(num_seeds, size=(num_draws, num_seeds))


def cluster_draws(
    seeds: Sequence[Values], statistic: Statistic, picks: NDArray[np.int64], rng: np.random.Generator
) -> Values:
    """The statistic of each draw, [draws, figures]: of the seeds picked, as many values each as it has, drawn with
    replacement. Every seed has at least one value."""
    drawn: list[tuple[NDArray[np.int64], Values]] = []
    combinations, belongs_to = np.unique(np.sort(picks, axis=1), axis=0, return_inverse=True)
    for which, combination in enumerate(combinations):
        rows = np.flatnonzero(belongs_to.reshape(-1) == which)
        chosen = [seeds[seed] for seed in combination]
        per_batch = max(1, _MAX_CELLS // sum(map(len, chosen)))
        for batch in np.split(rows, range(per_batch, len(rows), per_batch)):
            parts = [values[rng.integers(len(values), size=(len(batch), len(values)))] for values in chosen]
            drawn.append((batch, statistic(np.concatenate(parts, axis=1))))
    result = np.empty((len(picks), drawn[0][1].shape[1]))
    for batch, figures in drawn:
        result[batch] = figures
    return result


def count_draws(
    good: Sequence[int], of: Sequence[int], per: Sequence[float], picks: NDArray[np.int64], rng: np.random.Generator
) -> Values:
    """Good requests per `per` of each draw, [draws]: with per = of an attainment, with per = seconds a goodput. To
    draw n requests with replacement, of which k are good, is to draw the number of good ones from Binomial(n, k/n). A
    draw of seeds that have nothing to divide by counts as zero: nothing was kept there."""
    num_offered = np.asarray(of, dtype=np.int64)
    shares = np.asarray(good) / np.maximum(num_offered, 1)
    total = rng.binomial(num_offered[picks], shares[picks]).sum(axis=1)
    divisor = np.asarray(per, dtype=np.float64)[picks].sum(axis=1)
    return np.asarray(np.divide(total, divisor, out=np.zeros(len(picks)), where=divisor > 0), dtype=np.float64)


def bounds(draws: Values) -> tuple[float, float]:
    """The middle 95% of the draws (percentile bootstrap)."""
    low, high = np.quantile(draws, (0.025, 0.975))
    return float(low), float(high)


def bootstrap(seeds: Sequence[Sequence[float]], statistic: Statistic, *, seed: int = 0) -> list[Interval]:
    """Each figure of the statistic over all values of all seeds, with its interval. Seeds without values are left out;
    without any, one Interval of None."""
    known = [np.asarray(values, dtype=np.float64) for values in seeds if len(values)]
    if not known:
        return [Interval(None, None, None, 0)]
    rng = np.random.default_rng(seed)
    draws = cluster_draws(known, statistic, pick_seeds(len(known), rng), rng)
    found = statistic(np.concatenate(known)[None, :])[0]
    return [Interval(float(value), *bounds(draws[:, i]), len(known)) for i, value in enumerate(found)]


def over_runs(values: Sequence[float | None], *, seed: int = 0) -> Interval:
    """Mean of a figure that a run has once (tokens per second, say), with the bootstrap over runs; one run has no
    interval."""
    known = np.asarray([value for value in values if value is not None], dtype=np.float64)
    if not len(known):
        return Interval(None, None, None, 0)
    if len(known) == 1:
        return Interval(float(known[0]), None, None)
    rng = np.random.default_rng(seed)
    return Interval(float(known.mean()), *bounds(known[pick_seeds(len(known), rng)].mean(axis=1)), len(known))


class Comparison(Struct, frozen=True):
    """A against B: `difference` is A - B in the figure's unit, `ratio` is A / B. `is_resolved` where the interval of
    the difference does not hold zero."""

    difference: Interval
    ratio: Interval
    is_resolved: bool


NO_COMPARISON = Comparison(Interval(None, None, None, 0), Interval(None, None, None, 0), False)


def compare_draws(a: float, b: float, draws_a: Values, draws_b: Values, num_seeds: int) -> Comparison:
    """Of two figures and their draws, draw by draw. The ratio has no value where B is zero, and no interval where B is
    zero in a draw."""
    low, high = bounds(draws_a - draws_b)
    difference = Interval(a - b, low, high, num_seeds)
    ratio = Interval(a / b if b else None, None, None, num_seeds)
    if b and np.all(draws_b != 0):
        ratio = Interval(a / b, *bounds(draws_a / draws_b), num_seeds)
    return Comparison(difference, ratio, low > 0 or high < 0)


def pick_both(
    num_a: int, num_b: int, is_paired: bool, rng: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Seeds of two arms. Paired: each draw takes the same places of both, which must hold the same seeds."""
    picks_a = pick_seeds(num_a, rng)
    return picks_a, picks_a if is_paired else pick_seeds(num_b, rng)


def compare(
    seeds_a: Sequence[Sequence[float]],
    seeds_b: Sequence[Sequence[float]],
    statistic: Statistic,
    *,
    is_paired: bool = True,
    seed: int = 0,
) -> list[Comparison]:
    """Each figure of the statistic, A against B. Paired: both hold the same seeds in the same order, and each draw
    takes the same seeds of both, which share their arrivals; another number of seeds cannot be paired. Seeds without
    values (of either, where they are paired) are left out; without any, one Comparison of None."""
    a = [np.asarray(values, dtype=np.float64) for values in seeds_a]
    b = [np.asarray(values, dtype=np.float64) for values in seeds_b]
    is_paired = is_paired and len(a) == len(b)
    if is_paired:
        both = [(of_a, of_b) for of_a, of_b in zip(a, b, strict=True) if len(of_a) and len(of_b)]
        a, b = [of_a for of_a, _ in both], [of_b for _, of_b in both]
    a, b = [values for values in a if len(values)], [values for values in b if len(values)]
    if not a or not b:
        return [NO_COMPARISON]
    rng = np.random.default_rng(seed)
    picks_a, picks_b = pick_both(len(a), len(b), is_paired, rng)
    draws_a, draws_b = cluster_draws(a, statistic, picks_a, rng), cluster_draws(b, statistic, picks_b, rng)
    found_a, found_b = (statistic(np.concatenate(values)[None, :])[0] for values in (a, b))
    num_seeds = min(len(a), len(b))
    return [
        compare_draws(float(found_a[i]), float(found_b[i]), draws_a[:, i], draws_b[:, i], num_seeds)
        for i in range(len(found_a))
    ]
