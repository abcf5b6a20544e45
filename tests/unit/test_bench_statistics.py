"""Intervals, comparisons and the rate at which attainment is lost."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from colocate.bench.arms import arm_figures, attainment_interval, compare_arms
from colocate.bench.goodput import RatePoint, compare_goodput, crossing, goodput_at, min_requests
from colocate.bench.metrics.attainment import Promises
from colocate.bench.metrics.denominators import DENOMINATORS
from colocate.bench.read import Run
from colocate.bench.statistics import (
    Interval,
    bootstrap,
    compare,
    count_draws,
    means,
    over_runs,
    pick_seeds,
    proportion,
    quantiles_at,
    side_of,
)
from colocate.config.slo import SloClass
from tests.bench_rows import row, run

CHAT = Promises((SloClass("chat", ttft_s=0.3),))


@pytest.mark.parametrize(
    ("good", "of", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_against_published_intervals(good: int, of: int, low: float, high: float) -> None:
    """Newcombe 1998, Statistics in Medicine 17, table I, method 3."""
    found = proportion(good, of)
    assert (found.low, found.high) == (pytest.approx(low, abs=5e-5), pytest.approx(high, abs=5e-5))


@given(st.integers(1, 5000), st.data())
def test_wilson_holds_the_share_and_stays_within_bounds(of: int, data: st.DataObject) -> None:
    found = proportion(data.draw(st.integers(0, of)), of)
    assert found.low is not None and found.high is not None and found.value is not None
    assert 0.0 <= found.low <= found.value <= found.high <= 1.0 and found.low < found.high


def test_sides_of_a_target() -> None:
    assert side_of(0.9, proportion(100, 100)) == "above"
    assert side_of(0.9, proportion(92, 100)) == side_of(0.9, proportion(0, 0)) == "unresolved"
    assert side_of(0.9, proportion(70, 100)) == "below"


@settings(max_examples=30, deadline=None)
@given(st.lists(st.lists(st.floats(0, 100), min_size=1, max_size=20), min_size=1, max_size=4))
def test_the_bootstrap_holds_the_mean_it_is_of_and_repeats(seeds: list[list[float]]) -> None:
    (found,) = bootstrap(seeds, means)
    pooled = [value for values in seeds for value in values]
    assert found.value == pytest.approx(np.mean(pooled)) and found.num_seeds == len(seeds)
    assert found.low is not None and found.high is not None
    assert min(pooled) - 1e-9 <= found.low <= found.high <= max(pooled) + 1e-9
    assert found.low - 1e-9 <= (found.value or 0.0) <= found.high + 1e-9
    assert bootstrap(seeds, means) == [found]


def test_the_bootstrap_covers_the_true_mean_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(5)
    num_covered = 0
    for _ in range(60):
        (found,) = bootstrap([rng.exponential(2.0, 30).tolist() for _ in range(6)], means)
        num_covered += (found.low or 0) <= 2.0 <= (found.high or 0)
    assert 51 <= num_covered <= 60


def test_seeds_that_differ_widen_the_interval() -> None:
    rng = np.random.default_rng(1)
    alike = [rng.normal(1.0, 0.1, 100).tolist() for _ in range(4)]
    apart = [rng.normal(centre, 0.1, 100).tolist() for centre in (0.7, 0.9, 1.1, 1.3)]
    (same,), (differ,) = bootstrap(alike, means), bootstrap(apart, means)
    assert _width(differ) > 5 * _width(same)


def test_drawing_counts_is_drawing_requests() -> None:
    good, of = (90, 70, 85), (100, 100, 120)
    rng = np.random.default_rng(0)
    draws = count_draws(good, of, of, pick_seeds(3, rng), rng)
    (found,) = bootstrap([[1.0] * k + [0.0] * (n - k) for k, n in zip(good, of, strict=True)], means)
    assert np.quantile(draws, (0.025, 0.975)) == pytest.approx([found.low, found.high], abs=0.02)
    per_s = count_draws(good, of, (8.0, 8.0, 8.0), pick_seeds(3, rng), rng)
    assert per_s.mean() == pytest.approx(245 / 24, rel=0.02)


def test_quantiles_of_draws_are_those_of_the_pooled_values() -> None:
    p50, p90 = bootstrap([[1.0, 2.0, 3.0], [4.0, 5.0]], quantiles_at(0.5, 0.9))
    assert (p50.value, p90.value) == (3.0, pytest.approx(4.6))


def test_one_run_has_no_interval_over_runs() -> None:
    assert over_runs([3.0]) == Interval(3.0, None, None, 1)
    assert over_runs([None]) == Interval(None, None, None, 0)
    spread = over_runs([1.0, 2.0, None, 3.0])
    assert (spread.value, spread.low, spread.high) == (2.0, 1.0, 3.0)


def test_comparison_of_paired_seeds_sees_what_unpaired_ones_hide() -> None:
    rng = np.random.default_rng(2)
    a = [rng.normal(centre, 0.05, 80).tolist() for centre in (1.0, 2.0, 3.0)]
    b = [(np.asarray(values) + 0.2).tolist() for values in a]
    (paired,) = compare(a, b, means)
    assert paired.difference.value == pytest.approx(-0.2) and paired.is_resolved
    assert (paired.ratio.high or 9) < 1.0
    (unpaired,) = compare(a, b, means, is_paired=False)
    assert not unpaired.is_resolved
    (same,) = compare(a, a, means)
    assert same.difference.value == 0.0 and not same.is_resolved
    (without,) = compare([*a, []], [*b, [5.0]], means)
    assert without.difference.value == pytest.approx(-0.2) and without.difference.num_seeds == 3
    assert compare(a, [[], [], []], means)[0].difference.value is None


def test_requests_that_a_target_needs() -> None:
    assert (min_requests(0.9), min_requests(0.95), min_requests(0.99)) == (100, 100, 500)


def test_where_a_curve_falls_below_the_target() -> None:
    assert crossing([1, 2, 3], [1.0, 0.95, 0.85], 0.9) == pytest.approx(2.5)
    assert crossing([1, 2], [0.8, 0.7], 0.9) is None
    assert crossing([1, 2], [1.0, 0.9], 0.9) == 2


def points(shares: Sequence[float], of: int = 200) -> list[RatePoint]:
    made = []
    for rate, share in enumerate(shares, 1):
        good, offered = (round(share * of),) * 2, (of,) * 2
        made.append(RatePoint(float(rate), good, offered, attainment_interval(good, offered)))
    return made


def test_goodput_between_two_rates_that_are_on_their_side() -> None:
    found = goodput_at(points([1.0, 0.98, 0.70]))
    assert (found.above_per_s, found.below_per_s, found.is_resolved, found.reason) == (2.0, 3.0, True, "")
    assert found.rate_per_s.value == pytest.approx(2 + 0.08 / 0.28)
    assert 2.0 < (found.rate_per_s.low or 0) < found.rate_per_s.value < (found.rate_per_s.high or 9) < 3.0
    assert goodput_at(points([1.0, 0.98, 0.70])[::-1]) == found


@pytest.mark.parametrize(
    ("shares", "of", "rate", "reason"),
    [
        ([1.0, 0.91, 0.6], 200, 2 + 0.01 / 0.31, "whether 2/s keeps"),
        ([1.0, 0.89], 200, 1 + 0.1 / 0.11, "whether 2/s breaks"),
        ([1.0, 0.99], 200, 2.0, "at least the highest rate"),
        ([0.5, 0.4], 200, None, "the lowest rate tested is already below"),
        ([1.0, 0.5], 40, 1.2, "80 requests, 100 are needed"),
        ([1.0, 0.6, 0.99], 200, 1.25, "rises above the target again"),
        ([], 200, None, "no rate was measured"),
    ],
)
def test_goodput_that_is_not_resolved_says_why(shares: list[float], of: int, rate: float | None, reason: str) -> None:
    found = goodput_at(points(shares, of))
    assert not found.is_resolved and reason in found.reason
    assert found.rate_per_s.value == (None if rate is None else pytest.approx(rate))


def test_goodput_above_every_rate_is_not_bounded_from_above() -> None:
    assert goodput_at(points([1.0, 0.99])).rate_per_s.high is None


def test_goodput_at_99_needs_five_hundred_requests() -> None:
    refused = goodput_at(points([1.0, 0.9]), 0.99)
    assert refused.rate_per_s.value is None and "fewer than the 500" in refused.reason
    assert goodput_at(points([1.0, 0.9], 400), 0.99).is_resolved


def test_goodput_of_two_arms() -> None:
    better = compare_goodput(points([1.0, 0.98, 0.95, 0.5]), points([1.0, 0.7, 0.5, 0.2]))
    assert better.is_resolved and (better.ratio.value or 0) > 2 and (better.difference.low or 0) > 1
    same = compare_goodput(points([1.0, 0.5]), points([1.0, 0.5]))
    assert not same.is_resolved and same.ratio.value == 1.0


def arm(name: str, ttft_s: float, seeds: Sequence[int], **changes: object) -> list[Run]:
    made = []
    for seed in seeds:
        rng = np.random.default_rng(seed)  # arms of one seed share their arrivals
        times = [1 + 7 * i / 120 for i in range(120)]
        rows = [row(i, at, (at + ttft_s + 0.1 * rng.random(), at + 1.0)) for i, at in enumerate(times)]
        made.append(run(rows, arm=name, seed=seed, run_id=f"{name}-{seed}", **changes))
    return made


def test_figures_of_an_arm_over_seeds() -> None:
    runs = arm("split", 0.22, (1, 2, 3))
    invalid = arm("split", 9.0, (4,), status="invalid")
    found = arm_figures([*reversed(runs), *invalid], CHAT)
    assert (found.seeds, found.num_runs_left_out, found.num_offered) == ((1, 2, 3), 1, 360)
    assert found.attainment.value == found.attainment_pooled.value == pytest.approx(0.8, abs=0.05)
    assert (found.attainment.low or 0) <= (found.attainment_pooled.low or 0)
    assert found.goodput_per_s.value == pytest.approx(sum(found.good) / 24)
    assert 0.22 < (found.ttft_s.p50.low or 0) < (found.ttft_s.p50.value or 0) < (found.ttft_s.p50.high or 1) < 0.32
    assert found.rate_point.share == found.attainment.value
    assert arm_figures(invalid, CHAT, valid_only=False).attainment.value == 0.0
    with pytest.raises(ValueError, match="without runs"):
        arm_figures([], CHAT)


def test_a_server_that_failed_under_load_counts_and_one_that_never_came_up_does_not() -> None:
    fine = arm("split", 0.1, (1,))
    failed = [row(i, 2.0, outcome="failed", error_kind="refused") for i in range(120)]
    unsent = [row(i, 2.0, outcome="not_sent", sent_s=None) for i in range(120)]
    found = arm_figures([*fine, run(failed, arm="split", seed=2, status="failed")], CHAT)
    assert found.attainment.value == 0.5 and (found.attainment.low or 0) < 0.05
    found = arm_figures([*fine, run(unsent, arm="split", seed=2, status="failed", elapsed_s=0.0)], CHAT)
    assert (found.attainment.value, found.num_runs_left_out) == (1.0, 1)


def test_an_arm_without_a_valid_run_has_no_figures_but_a_count() -> None:
    found = arm_figures(arm("split", 0.2, (1, 2), status="partial"), CHAT)
    assert found.num_runs_left_out == 2 and found.attainment.value is None and found.ttft_s.p99.value is None


def test_two_arms_are_compared_over_the_seeds_they_share() -> None:
    found = compare_arms(arm("a", 0.1, (1, 2, 3)), arm("b", 0.25, (2, 3, 4)), CHAT)
    assert found.ttft_s[0].difference.num_seeds == 2
    assert found.ttft_s[0].difference.value == pytest.approx(-0.15)
    assert found.attainment.is_resolved and found.goodput_per_s.is_resolved
    assert not found.itl_p99_s[0].is_resolved or (found.itl_p99_s[0].difference.value or 0) > 0
    apart = compare_arms(arm("a", 0.1, (1, 2)), arm("b", 0.25, (3, 4)), CHAT)
    assert apart.ttft_s[0].difference.value == pytest.approx(-0.15, abs=0.02)
    nothing = compare_arms(arm("a", 0.1, (1,)), [], CHAT)
    assert nothing.attainment.difference.value is None and len(nothing.e2e_s) == 3


def test_a_seed_with_nothing_to_divide_by_keeps_intervals_finite() -> None:
    failed = run([row(i, 2.0, outcome="failed") for i in range(120)], arm="split", seed=2, status="failed")
    found = arm_figures([*arm("split", 0.1, (1,)), failed], CHAT, DENOMINATORS["vllm"])
    assert (found.attainment.value, found.attainment.low, found.offered) == (1.0, 0.0, (120, 0))
    against = compare_arms([*arm("a", 0.1, (1,)), failed], arm("b", 0.25, (1, 2)), CHAT, DENOMINATORS["vllm"])
    assert against.ttft_s[0].difference.num_seeds == 1 and not against.attainment.is_resolved
    assert against.attainment.ratio.value is not None


def _width(interval: Interval) -> float:
    return (interval.high or 0.0) - (interval.low or 0.0)
