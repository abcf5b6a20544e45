"""The verdict: which arm wins under which SLO, by how much, and whether dynamic partitioning pays.

The best static plan is the floor. It is chosen with the same data as the best dynamic arm, so neither side is favoured;
both are a little too good, as the best of several always is. Goodput decides. Where neither of two arms crosses the
target share in the rates tested, attainment at the highest rate both have decides instead.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from colocate.bench.arms import attainment_interval
from colocate.bench.figures import GoodputAt, RatePoint, RunFigures, compare_goodput, goodput_at
from colocate.bench.report.collect import Evidence, Point
from colocate.bench.report.model import TARGET_SHARE, Arm, Difference, Finding, Goodput, SloVerdict
from colocate.bench.report.words import count, interval, number, percent, signed, with_interval
from colocate.bench.slo_library import published_definitions
from colocate.bench.statistics import Interval, Proportion
from colocate.config.slo import SloClass

RATE = "requests/s"
_SHARE_WORDS = f"{TARGET_SHARE * 100:g}%"


@dataclass(frozen=True)
class SloCase:
    """One SLO of the verdict, and where its counts stand in a run's figures."""

    name: str
    targets: str
    of: Callable[[RunFigures], Proportion]


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
    published = published_definitions()
    cases += [SloCase(each.name, targets_text(each.slo), _of_definition(each.name)) for each in published]
    return tuple(cases)


def _of_class(name: str) -> Callable[[RunFigures], Proportion]:
    return lambda figures: figures.attainment_by_class.get(name, Proportion(0, 0, None, None, None))


def _of_definition(name: str) -> Callable[[RunFigures], Proportion]:
    return lambda figures: figures.attainment_by_definition[name].attainment


def class_text(slo: SloClass) -> str:
    return f"{slo.name} ({targets_text(slo)})"


def targets_text(slo: SloClass) -> str:
    """`TTFT 300 ms, TPOT 50 ms`."""
    named = (("TTFT", slo.ttft_s), ("TTFT per prompt token", slo.ttft_per_token_s), ("TPOT", slo.tpot_s),
             ("ITL", slo.itl_s))  # fmt: skip
    return ", ".join(f"{name} {seconds * 1e3:g} ms" for name, seconds in named if seconds is not None) or "no targets"


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


def judge(case: SloCase, found: dict[str, Curve]) -> SloVerdict:
    """The verdict under one SLO."""
    by_group = {
        group: [curve for curve in found.values() if curve.arm.group == group] for group in ("dynamic", "static")
    }
    winner, dynamic, static = best(list(found.values())), best(by_group["dynamic"]), best(by_group["static"])
    if winner is None:
        text = "No arm has a valid run at an offered rate, so there is nothing to judge."
        return SloVerdict(case.name, case.targets, "unknown", "", "", "", None, (text,))
    sentences = [_winner_sentence(winner, found)]
    difference, finding = None, "unknown"
    if dynamic and static:
        difference = compare(dynamic, static)
        finding = _finding(difference, dynamic, static)
        sentences += [_arm_sentence("The best static plan", static, len(by_group["static"]))]
        sentences += [_arm_sentence("The best dynamic arm", dynamic, len(by_group["dynamic"]))]
        sentences += [_difference_sentence(difference), _pays_sentence(finding, dynamic, static)]
    else:
        missing = " and ".join(name for name, curve in (("dynamic", dynamic), ("static", static)) if curve is None)
        sentences.append(f"Whether dynamic partitioning pays is not known: no {missing} arm has a valid run.")
    return SloVerdict(
        case.name,
        case.targets,
        _as_finding(finding),
        winner.arm.name,
        dynamic.arm.name if dynamic else "",
        static.arm.name if static else "",
        difference,
        tuple(sentences),
    )


def compare(a: Curve, b: Curve) -> Difference:
    """A - B: goodput, or attainment at the highest common rate where goodput cannot tell them apart."""
    common = {point.rate_per_s for point in a.points} & {point.rate_per_s for point in b.points}
    if common and ((a.is_open and b.is_open) or (a.is_below and b.is_below)):
        return _compare_shares(a, b, max(common) if a.is_open else min(common))
    clipped_a, clipped_b = _bounded(a), _bounded(b)
    found = compare_goodput(a.points, b.points, TARGET_SHARE)
    difference, shift = found.difference, (clipped_a - a.value) - (clipped_b - b.value)
    value = None if difference.value is None else difference.value + shift
    low = None if difference.low is None else difference.low + shift
    high = None if difference.high is None else difference.high + shift
    is_resolved = low is not None and high is not None and (low > 0 or high < 0)
    reason = "" if not is_resolved or value is None else _why_order_is_open(a, b, value)
    return Difference(
        a.arm.name, b.arm.name, "goodput@90", RATE, value, low, high,
        None if value is None or not clipped_b else value / clipped_b * 100,
        is_resolved and not reason, a.is_open or b.is_open or a.is_below or b.is_below,
        count(difference.num_seeds, "seed"), reason,
    )  # fmt: skip


def _why_order_is_open(a: Curve, b: Curve, value: float) -> str:
    """Where both cross between the same two rates, interpolation orders them only if the one that crosses later keeps
    at least as much at every rate of the bracket that both have. Empty where the order is seen."""
    (low_a, high_a), (low_b, high_b) = ((curve.found.above_per_s or 0.0, curve.found.below_per_s) for curve in (a, b))
    if (high_b is not None and low_a >= high_b) or (high_a is not None and low_b >= high_a):
        return ""
    low, high = min(low_a, low_b), max(high_a or low_a, high_b or low_b)
    shares_a, shares_b = ({point.rate_per_s: point.share for point in curve.points} for curve in (a, b))
    for rate in sorted(shares_a.keys() & shares_b.keys()):
        if low <= rate <= high and (shares_a[rate] - shares_b[rate]) * value < 0:
            return f"both cross between {low:g} and {high:g} {RATE}, and at {rate:g} their order is reversed"
    return ""


def _bounded(curve: Curve) -> float:
    """Its goodput; below every rate tested, the lowest of them: so a difference is never larger than what was seen."""
    return curve.points[0].rate_per_s if curve.is_below else curve.value


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


def _finding(difference: Difference, dynamic: Curve, static: Curve) -> Finding:
    if difference.value is None:
        return "unknown"
    if difference.is_resolved:
        return "dynamic" if difference.value > 0 else "static"
    if difference.reason:
        return "unresolved"
    too_few = [curve for curve in (dynamic, static) if not curve.found.is_resolved and "needed" in curve.found.reason]
    return "unresolved" if too_few else "tie"


def _as_finding(text: str) -> Finding:
    findings: tuple[Finding, ...] = ("dynamic", "static", "tie", "unresolved")
    return next((finding for finding in findings if finding == text), "unknown")


def goodput_words(curve: Curve) -> str:
    """`3.2 requests/s [3.0, 3.3]`, or what bounds it."""
    rate = curve.found.rate_per_s
    if curve.is_below:
        return f"less than {number(curve.points[0].rate_per_s)} {RATE}, the lowest rate tested"
    if curve.is_open:
        return f"at least {number(curve.points[-1].rate_per_s)} {RATE}, the highest rate tested"
    bracket = f"between {number(curve.found.above_per_s)} and {number(curve.found.below_per_s)} tested"
    return f"{with_interval(rate.value, rate.low, rate.high, RATE)}, {bracket}"


def _n(curve: Curve) -> str:
    num_requests = sum(point.num_offered for point in curve.points)
    return f"n = {count(curve.found.rate_per_s.num_seeds, 'seed')}, {count(num_requests, 'request')}"


def _winner_sentence(winner: Curve, found: dict[str, Curve]) -> str:
    if winner.is_below:
        lowest = max(found.values(), key=lambda curve: curve.points[0].share)
        point = lowest.points[0]
        share = with_interval(percent(point.share), percent(point.attainment.low), percent(point.attainment.high), "%")
        return (
            f"No arm keeps {_SHARE_WORDS} at its lowest rate. The nearest is {lowest.arm.name}: {share} at "
            f"{number(point.rate_per_s)} {RATE}, n = {count(point.num_offered, 'request')}."
        )
    rest = [curve for curve in found.values() if curve is not winner]
    second = best(rest)
    text = f"{winner.arm.name} has the highest goodput@90: {goodput_words(winner)}; {_n(winner)}"
    if second is None:
        return f"{text}. No other arm was measured."
    against = compare(winner, second)
    if against.is_resolved:
        return f"{text}. That is {_amount(against)} more than {second.arm.name}, the next."
    return f"{text}. It is not distinguishable from {second.arm.name}, the next ({_span(against)})."


def _arm_sentence(what: str, curve: Curve, num: int) -> str:
    of = f" of {num}" if num > 1 else ""
    at = goodput_words(curve)
    open_words = (
        "" if curve.found.is_resolved or curve.is_open or curve.is_below else f" (unresolved: {curve.found.reason})"
    )
    return f"{what}{of} is {curve.arm.name}: {at}; {_n(curve)}{open_words}."


def _difference_sentence(difference: Difference) -> str:
    if difference.value is None:
        return f"The difference of {difference.what} is not known."
    bound = "at least " if difference.is_bound and difference.is_resolved else ""
    share = "" if difference.percent is None else f" ({signed(difference.percent)}%)"
    return (
        f"{difference.a} minus {difference.b}, {difference.what}: {bound}{signed(difference.value)} "
        f"{difference.unit}{share}, "
        f"95% interval {interval(difference.low, difference.high)}, {difference.n}"
        f"{'; ' + difference.reason if difference.reason else ''}."
    )


def _amount(difference: Difference) -> str:
    bound = "at least " if difference.is_bound else ""
    return f"{bound}{number(difference.value)} {difference.unit} {interval(difference.low, difference.high)}"


def _span(difference: Difference) -> str:
    span = interval(difference.low, difference.high)
    return f"difference of {difference.what} {signed(difference.value)} {difference.unit} {span}"


def _pays_sentence(finding: Finding, dynamic: Curve, static: Curve) -> str:
    if finding == "dynamic":
        return "Dynamic partitioning pays here."
    if finding == "static":
        return f"Dynamic partitioning does not pay here: the static plan {static.arm.name} is better."
    if finding == "tie":
        return "The two are not distinguishable: the best static plan is enough."
    if finding == "unresolved":
        return (
            f"Unresolved: {dynamic.arm.name} and {static.arm.name} need more requests, or rates between those tested."
        )
    return "Whether dynamic partitioning pays is not known."
