"""The verdict in words: which arm wins under one SLO, by how much, and whether dynamic partitioning pays.

The best static plan is the floor. It is chosen with the same data as the best dynamic arm, so neither side is favoured;
both are a little too good, as the best of several always is. A controller has to be told from every static plan: where
the best one is below it and another, seen less sharply, is not, no gain is shown. Where one static plan was measured,
there is no best one: a controller that beats it has not beaten a good choice of the plan, and nothing is said.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from colocate.bench.report.curves import RATE, Curve, SloCase, best, compare
from colocate.bench.report.model import TARGET_SHARE, Difference, Finding, SloVerdict
from colocate.bench.report.words import count, listed, number, percent, signed, with_interval

SHARE_WORDS = f"{TARGET_SHARE * 100:g}%"
_LISTED = 6


def judge(case: SloCase, found: Mapping[str, Curve]) -> SloVerdict:
    """The verdict under one SLO."""
    dynamics, statics = (
        [curve for curve in found.values() if curve.arm.group == group] for group in ("dynamic", "static")
    )
    winner, dynamic, static = best(list(found.values())), best(dynamics), best(statics)
    if winner is None:
        text = "No arm has a valid run at an offered rate, so there is nothing to judge."
        return SloVerdict(case.name, case.targets, "unknown", "", (), None, "", "", None, (text,))
    level, lead = ((), None) if winner.is_below else _level(winner, found)
    sentences = [_winner_sentence(winner, level, lead, found)]
    difference: Difference | None = None
    finding: Finding = "unknown"
    if dynamic and static:
        difference = compare(dynamic, static)
        finding = "one static" if len(statics) == 1 else _finding(difference, dynamic, static)
        sentences += [_arm_sentence("static plan", static, len(statics))]
        sentences += [_arm_sentence("dynamic arm", dynamic, len(dynamics))]
        rival = best([curve for curve in statics if not compare(dynamic, curve).is_resolved])
        if finding == "dynamic" and rival:
            sentences += [f"It is above {static.arm.name}, and cannot be told from {rival.arm.name}."]
            static, difference, finding = rival, compare(dynamic, rival), "tie"
        sentences += [_difference_sentence(difference), pays_sentence(finding, difference, dynamic, static)]
    else:
        missing = " and no ".join(name for name, curve in (("dynamic", dynamic), ("static", static)) if curve is None)
        sentences.append(f"Whether dynamic partitioning pays is not known: no {missing} arm has a run that counts.")
    is_one = not winner.is_below and (not winner.is_open or len(level) == 1)
    return SloVerdict(
        case.name,
        case.targets,
        finding,
        winner.arm.name if is_one else "",
        level,
        lead,
        dynamic.arm.name if dynamic else "",
        static.arm.name if static else "",
        difference,
        tuple(sentences),
    )


def _level(winner: Curve, found: Mapping[str, Curve]) -> tuple[tuple[str, ...], Difference | None]:
    """The winner and the arms that cannot be told from it; and its difference to the best of the others."""
    if winner.is_open:
        level = [curve for curve in found.values() if curve.is_open]
    else:
        level = [curve for curve in found.values() if curve is winner or not compare(winner, curve).is_resolved]
    names = sorted((curve.arm.name for curve in level), key=lambda name: (name != winner.arm.name, -found[name].value))
    second = best([curve for curve in found.values() if curve.arm.name not in names])
    return tuple(names), compare(winner, second) if second else None


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


def goodput_words(curve: Curve) -> str:
    """`3.2 requests/s [3.0, 3.3]`, or what bounds it."""
    rate = curve.found.rate_per_s
    if curve.is_below:
        return f"less than {number(curve.points[0].rate_per_s)} {RATE}, the lowest rate tested"
    if curve.is_open:
        return f"at least {number(curve.points[-1].rate_per_s)} {RATE}, the highest rate tested"
    bracket = f"between {curve.found.above_per_s:g} and {curve.found.below_per_s:g} tested"
    return f"{with_interval(rate.value, rate.low, rate.high, RATE)}, {bracket}"


def amount(difference: Difference) -> str:
    """`0.4 requests/s [0.2, 0.6]`, of a difference above zero."""
    bound = "at least " if difference.is_bound else ""
    return bound + with_interval(difference.value, difference.low, difference.high, difference.unit)


def signed_amount(difference: Difference) -> str:
    """`+0.4 requests/s [0.2, 0.6]`."""
    words = with_interval(difference.value, difference.low, difference.high, difference.unit, is_signed=True)
    return " ".join(filter(None, (bound_words(difference), words)))


def bound_words(difference: Difference) -> str:
    """`at least` or `at most` of a difference whose true value lies further from zero; else nothing."""
    if difference.value is None or not (difference.is_bound and difference.is_resolved):
        return ""
    return "at least" if difference.value > 0 else "at most"


def _n(curve: Curve) -> str:
    num_requests = sum(point.num_offered for point in curve.points)
    return f"n = {count(curve.found.rate_per_s.num_seeds, 'seed')}, {count(num_requests, 'request')}"


def _winner_sentence(winner: Curve, level: Sequence[str], lead: Difference | None, found: Mapping[str, Curve]) -> str:
    if winner.is_below:
        nearest = max(found.values(), key=lambda curve: curve.points[0].share)
        point = nearest.points[0]
        share = with_interval(percent(point.share), percent(point.attainment.low), percent(point.attainment.high), "%")
        return (
            f"No arm keeps {SHARE_WORDS} at its lowest rate. The nearest is {nearest.arm.name}: {share} at "
            f"{number(point.rate_per_s)} {RATE}, n = {count(point.num_offered, 'request')}."
        )
    if winner.is_open and len(level) > 1:
        return (
            f"{count(len(level), 'arm')} keep {SHARE_WORDS} at every rate tested, so none of them has the "
            f"highest goodput@90: {listed(level, _LISTED)}. Test higher rates to part them."
        )
    text = f"{winner.arm.name} has the highest goodput@90: {goodput_words(winner)}; {_n(winner)}."
    if len(found) == 1:
        return f"{text} No other arm was measured."
    if len(level) > 1:
        text += f" {listed(level[1:], _LISTED)} cannot be told from it."
    if lead is None:
        return text
    return f"{text} The next, {lead.b}, is {amount(lead)} below."


def _arm_sentence(what: str, curve: Curve, num: int) -> str:
    start = f"The only {what} measured" if num == 1 else f"The best {what} of {num}"
    is_open = not (curve.found.is_resolved or curve.is_open or curve.is_below)
    unresolved = f" (unresolved: {curve.found.reason})" if is_open else ""
    return f"{start} is {curve.arm.name}: {goodput_words(curve)}; {_n(curve)}{unresolved}."


def _difference_sentence(difference: Difference) -> str:
    if difference.value is None:
        return f"The difference of {difference.what} is not known."
    share = ""
    if difference.percent is not None and difference.unit == RATE:
        share = f" ({difference.percent:+.0f}%)"
    return (
        f"{difference.a} minus {difference.b}, {difference.what}: {signed_amount(difference)}{share}, "
        f"{difference.n}{'; ' + difference.reason if difference.reason else ''}."
    )


def pays_sentence(finding: Finding, difference: Difference, dynamic: Curve, static: Curve) -> str:
    """Whether dynamic partitioning pays, in one sentence."""
    if finding == "one static":
        return (
            f"Nothing is said of whether dynamic partitioning pays: with {static.arm.name} as the only static plan "
            "measured, there is no best one to hold a controller against."
        )
    if finding == "dynamic":
        return "Dynamic partitioning pays here."
    if finding == "static":
        return f"Dynamic partitioning does not pay here: the static plan {static.arm.name} is better."
    if dynamic.is_open and static.is_open:
        return f"Both keep {SHARE_WORDS} at every rate tested: up to there the best static plan is enough."
    if finding == "tie":
        return f"No gain of dynamic partitioning is shown{_room(difference, static)}."
    if finding == "unresolved":
        return (
            f"Unresolved: {dynamic.arm.name} and {static.arm.name} need more requests, or rates between those tested."
        )
    return "Whether dynamic partitioning pays is not known."


def _room(difference: Difference, static: Curve) -> str:
    """What the interval leaves of a gain: that two arms cannot be told apart does not make them equal."""
    if difference.high is None:
        return f", though the interval bounds none; until one is, the best static plan, {static.arm.name}, is enough"
    share = f" ({difference.high / static.value * 100:+.0f}%)" if difference.unit == RATE and static.value else ""
    most = f"{signed(difference.high)} {difference.unit}{share}"
    return f": it is at most {most} by this interval, and unless that matters the best static plan is enough"
