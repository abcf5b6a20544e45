"""The first sentences of a report, and what the published SLOs say of the same log."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from colocate.bench.report.collect import Evidence, attainment_of
from colocate.bench.report.curves import RATE, Curve, reverse
from colocate.bench.report.model import SloVerdict
from colocate.bench.report.verdict import SHARE_WORDS, amount, signed_amount
from colocate.bench.report.words import count, listed, number, percent, with_interval

_LISTED = 4


def headline(evidence: Evidence, device: str, verdict: SloVerdict, found: Mapping[str, Curve]) -> str:
    """Where, under which SLO, who wins by how much; then whether dynamic partitioning pays."""
    slo = verdict.targets if verdict.slo in ("all classes", "finished") else f"{verdict.slo} ({verdict.targets})"
    start = f"Measured on {device}. Under the SLO {slo}"
    if not found:
        return f"{start}, there is no valid run at an offered rate{_closed(evidence)}."
    return " ".join(filter(None, (f"{start}, {_who(verdict, found)}.", _pays(verdict, found))))


def _who(verdict: SloVerdict, found: Mapping[str, Curve]) -> str:
    if not verdict.winner and not verdict.level:
        return f"no arm keeps {SHARE_WORDS} of the requests at its lowest rate"
    if not verdict.winner:
        keep = f"{len(verdict.level)} of {count(len(found), 'arm')} keep {SHARE_WORDS} at every rate tested"
        return f"{keep}: {listed(verdict.level, _LISTED)}" if len(verdict.level) < len(found) else keep
    curve = found[verdict.winner]
    rate = curve.found.rate_per_s
    value = with_interval(rate.value, rate.low, rate.high, RATE)
    value = f"at least {number(rate.value)} {RATE}" if curve.is_open else value
    if len(found) == 1:
        return f"{verdict.winner}, the only arm, keeps {SHARE_WORDS} up to {value}"
    if len(verdict.level) > 1:
        others = verdict.level[1:]
        rest = "all other arms" if len(verdict.level) == len(found) > 2 else listed(others, _LISTED)
        text = f"{verdict.winner} keeps {SHARE_WORDS} up to {value}, and {rest} cannot be told from it"
        return text if verdict.lead is None else f"{text}; the next, {verdict.lead.b}, is {amount(verdict.lead)} below"
    text = f"{verdict.winner} keeps {SHARE_WORDS} up to {value}"
    return text if verdict.lead is None else f"{text}, {amount(verdict.lead)} more than {verdict.lead.b}, the next"


def _pays(verdict: SloVerdict, found: Mapping[str, Curve]) -> str:
    dynamic, static, difference = verdict.best_dynamic, verdict.best_static, verdict.difference
    if difference is None or difference.value is None:
        return ""
    by = signed_amount(difference)
    if verdict.finding == "dynamic":
        more = amount(difference)
        return f"Dynamic partitioning pays: {dynamic} keeps {more} more than the best static plan, {static}."
    if verdict.finding == "static":
        more = amount(reverse(difference))
        return f"Dynamic partitioning does not pay: the best static plan, {static}, keeps {more} more than {dynamic}."
    if verdict.finding == "one static":
        return f"Nothing is said of dynamic partitioning: {static} is the only static plan measured."
    if verdict.finding == "tie" and found[dynamic].is_open and found[static].is_open:
        return f"Up to there the best static plan, {static}, is enough."
    if verdict.finding == "tie":
        return (
            f"No gain of dynamic partitioning is shown ({dynamic} minus {static}: {by}), so the best static plan is "
            "enough until one is."
        )
    if verdict.finding == "unresolved":
        return f"It is unresolved whether {dynamic} or the best static plan, {static}, keeps more."
    return ""


def _closed(evidence: Evidence) -> str:
    closed = [point for point in evidence.points if point.rate is None and point.views]
    shares = [f"{point.arm} keeps {number(percent(attainment_of(point)))} % with {point.load}" for point in closed]
    return f"; in closed loop, {listed(shares, _LISTED)}" if shares else ""


def published_verdict(verdicts: Sequence[SloVerdict], num_arms: int) -> SloVerdict:
    """Who wins under the published SLOs, by outcome."""
    groups: dict[str, list[str]] = {}
    for each in verdicts:
        groups.setdefault(_outcome(each, num_arms), []).append(each.slo)
    sentences = [f"Under {listed(names)} {outcome}." for outcome, names in groups.items()]
    words = {"dynamic": "Dynamic partitioning pays under", "static": "A static plan is better under"}
    for finding, start in words.items():
        names = [each.slo for each in verdicts if each.finding == finding]
        sentences += [f"{start} {len(names)} of {len(verdicts)}: {listed(names)}."] if names else []
    title = ("Published SLOs", "the same log, judged again")
    return SloVerdict(*title, "unknown", "", (), None, "", "", None, tuple(sentences))


def _outcome(each: SloVerdict, num_arms: int) -> str:
    if not each.level:
        return f"no arm keeps {SHARE_WORDS} at its lowest rate"
    if len(each.level) == 1:
        return f"{each.level[0]} has the highest goodput@90, by more than the interval of the difference"
    names = f"all {num_arms} arms" if len(each.level) == num_arms else listed(sorted(each.level), _LISTED)
    return (
        f"{names} lead and cannot be told apart" if each.winner else f"{names} keep {SHARE_WORDS} at every rate tested"
    )
