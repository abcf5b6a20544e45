"""Each arm as a curve of attainment against rate under one SLO, and two of them against each other.

Goodput decides. Where neither of two arms crosses the target share in the rates tested, attainment at one rate that
both have decides instead.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from msgspec import structs

from colocate.bench.arms import attainment_interval
from colocate.bench.figures import GoodputAt, RatePoint, RunFigures, compare_goodput, goodput_at
from colocate.bench.report.collect import Evidence, Point
from colocate.bench.report.model import TARGET_SHARE, Arm, Difference, Goodput
from colocate.bench.report.words import count, percent
from colocate.bench.slo_library import published_definitions
from colocate.bench.statistics import Interval, Proportion
from colocate.config.slo import SloClass

RATE = "requests/s"


@dataclass(frozen=True)
class SloCase:
    """One SLO of the verdict, and where its counts stand in a run's figures."""

    name: str
    targets: str
    of: Callable[[RunFigures], Proportion]
    is_published: bool = False


@dataclass(frozen=True)
class Curve:
    """One arm under one SLO: attainment by rate, and where it crosses the target."""

    arm: Arm
    points: tuple[RatePoint, ...]
    found: GoodputAt

    @property
    def value(self) -> float:
        """To rank by: goodput; an arm that keeps the target nowhere is below every other."""
        return self.found.rate_per_s.value or 0.0

    @property
    def mean_share(self) -> float:
        return sum(point.share for point in self.points) / len(self.points) if self.points else 0.0

    @property
    def is_open(self) -> bool:
        """Nothing bounds it from above: no rate tested is below the target."""
        return self.found.below_per_s is None and self.found.above_per_s is not None

    @property
    def is_below(self) -> bool:
        """The lowest rate tested is below the target already."""
        return self.found.above_per_s is None


def slo_cases(evidence: Evidence) -> tuple[SloCase, ...]:
    """The runs' own SLO first; then its classes, where there are several; then the published ones."""
    classes = [slo for name, slo in evidence.promises.by_name.items() if name]
    text = targets_text(classes[0]) if len(classes) == 1 else "; ".join(map(class_text, classes)) or "no targets"
    name = classes[0].name if len(classes) == 1 else "all classes" if classes else "finished"
    cases = [SloCase(name, text, lambda figures: figures.attainment)]
    if len(classes) > 1:
        cases += [SloCase(f"class {slo.name}", class_text(slo), _of_class(slo.name)) for slo in classes]
    own = {slo.name: slo for slo in classes}
    for each in published_definitions():
        if own.get(each.name) != each.slo:
            title = f"{each.name} (published)" if each.name in own else each.name
            cases.append(SloCase(title, targets_text(each.slo), _of_definition(each.name), is_published=True))
    return tuple(cases)


def _of_class(name: str) -> Callable[[RunFigures], Proportion]:
    return lambda figures: figures.attainment_by_class.get(name, Proportion(0, 0, None, None, None))


def _of_definition(name: str) -> Callable[[RunFigures], Proportion]:
    return lambda figures: figures.attainment_by_definition[name].attainment


def class_text(slo: SloClass) -> str:
    return f"{slo.name} ({targets_text(slo)})"


def targets_text(slo: SloClass) -> str:
    """`TTFT 300 ms + 1.5 ms per prompt token, TPOT 50 ms`."""
    ttft = [_duration(slo.ttft_s)] if slo.ttft_s is not None else []
    ttft += [f"{_duration(slo.ttft_per_token_s)} per prompt token"] if slo.ttft_per_token_s is not None else []
    words = [f"TTFT {' + '.join(ttft)}"] if ttft else []
    words += [f"{name} {_duration(seconds)}" for name, seconds in (("TPOT", slo.tpot_s), ("ITL p99", slo.itl_s))
              if seconds is not None]  # fmt: skip
    return ", ".join(words) or "no targets"


def _duration(seconds: float) -> str:
    return f"{seconds:g} s" if seconds >= 1 else f"{seconds * 1e3:g} ms"


def curves(evidence: Evidence, case: SloCase) -> dict[str, Curve]:
    """Every arm that was measured open loop, by name."""
    found: dict[str, Curve] = {}
    for arm in evidence.arms:
        points = tuple(each for each in (_rate_point(point, case) for point in evidence.of_arm(arm.name)) if each)
        if points:
            found[arm.name] = Curve(arm, points, goodput_at(points, TARGET_SHARE))
    return found


def _rate_point(point: Point, case: SloCase) -> RatePoint | None:
    shares = [share for share in (case.of(view.figures) for view in point.views) if share.of]
    if point.rate is None or not shares:
        return None
    good, of = tuple(share.good for share in shares), tuple(share.of for share in shares)
    return RatePoint(point.rate, good, of, attainment_interval(good, of))


def goodput_of(case: SloCase, curve: Curve) -> Goodput:
    at = curve.found
    rate = at.rate_per_s
    return Goodput(case.name, curve.arm.name, rate.value, rate.low, rate.high, at.above_per_s, at.below_per_s,
                   at.is_resolved, at.reason, rate.num_seeds)  # fmt: skip


def best(of: Sequence[Curve]) -> Curve | None:
    """By goodput, then by what is kept over all rates."""
    return max(of, key=lambda curve: (curve.value, curve.mean_share), default=None)


def compare(a: Curve, b: Curve) -> Difference:
    """A - B: goodput, or attainment at the highest common rate where goodput cannot tell them apart."""
    common = {point.rate_per_s for point in a.points} & {point.rate_per_s for point in b.points}
    if common and ((a.is_open and b.is_open) or (a.is_below and b.is_below)):
        return _compare_shares(a, b, max(common) if a.is_open else min(common))
    difference = compare_goodput(a.points, b.points, TARGET_SHARE).difference
    value, counted_b = difference.value, b.points[0].rate_per_s if b.is_below else b.value
    # What lies outside the rates tested moves the difference one way only; its interval has no end there.
    low = None if difference.low is None or a.is_below or b.is_open else difference.low
    high = None if difference.high is None or a.is_open or b.is_below else difference.high
    is_resolved = (low is not None and low > 0) or (high is not None and high < 0)
    reason = "" if value is None else _why_order_is_open(a, b, value, is_resolved=is_resolved)
    return Difference(
        a.arm.name, b.arm.name, "goodput@90", RATE, value, low, high,
        None if value is None or not counted_b else value / counted_b * 100,
        is_resolved and not reason, a.is_open or b.is_open or a.is_below or b.is_below,
        count(difference.num_seeds, "seed"), reason,
    )  # fmt: skip


def reverse(of: Difference) -> Difference:
    """B - A of A - B. `percent` is of A, which it does not tell."""
    low, high = (None if end is None else -end for end in (of.high, of.low))
    value = None if of.value is None else -of.value
    return structs.replace(of, a=of.b, b=of.a, value=value, low=low, high=high, percent=None)


def _why_order_is_open(a: Curve, b: Curve, value: float, *, is_resolved: bool) -> str:
    """Where both cross between the same rates, interpolation orders them only if the one that crosses later keeps at
    least as much at every rate of the bracket that both have; and calls them equal only if none of these rates says
    that A keeps more while another says that B does. Empty where the order is seen."""
    (low_a, high_a), (low_b, high_b) = ((curve.found.above_per_s or 0.0, curve.found.below_per_s) for curve in (a, b))
    if (high_b is not None and low_a >= high_b) or (high_a is not None and low_b >= high_a):
        return ""
    low, high = min(low_a, low_b), max(high_a or low_a, high_b or low_b)
    points_a, points_b = ({point.rate_per_s: point for point in curve.points} for curve in (a, b))
    is_reversed = False
    signs: set[bool] = set()
    for rate in points_a.keys() & points_b.keys():
        if low <= rate <= high:
            at_a, at_b = points_a[rate], points_b[rate]
            is_reversed |= (at_a.share - at_b.share) * value < 0
            bounds = share_bounds(at_a.attainment, at_b.attainment)
            if bounds[0] is not None and bounds[1] is not None and (bounds[0] > 0 or bounds[1] < 0):
                signs.add(bounds[0] > 0)
    if (is_resolved and is_reversed) or len(signs) > 1:
        return f"both cross between {low:g} and {high:g} {RATE}, where now one and now the other keeps more"
    return ""


def _compare_shares(a: Curve, b: Curve, rate: float) -> Difference:
    at_a, at_b = (next(point for point in curve.points if point.rate_per_s == rate) for curve in (a, b))
    low, high = share_bounds(at_a.attainment, at_b.attainment)
    value = at_a.share - at_b.share
    is_resolved = low is not None and high is not None and (low > 0 or high < 0)
    return Difference(
        a.arm.name, b.arm.name, f"attainment at {rate:g} {RATE}", "percentage points", percent(value), percent(low),
        percent(high), value / at_b.share * 100 if at_b.share else None, is_resolved, False,
        count(min(len(at_a.good), len(at_b.good)), "seed"),
    )  # fmt: skip


def share_bounds(a: Interval, b: Interval) -> tuple[float | None, float | None]:
    """Of the difference of two shares, from their intervals (Newcombe 1998, method 10; MOVER). Where every request of
    both is good the bootstrap has nothing to draw from and would claim certainty; this does not."""
    if a.value is None or b.value is None or a.low is None or a.high is None or b.low is None or b.high is None:
        return None, None
    difference = a.value - b.value
    low = difference - math.hypot(a.value - a.low, b.high - b.value)
    return low, difference + math.hypot(a.high - a.value, b.value - b.low)
