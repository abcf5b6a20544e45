"""The fit on its own: synthetic states with noise, outliers, a busy machine, contention."""

from __future__ import annotations

import random

import numpy as np
import pytest

from colocate.config.profile import Coefficients, DeviceProfile, Sample, ShareProfile
from colocate.runtime.profiling.fit import (
    DeviceFacts,
    fit_coefficients,
    fit_profile,
    noise_of,
    typical_s,
    with_contention,
)
from colocate.runtime.profiling.journal import Measured, Visit

TRUE = Coefficients(3e-5, 2e-9, 4e-3, 1e-6)
STEP = Coefficients(3e-5, 2e-9, 4e-3)
STATES = [(new, cached) for new in (8, 32, 100, 256, 512) for cached in (0, 500, 4000, 8000)]


def seconds_of(linear: float, pairs: float, k: Coefficients = TRUE) -> float:
    return k.a * linear + k.b * pairs + k.c + k.d * pairs / linear


def points() -> list[tuple[float, float]]:
    return [(new, new * (cached + new / 2)) for new, cached in STATES]


def test_exact_times_give_exact_coefficients() -> None:
    linear, pairs = zip(*points(), strict=True)
    found = fit_coefficients("prefill", linear, pairs, [seconds_of(*point) for point in points()])
    assert (found.a, found.b, found.c, found.d) == pytest.approx((TRUE.a, TRUE.b, TRUE.c, TRUE.d), rel=1e-6)


def test_noise_of_five_percent_averages_out() -> None:
    draw = random.Random(1)
    many = points() * 20
    linear, pairs = zip(*many, strict=True)
    found = fit_coefficients(
        "prefill", linear, pairs, [seconds_of(*point) * draw.lognormvariate(0, 0.05) for point in many]
    )
    assert (found.a, found.b, found.c, found.d) == pytest.approx((TRUE.a, TRUE.b, TRUE.c, TRUE.d), rel=0.1)
    predicted = [seconds_of(*point, found) for point in points()]
    assert predicted == pytest.approx([seconds_of(*point) for point in points()], rel=0.02)


def test_a_tenth_of_outliers_moves_little() -> None:
    draw = random.Random(2)
    times = [seconds_of(*point) * draw.lognormvariate(0, 0.01) for point in points()]
    for index in (3, 11):
        times[index] *= 2.5
    linear, pairs = zip(*points(), strict=True)
    found = fit_coefficients("prefill", linear, pairs, times)
    predicted = np.array([seconds_of(*point, found) for point in points()])
    assert np.allclose(predicted, [seconds_of(*point) for point in points()], rtol=0.03)


def test_a_term_that_is_not_there_is_zero_and_not_negative() -> None:
    linear, pairs = zip(*points(), strict=True)
    # Faster with more cached tokens, as a kernel with better tiles is: least squares alone would make b negative.
    times = [TRUE.a * n + TRUE.c - 1e-10 * p for n, p in points()]
    found = fit_coefficients("decode", linear, pairs, times)
    assert found.b == 0.0 and found.a > 0 and found.c > 0


def visit(state: int, foreign: float, *measured: Measured) -> Visit:
    return Visit("setup", state, 0.0, foreign, list(measured))


def test_visits_beside_other_programs_give_way_to_quiet_ones() -> None:
    visits = []
    for state, (linear, pairs) in enumerate(points()):
        quiet = seconds_of(linear, pairs)
        for foreign, slowdown in ((0.9, 4.0), (0.8, 3.0), (0.01, 1.0), (0.02, 1.0), (0.7, 2.0)):
            times = [quiet * slowdown] * 3
            visits.append(visit(state, foreign, Measured("prefill", 1, 0, linear, pairs, times)))
            steps = [slowdown * (1e-6 * linear + 1e-9 * pairs + 1e-3)] * 3
            visits.append(visit(state, foreign, Measured("decode", 1, 0, linear, pairs, steps)))
    profile = fit_profile(visits, ["setup"], facts(), seed=0)
    found = profile.shares[0].decode
    assert (found.a, found.b, found.c, found.d) == pytest.approx((1e-6, 1e-9, 1e-3, 0.0), rel=1e-6)
    found = profile.shares[0].prefill
    assert (found.a, found.b, found.c, found.d) == pytest.approx((TRUE.a, TRUE.b, TRUE.c, TRUE.d), rel=1e-6)


def test_noise_is_measured_against_the_visit_it_belongs_to() -> None:
    """A machine that is slow for a minute has no more jitter for it."""
    draw = random.Random(4)
    visits = []
    for number in range(300):
        drift = 1.0 if number % 2 else 3.0
        times = [drift * draw.lognormvariate(0, 0.04) * (5.0 if draw.random() < 0.01 else 1.0) for _ in range(20)]
        visits.append(visit(number, 0.0, Measured("decode", 1, 0, 10, 1, times)))
    noise = noise_of(visits)
    assert noise.sigma == pytest.approx(0.04, rel=0.1)
    assert noise.tail_probability == pytest.approx(0.01, rel=0.3)
    assert noise.tail_factor == pytest.approx(5.0, rel=0.1)


def test_too_few_repeats_tell_nothing_about_noise() -> None:
    noise = noise_of([visit(0, 0.0, Measured("decode", 1, 0, 10, 1, [1.0, 2.0]))])
    assert (noise.sigma, noise.tail_probability) == (0.0, 0.0)


@pytest.mark.parametrize(("factor", "expected"), [(1.7, 1.7), (0.8, 1.0)])
def test_contention_is_the_ratio_to_the_phase_alone_and_never_a_gain(factor: float, expected: float) -> None:
    alone = DeviceProfile(
        name="d", source="s", units=2, granularity=1, num_layers=1, shares=[ShareProfile(1, TRUE, STEP)], model="m"
    )
    samples = [
        Sample(phase, 1, 1, linear, pairs, factor * seconds_of(linear, pairs, k), index % 4 == 0)
        for phase, k in (("prefill", TRUE), ("decode", STEP))
        for index, (linear, pairs) in enumerate(points())
    ]
    profile = with_contention(alone, samples)
    (pair,) = profile.contention
    assert (pair.prefill_units, pair.decode_units) == (1, 1)
    assert (pair.prefill, pair.decode) == pytest.approx((expected, expected))
    assert {error.phase for error in profile.errors} == {"prefill", "decode"}
    assert all(error.contended and error.num_samples == 5 for error in profile.errors)
    assert all(error.max == pytest.approx(expected / factor - 1, abs=1e-9) for error in profile.errors)


def facts() -> DeviceFacts:
    return DeviceFacts("device", "test", 1, 1, 1, "model", "float32", 0, {}, "now")


@pytest.mark.parametrize(
    ("seconds", "mean_s", "waited", "expected"),
    [
        ([1.0, 1.0, 9.0], 3.7, 0.0, 1.0),  # a tail is left out
        ([1.0] * 9 + [5.0], 1.4, 0.3, 1.0),  # short ones: one was cut, the median never noticed
        ([2.0, 3.2, 2.8], 2.5, 0.4, 1.5),  # long ones: all were cut, by two fifths of their time
        ([2.0] * 8, 2.0, 0.9, 2.0),  # it waited while it was not measured: never less than the quickest of many
        ([2.0] * 3, 2.0, 1.0, 0.4),  # nor down to nothing
    ],
)
def test_the_time_a_worker_waited_for_a_core_is_not_the_devices(
    seconds: list[float], mean_s: float, waited: float, expected: float
) -> None:
    assert typical_s(Measured("prefill", 1, 0, 10, 50, seconds, waited, mean_s)) == pytest.approx(expected)


def test_on_several_cores_the_others_go_on_while_one_waits() -> None:
    assert typical_s(Measured("prefill", 2, 0, 10, 50, [2.0, 3.0, 4.0], 0.4, 3.0)) == 3.0
