"""The verdict on constructed curves: who wins, when it is a tie, and when nothing may be said."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from colocate.bench.arms import attainment_interval
from colocate.bench.figures import RatePoint, RunFigures, goodput_at
from colocate.bench.metrics.attainment import Promises
from colocate.bench.report.collect import split_of, units_of
from colocate.bench.report.curves import Curve, SloCase, compare, share_bounds, targets_text
from colocate.bench.report.model import Arm, Group, SloVerdict
from colocate.bench.report.sections.shares import parts_of
from colocate.bench.report.verdict import judge
from colocate.bench.report.words import signed
from colocate.bench.statistics import Interval, Proportion, proportion
from colocate.config.slo import parse_slo_classes


def _nothing(figures: RunFigures) -> Proportion:
    return figures.attainment


CASE = SloCase("chat", "TTFT 300 ms", _nothing)


def curve(name: str, group: Group, shares: Mapping[float, float], *, per_seed: int = 200, seeds: int = 3) -> Curve:
    """An arm that keeps exactly these shares at these rates, in every seed."""
    points = []
    for rate, share in shares.items():
        good, of = (round(share * per_seed),) * seeds, (per_seed,) * seeds
        points.append(RatePoint(rate, good, of, attainment_interval(good, of)))
    return Curve(Arm(name, group, "colocate", (), 0), tuple(points), goodput_at(points, 0.9))


def verdict(*curves: Curve) -> SloVerdict:
    return judge(CASE, {each.arm.name: each for each in curves})


STATIC = curve("static:p1d1", "static", {2: 1.0, 4: 0.95, 6: 0.4})
WORSE = curve("static:p3d1", "static", {2: 0.95, 4: 0.2, 6: 0.0})
BEATEN = curve("static:p3d1", "static", {2: 0.2, 4: 0.1, 6: 0.0, 8: 0.0})  # so that there is a best static plan


def test_dynamic_wins() -> None:
    found = verdict(STATIC, WORSE, curve("slo", "dynamic", {2: 1.0, 4: 0.99, 6: 0.96, 8: 0.3}))
    assert (found.finding, found.winner, found.best_static) == ("dynamic", "slo", "static:p1d1")
    assert found.level == ("slo",) and found.lead is not None and found.lead.b == "static:p1d1"
    assert found.difference is not None and found.difference.value == pytest.approx(6 + 2 * 6 / 66 - (4 + 2 * 5 / 55))
    assert "Dynamic partitioning pays here." in found.sentences


def test_a_controller_has_to_be_told_from_every_static_plan() -> None:
    slo = curve("slo", "dynamic", {2: 1.0, 4: 0.99, 6: 0.6})
    assert verdict(STATIC, WORSE, slo).finding == "dynamic"
    vague = curve("static:p5d3", "static", {2: 1.0, 8: 0.7}, per_seed=34)
    found = verdict(STATIC, vague, slo)
    assert found.winner == "slo" and STATIC.value > vague.value
    assert (found.finding, found.best_static) == ("tie", "static:p5d3")
    assert "It is above static:p1d1, and cannot be told from static:p5d3." in found.sentences
    assert not any("pays here" in sentence for sentence in found.sentences)


def test_static_wins() -> None:
    found = verdict(STATIC, WORSE, curve("slo", "dynamic", {2: 0.99, 4: 0.5, 6: 0.1}))
    assert (found.finding, found.winner) == ("static", "static:p1d1")
    assert any("does not pay" in sentence for sentence in found.sentences)


def test_the_best_static_plan_is_the_floor_not_the_first() -> None:
    found = verdict(WORSE, STATIC, curve("slo", "dynamic", {2: 1.0, 4: 0.9, 6: 0.1}))
    assert found.best_static == "static:p1d1"
    assert any("best static plan of 2" in sentence for sentence in found.sentences)


def test_one_static_plan_is_no_best_one() -> None:
    """However much a controller adds to the only split there is, it has not beaten a choice among splits."""
    found = verdict(STATIC, curve("slo", "dynamic", {2: 1.0, 4: 0.99, 6: 0.96, 8: 0.3}))
    assert (found.finding, found.winner) == ("one static", "slo")
    assert found.difference is not None and found.difference.is_resolved
    text = " ".join(found.sentences)
    assert "Nothing is said of whether dynamic partitioning pays" in text and "pays here" not in text


def test_arms_that_cannot_be_told_apart_are_named_together() -> None:
    found = verdict(STATIC, BEATEN, curve("slo", "dynamic", {2: 1.0, 4: 0.95, 6: 0.42}))
    assert found.level == ("slo", "static:p1d1")
    assert found.lead is not None and found.lead.b == "static:p3d1" and found.lead.is_resolved
    assert "static:p1d1 cannot be told from it" in found.sentences[0]


def test_equal_arms_are_a_tie_and_the_room_for_a_gain_is_told() -> None:
    """That two arms cannot be told apart does not make them equal: the sentence says what the interval leaves."""
    found = verdict(STATIC, WORSE, curve("slo", "dynamic", {2: 1.0, 4: 0.95, 6: 0.42}))
    assert found.finding == "tie" and found.difference is not None and found.difference.high is not None
    assert f"at most {signed(found.difference.high)} requests/s" in found.sentences[-1]
    assert "the best static plan is enough" in found.sentences[-1]


def test_both_keep_every_rate() -> None:
    """Attainment may differ, but no rate tested shows that static is not enough."""
    shares = {2: 1.0, 4: 1.0}
    found = verdict(curve("static:p1d1", "static", {2: 1.0, 4: 0.93}), BEATEN, curve("slo", "dynamic", shares))
    assert (found.finding, found.winner, found.level) == ("tie", "", ("slo", "static:p1d1"))
    assert any("Test higher rates" in sentence for sentence in found.sentences)
    assert found.difference is not None and found.difference.what.startswith("attainment")


def test_below_everywhere_is_judged_by_attainment_at_the_lowest_rate() -> None:
    low = curve("static:p1d1", "static", {2: 0.3, 4: 0.1})
    found = verdict(low, BEATEN, curve("slo", "dynamic", {2: 0.7, 4: 0.2}))
    assert (found.finding, found.winner, found.level) == ("dynamic", "", ())
    assert found.difference is not None
    assert found.difference.what == "attainment at 2 requests/s"
    assert found.difference.value == pytest.approx(40)
    assert found.sentences[0].startswith("No arm keeps 90% at its lowest rate. The nearest is slo: 70.0 %")


def test_a_difference_is_never_larger_than_what_was_seen() -> None:
    """Static is below 90% at 2/s already: it may keep 1.9/s."""
    low, high = curve("static:p1d1", "static", {2: 0.5, 4: 0.1}), curve("slo", "dynamic", {2: 1.0, 4: 0.95})
    found = verdict(low, BEATEN, high)
    assert found.finding == "dynamic"
    assert found.difference is not None and found.difference.is_bound
    assert found.difference.value == pytest.approx(4.0 - 2.0)
    assert found.difference.low is not None and found.difference.high is None, "nothing bounds it from above"
    assert any("at least +2" in sentence for sentence in found.sentences)
    turned = compare(low, high)
    assert (turned.low, turned.value, turned.is_resolved) == (None, pytest.approx(-2.0), True)


def test_what_lies_outside_the_rates_cannot_resolve_a_difference_against_it() -> None:
    """A keeps 90% at its highest rate, 4/s; B was tested further and breaks at 7/s. A may hold until 10/s."""
    found = compare(curve("slo", "dynamic", {2: 1.0, 4: 1.0}), curve("static:p1d1", "static", {2: 1.0, 6: 1.0, 8: 0.0}))
    assert found.value is not None and found.value < 0 and not found.is_resolved


def test_an_arm_just_below_the_target_at_the_lowest_rate_counts_with_that_rate() -> None:
    """Some draws of it cross above the lowest rate, none counts as a goodput of zero."""
    nearly = curve("static:p1d1", "static", {2: 0.895, 4: 0.1})
    found = compare(curve("slo", "dynamic", {2: 1.0, 4: 0.99, 6: 0.1}), nearly)
    assert found.is_resolved and found.value == pytest.approx(4 + 2 * 9 / 89 - 2)


def test_order_inside_one_bracket_needs_both_of_its_ends() -> None:
    """A falls off a cliff somewhere before 8/s, B slopes: interpolation says B, but A may hold until 7.9/s."""
    cliff = curve("slo", "dynamic", {4: 1.0, 8: 0.0})
    slope = curve("static:p1d1", "static", {4: 0.95, 8: 0.6})
    found = verdict(cliff, slope, BEATEN)
    assert found.finding == "unresolved"
    assert found.difference is not None and not found.difference.is_resolved
    assert "between 4 and 8" in found.difference.reason
    found = verdict(
        curve("slo", "dynamic", {4: 1.0, 6: 0.95, 8: 0.0}),
        curve("static:p1d1", "static", {4: 1.0, 6: 0.3, 8: 0.0}),
        BEATEN,
    )
    assert found.finding == "dynamic"


def test_too_few_requests_are_unresolved() -> None:
    few = {"per_seed": 10, "seeds": 2}
    static = curve("static:p1d1", "static", {2: 1.0, 4: 0.9, 6: 0.4}, **few)
    found = verdict(static, BEATEN, curve("slo", "dynamic", {2: 1.0, 4: 0.9, 6: 0.6}, **few))
    assert found.finding == "unresolved"
    assert any(sentence.startswith("Unresolved") for sentence in found.sentences)


def test_without_one_of_the_two_nothing_is_said() -> None:
    found = verdict(STATIC, curve("chunked:256", "chunked", {2: 1.0, 4: 0.3}))
    assert (found.finding, found.winner) == ("unknown", "static:p1d1")
    assert any("no dynamic arm" in sentence for sentence in found.sentences)
    assert verdict().finding == "unknown"


def test_a_peer_may_win() -> None:
    peer = curve("vllm", "peer", {2: 1.0, 4: 1.0, 6: 0.95, 8: 0.2})
    found = verdict(STATIC, BEATEN, curve("slo", "dynamic", {2: 1.0, 4: 0.5}), peer)
    assert (found.winner, found.finding) == ("vllm", "static")


def test_an_arm_against_itself() -> None:
    found = compare(STATIC, STATIC)
    assert found.value == 0 and not found.is_resolved
    assert found.low is not None and found.high is not None and found.low <= 0 <= found.high


def test_two_perfect_shares_are_not_certainly_equal() -> None:
    perfect = proportion(50, 50)
    share = Interval(perfect.value, perfect.low, perfect.high, 1)
    low, high = share_bounds(share, share)
    assert perfect.low is not None and low is not None and high is not None
    assert (low, high) == (pytest.approx(perfect.low - 1), pytest.approx(1 - perfect.low))
    assert share_bounds(share, Interval(None, None, None, 0)) == (None, None)


def test_plans_and_parts_by_name() -> None:
    assert units_of("static:p92d40") == (92, 40)
    assert units_of("shared") is None and units_of("gp92d40x") is None
    assert split_of(Arm("mine", "static", "colocate", ("--plan", "static:p1d1"), 0)) == (1, 1)
    edf = ("--mode", "shared", "--discipline", "edf")
    assert parts_of(Arm("shared+discipline=edf", "shared", "colocate", edf, 0), {"discipline": "edf"}) == (False, True)
    assert parts_of(Arm("slo", "dynamic", "colocate", ("--plan", "slo"), 0), {}) == (True, False)
    assert parts_of(Arm("vllm", "peer", "vllm", (), 0), {}) is None


def test_targets_in_words() -> None:
    (slo,) = (Promises(parse_slo_classes(["a: ttft 0.3 s, ttft_per_token 1.5 ms, itl 100 ms"], "")).by_name["a"],)
    assert targets_text(slo) == "TTFT 300 ms + 1.5 ms per prompt token, ITL p99 100 ms"
