"""Goodput as the field means it: the highest offered rate that keeps an attainment, found where the measured curve of
attainment against rate crosses it (DistServe, OSDI'24, section 2)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from msgspec import Struct

from colocate.bench.statistics import (
    NO_COMPARISON,
    Comparison,
    Interval,
    Values,
    bounds,
    compare_draws,
    count_draws,
    pick_seeds,
    side_of,
)


class RatePoint(Struct, frozen=True):
    """Attainment of one arm at one rate. `good` and `offered` hold one number per seed; `attainment` their share with
    its interval."""

    rate_per_s: float
    good: tuple[int, ...]
    offered: tuple[int, ...]
    attainment: Interval

    @property
    def num_offered(self) -> int:
        return sum(self.offered)

    @property
    def share(self) -> float:
        return sum(self.good) / self.num_offered if self.num_offered else 0.0


class GoodputAt(Struct, frozen=True):
    """The highest rate that keeps `attainment`, requests per second.

    `above_per_s` is the last rate tested that keeps it, `below_per_s` the first that does not; `rate_per_s` lies
    between, by linear interpolation. It is `resolved` where the intervals of both are on their side of the target and
    both have requests enough; `reason` says what is missing.
    """

    attainment: float
    rate_per_s: Interval
    above_per_s: float | None
    below_per_s: float | None
    is_resolved: bool
    reason: str = ""


def min_requests(attainment: float) -> int:
    """Requests that a point needs to say anything about this attainment: enough that five would miss, and no fewer
    than a hundred. 100 for 90%, 500 for 99%."""
    return max(100, round(5 / (1 - attainment)))


def goodput_at(points: Sequence[RatePoint], attainment: float = 0.9, *, seed: int = 0) -> GoodputAt:
    """Of the points of one arm. Where the curve crosses the target more than once, its first crossing counts. A target
    that no point has requests enough for is refused: no rate, and the reason."""
    ordered = sorted(points, key=lambda point: point.rate_per_s)
    needed = min_requests(attainment)
    short = [point for point in ordered if point.num_offered < needed]
    if attainment > 0.95 and short:
        reason = f"{len(short)} of {len(ordered)} rates have fewer than the {needed} requests that this target needs"
        return GoodputAt(attainment, Interval(None, None, None, 0), None, None, False, reason)
    shares = [point.share for point in ordered]
    rates = [point.rate_per_s for point in ordered]
    rate_per_s = crossing(rates, shares, attainment)
    num_above = _num_above(shares, attainment)
    above = ordered[num_above - 1] if num_above else None
    below = ordered[num_above] if num_above < len(ordered) else None
    reason = _open_reason(above, below, attainment, needed) or (
        "attainment rises above the target again at a higher rate: the first crossing is taken"
        if any(share >= attainment for share in shares[num_above:])
        else ""
    )
    low = high = None
    if ordered:
        draws = _crossing_draws(ordered, attainment, seed, 0.0)
        low, high = bounds(draws)
        # Where the draws run into the highest rate tested, nothing bounds them from above.
        high = None if high >= rates[-1] and shares[-1] >= attainment else high
    num_seeds = min((len(point.good) for point in ordered), default=0)
    return GoodputAt(
        attainment,
        Interval(rate_per_s, low, high, num_seeds),
        above.rate_per_s if above else None,
        below.rate_per_s if below else None,
        not reason,
        reason,
    )


def compare_goodput(
    a: Sequence[RatePoint], b: Sequence[RatePoint], attainment: float = 0.9, *, seed: int = 0
) -> Comparison:
    """Goodput of A against that of B. An arm whose curve never crosses counts with the highest rate tested where it
    keeps the target everywhere, with the lowest where it keeps it nowhere: so a difference is never larger than what
    was seen."""
    if not a or not b:
        return NO_COMPARISON
    curves = [sorted(points, key=lambda point: point.rate_per_s) for points in (a, b)]
    lowest = [curve[0].rate_per_s for curve in curves]
    goodput_a, goodput_b = (
        crossing([point.rate_per_s for point in curve], [point.share for point in curve], attainment) or least
        for curve, least in zip(curves, lowest, strict=True)
    )
    draws_a, draws_b = (
        _crossing_draws(curve, attainment, seed + which, lowest[which]) for which, curve in enumerate(curves)
    )
    num_seeds = min(len(point.good) for curve in curves for point in curve)
    return compare_draws(goodput_a, goodput_b, draws_a, draws_b, num_seeds)


def crossing(rates: Sequence[float], shares: Sequence[float], target: float) -> float | None:
    """The rate at which the piecewise linear curve first falls below the target: None where it starts below, the
    highest rate where it never does. `rates` rises."""
    num_above = _num_above(shares, target)
    if num_above == 0:
        return None
    if num_above == len(shares):
        return rates[-1]
    upper, lower = shares[num_above - 1], shares[num_above]
    at = (upper - target) / (upper - lower)
    return rates[num_above - 1] + (rates[num_above] - rates[num_above - 1]) * at


def _num_above(shares: Sequence[float], target: float) -> int:
    return next((i for i, share in enumerate(shares) if share < target), len(shares))


def _open_reason(above: RatePoint | None, below: RatePoint | None, target: float, needed: int) -> str:
    if above is None and below is None:
        return "no rate was measured"
    if above is None:
        return "the lowest rate tested is already below the target"
    if below is None:
        return "no rate tested is below the target: goodput is at least the highest rate"
    for point, side, words in ((above, "above", "keeps"), (below, "below", "breaks")):
        if point.num_offered < needed:
            return f"{point.rate_per_s:g}/s has {point.num_offered} requests, {needed} are needed"
        if side_of(target, point.attainment) != side:
            return f"whether {point.rate_per_s:g}/s {words} the target is within its interval"
    return ""


def _crossing_draws(ordered: Sequence[RatePoint], target: float, seed: int, below: float) -> Values:
    """Where each draw crosses the target; `below` for one that starts below it."""
    rng = np.random.default_rng(seed)
    rates = [point.rate_per_s for point in ordered]
    columns = [
        count_draws(point.good, point.offered, point.offered, pick_seeds(len(point.good), rng), rng)
        for point in ordered
    ]
    curves = np.stack(columns, axis=1)
    found = [crossing(rates, curve, target) or below for curve in curves.tolist()]
    return np.asarray(found)
