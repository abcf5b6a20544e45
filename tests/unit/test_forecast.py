"""The forecast of plans against closed forms, and what must hold whatever the profile says."""

from __future__ import annotations

import math
from dataclasses import replace

import msgspec
import pytest

from colocate.config.plan_file import Load
from colocate.config.profile import Coefficients, ContentionProfile, DeviceProfile, ShareProfile
from colocate.config.slo import SloClass
from colocate.core.forecast import (
    Limits,
    PlanForecast,
    best_static,
    choose_best,
    dominated_by,
    forecast_plans,
)
from colocate.core.latency import LatencyModel
from colocate.core.plan import build_plan_table
from colocate.errors import ConfigError

LIMITS = Limits(max_num_seqs=64, max_num_batched_tokens=1000)
SLO = SloClass("target", ttft_s=1.0, tpot_s=0.1)


def profile_of(
    prefill: Coefficients, decode: Coefficients, units: int = 2, factors: tuple[float, float] = (1.0, 1.0)
) -> DeviceProfile:
    """The same curve on every share."""
    pairs = [ContentionProfile(1, units - 1, *factors), ContentionProfile(units, units, *factors)]
    return DeviceProfile(
        name="test",
        source="test",
        units=units,
        granularity=1,
        num_layers=4,
        shares=[ShareProfile(1, prefill, decode), ShareProfile(units, prefill, decode)],
        contention=pairs,
    )


def scaling_profile(units: int = 8) -> DeviceProfile:
    """Prefill scales with its share; decode saturates at half the device."""
    shares = [
        ShareProfile(
            n,
            Coefficients(1e-4 * units / n, 0.0, 0.002),
            Coefficients(0.0, 1e-4, 0.01 * max(1.0, units / (2 * n))),
        )
        for n in range(1, units + 1)
    ]
    return DeviceProfile("test", "test", units, 1, 4, shares, [ContentionProfile(4, 4, 1.1, 1.3)])


def load_of(rate: float, prompt: float = 100.0, output: float = 11.0, cv: float = 0.0) -> Load:
    square = 1 + cv * cv
    return Load(rate, prompt, prompt**2 * square, output, output**2 * square)


def forecast(profile: DeviceProfile, load: Load, slo: SloClass = SLO, limits: Limits = LIMITS) -> list[PlanForecast]:
    return forecast_plans(
        LatencyModel(profile), build_plan_table(profile.units, profile.granularity), load, slo, limits
    )


def test_prompts_of_one_length_wait_as_in_the_m_d_1_queue() -> None:
    """No fixed cost, so S is constant: W = rho * S / (2 * (1 - rho))."""
    split = forecast(profile_of(Coefficients(1e-3, 0, 0), Coefficients(0, 0, 0.001)), load_of(rate=8.0))[0]
    service_s, rho = 0.1, 0.8
    mean_s = rho * service_s / (2 * (1 - rho)) / rho
    assert split.prefill_utilisation == pytest.approx(rho)
    assert split.ttft_p90_s == pytest.approx(service_s + mean_s * math.log(rho / 0.1), rel=1e-6)
    assert split.ttft_p50_s == pytest.approx(service_s + mean_s * math.log(rho / 0.5), rel=1e-6)


def test_a_prompt_that_rarely_waits_takes_its_own_forwards() -> None:
    """1,500 tokens in forwards of 1,000 pay the fixed cost twice, and the pairs of the whole prompt once."""
    split = forecast(profile_of(Coefficients(1e-5, 1e-8, 0.02), Coefficients(0, 0, 0)), load_of(1e-6, prompt=1500))[0]
    assert split.ttft_p90_s == pytest.approx(1500e-5 + 1e-8 * 1500**2 / 2 + 2 * 0.02, rel=1e-6)


def test_waiting_prompts_share_forwards_so_that_the_fixed_cost_does_not_bound_the_rate() -> None:
    """Alone a prompt of 10 tokens takes 11 ms; a hundred share one forward, so 300 a second can be served."""
    split = forecast(profile_of(Coefficients(1e-4, 0, 0.01), Coefficients(0, 0, 0)), load_of(300.0, prompt=10))[0]
    assert split.prefill_utilisation < 1.0
    over = forecast(profile_of(Coefficients(1e-4, 0, 0.01), Coefficients(0, 0, 0)), load_of(1000.0, prompt=10))[0]
    assert over.prefill_utilisation == pytest.approx(1000 * (10e-4 + 0.01 * 10 / 1000))
    assert over.is_saturated and math.isinf(over.ttft_p50_s)


def test_long_prompts_among_short_ones_and_bursts_lengthen_the_wait() -> None:
    profile = profile_of(Coefficients(1e-3, 0, 0), Coefficients(0, 0, 0))
    even, mixed = forecast(profile, load_of(5.0))[0], forecast(profile, load_of(5.0, cv=1.5))[0]
    bursts = forecast(profile, msgspec.structs.replace(load_of(5.0), arrival_cv2=4.0))[0]
    assert mixed.ttft_p90_s > even.ttft_p90_s
    # Allen-Cunneen: with equal prompts the wait grows by (ca2 + 0) / 1.
    own_s, rho = 0.1, 0.5
    assert (bursts.ttft_p90_s - own_s) / (even.ttft_p90_s - own_s) == pytest.approx(4.0)
    assert (even.prefill_utilisation, mixed.prefill_utilisation) == pytest.approx((rho, rho))


def test_the_standing_batch_obeys_littles_law() -> None:
    """TPOT = c + k (1 + N) with N = rate * steps * TPOT and k = b + a * context."""
    a, b, c = 1e-6, 2e-4, 0.01
    split = forecast(profile_of(Coefficients(0, 0, 0), Coefficients(a, b, c)), load_of(20.0, prompt=100, output=11))[0]
    row_s = b + a * (100 + 10 * 10 / (2 * 10))
    rows = 20.0 * 10 * split.tpot_s
    assert split.tpot_s == pytest.approx(c + row_s * (1 + rows))
    assert split.tpot_p90_s > split.tpot_s


def test_rows_and_the_kv_pool_bound_decode() -> None:
    profile = profile_of(Coefficients(0, 0, 0), Coefficients(0, 0, 0.01))
    load = load_of(50.0, prompt=100, output=11)  # 500 tokens a second: five rows of 10 ms
    free = forecast(profile, load)[0]
    assert free.decode_utilisation == pytest.approx(500 * 0.01 / 64)
    few_rows = forecast(profile, load, limits=replace(LIMITS, max_num_seqs=4))[0]
    assert few_rows.decode_utilisation == pytest.approx(500 * 0.01 / 4)
    assert few_rows.is_saturated and math.isinf(few_rows.ttft_p90_s) and not few_rows.meets_slo
    pool = forecast(profile, load, limits=replace(LIMITS, kv_tokens=420))[0]
    assert pool.decode_utilisation == pytest.approx(500 * 0.01 / (420 / 105))


def test_contention_counts_for_as_long_as_the_other_phase_works() -> None:
    coefficients = Coefficients(1e-3, 0, 0), Coefficients(0, 0, 0.01)
    alone = forecast(profile_of(*coefficients), load_of(4.0))[0]
    beside = forecast(profile_of(*coefficients, factors=(1.0, 3.0)), load_of(4.0))[0]
    assert alone.tpot_s == pytest.approx(0.01)
    # Prefill works 40% of the time, and then decode makes a third of its tokens.
    assert beside.tpot_s == pytest.approx(0.01 / (0.6 + 0.4 / 3))
    slowed = forecast(profile_of(*coefficients, factors=(1.5, 1.0)), load_of(4.0))[0]
    busy = 1 - math.exp(-4.0 * 10 * 0.01)
    assert slowed.prefill_utilisation == pytest.approx(0.4 / (1 - busy + busy / 1.5))


def test_a_ttft_target_per_token_is_judged_prompt_by_prompt() -> None:
    """Every prompt takes 1 ms a token: 2 ms a token is kept by all, though the longest take seconds."""
    profile = profile_of(Coefficients(1e-3, 0, 0), Coefficients(0, 0, 0))
    slo = SloClass("target", ttft_per_token_s=2e-3)
    split = forecast(profile, load_of(1e-6, prompt=1000, cv=2.0), slo)[0]
    assert split.slo_ratio == pytest.approx(0.5, rel=5e-3)  # targets are of whole tokens


def test_the_best_static_plan_keeps_farthest_from_the_slo() -> None:
    forecasts = forecast(scaling_profile(), load_of(8.0, prompt=300, output=100, cv=1.0))
    best = choose_best(forecasts)
    assert best.plan.is_split
    assert best.slo_ratio == min(each.slo_ratio for each in forecasts if each.plan.is_split)
    model, table = LatencyModel(scaling_profile()), build_plan_table(8)
    assert best_static(model, table, load_of(8.0, prompt=300, output=100, cv=1.0), SLO, LIMITS) == best.plan
    # The tighter the per-token target, the more units decode gets.
    tight = best_static(
        model, table, load_of(8.0, prompt=300, output=100, cv=1.0), SloClass("t", ttft_s=60.0, tpot_s=0.015), LIMITS
    )
    loose = best_static(
        model, table, load_of(8.0, prompt=300, output=100, cv=1.0), SloClass("t", ttft_s=0.2, tpot_s=10.0), LIMITS
    )
    assert tight.decode_units > loose.decode_units


def test_where_no_plan_can_serve_the_load_the_least_overloaded_one_is_named() -> None:
    forecasts = forecast(scaling_profile(), load_of(1000.0, prompt=300, output=100))
    assert all(each.is_saturated and not each.meets_slo for each in forecasts)
    assert (
        choose_best(forecasts).plan
        == min(
            (each for each in forecasts if each.plan.is_split),
            key=lambda each: max(each.prefill_utilisation, each.decode_utilisation),
        ).plan
    )


def test_a_device_of_one_unit_has_the_shared_plan_only() -> None:
    profile = profile_of(Coefficients(1e-3, 0, 0), Coefficients(0, 0, 0.01), units=1)
    (only,) = forecast(profile, load_of(1.0))
    assert choose_best([only]).plan.name == "shared"


def test_a_dominated_plan_is_longer_everywhere_and_names_who_beats_it() -> None:
    forecasts = forecast(scaling_profile(), load_of(8.0, prompt=300, output=100))
    by_name = {each.plan.name: each for each in forecasts}
    found = dominated_by(forecasts)
    assert found  # decode gains next to nothing beyond half the device, prefill loses much
    for name, better in found.items():
        worse, by = by_name[name], by_name[better]
        assert by.plan.is_split
        assert by.ttft_p50_s <= worse.ttft_p50_s and by.ttft_p90_s <= worse.ttft_p90_s
        assert by.tpot_s <= worse.tpot_s and by.tpot_p90_s <= worse.tpot_p90_s
    assert choose_best(forecasts).plan.name not in found


@pytest.mark.parametrize(
    ("load", "slo", "limits", "says"),
    [
        (Load(1, 100, 9999, 10, 100), SLO, LIMITS, "prompt_tokens_square"),
        (Load(1, 100, 10000, 10, 99), SLO, LIMITS, "output_tokens_square"),
        (load_of(1.0), SloClass("none"), LIMITS, "promises nothing"),
        (load_of(1.0), SLO, Limits(64, 1000, kv_tokens=50), "do not hold one request"),
    ],
)
def test_what_cannot_be_is_refused(load: Load, slo: SloClass, limits: Limits, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        forecast(scaling_profile(), load, slo, limits)
