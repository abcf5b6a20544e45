"""The verdict in words: which arm wins under one SLO, by how much, and whether dynamic partitioning pays.

The best static plan is the floor. It is chosen with the same data as the best dynamic arm, so neither side is favoured;
both are a little too good, as the best of several always is.
"""

from __future__ import annotations

from collections.abc import Mapping

from colocate.bench.report.curves import RATE, Curve, SloCase, best, compare
from colocate.bench.report.model import TARGET_SHARE, Difference, Finding, SloVerdict
from colocate.bench.report.words import count, interval, listed, number, percent, signed, with_interval

_SHARE_WORDS = f"{TARGET_SHARE * 100:g}%"


def judge(case: SloCase, found: Mapping[str, Curve]) -> SloVerdict:
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
        "" if sum(curve.is_open for curve in found.values()) > 1 else winner.arm.name,
        dynamic.arm.name if dynamic else "",
        static.arm.name if static else "",
        difference,
        tuple(sentences),
    )


def _finding(difference: Difference, dynamic: Curve, static: Curve) -> Finding:
    if difference.value is None:
        return "unknown"
    if dynamic.is_open and static.is_open:
        return "tie"
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


def _winner_sentence(winner: Curve, found: Mapping[str, Curve]) -> str:
    if winner.is_below:
        lowest = max(found.values(), key=lambda curve: curve.points[0].share)
        point = lowest.points[0]
        share = with_interval(percent(point.share), percent(point.attainment.low), percent(point.attainment.high), "%")
        return (
            f"No arm keeps {_SHARE_WORDS} at its lowest rate. The nearest is {lowest.arm.name}: {share} at "
            f"{number(point.rate_per_s)} {RATE}, n = {count(point.num_offered, 'request')}."
        )
    at_every_rate = [curve.arm.name for curve in found.values() if curve.is_open]
    if len(at_every_rate) > 1:
        return (
            f"{count(len(at_every_rate), 'arm')} keep {_SHARE_WORDS} at every rate tested, so none of them has the "
            f"highest goodput@90: {listed(at_every_rate, 6)}; {_n(winner)} each."
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
    if dynamic.is_open and static.is_open:
        return "Both keep 90% at every rate tested, so up to there the best static plan is enough; test higher rates."
    if finding == "tie":
        return "The two are not distinguishable: the best static plan is enough."
    if finding == "unresolved":
        return (
            f"Unresolved: {dynamic.arm.name} and {static.arm.name} need more requests, or rates between those tested."
        )
    return "Whether dynamic partitioning pays is not known."
