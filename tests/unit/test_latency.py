"""The latency model: interpolation between shares, contention, bounded correction, and the roofline prior."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from colocate.config.profile import Coefficients, ContentionProfile, DeviceProfile, ShareProfile
from colocate.core.latency import MAX_CORRECTION, LatencyModel, roofline_profile


def share(units: int) -> ShareProfile:
    """Prefill scales with the share to the last unit; decode saturates at 4 units."""
    bandwidth = min(units, 4)
    return ShareProfile(units, Coefficients(8 / units, 1 / units, 2.0), Coefficients(4 / bandwidth, 8 / units, 1.0))


def model(*units: int, contention: list[ContentionProfile] | None = None, total: int = 8) -> LatencyModel:
    shares = [share(each) for each in units]
    return LatencyModel(DeviceProfile("test device", "made up", total, 1, 4, shares, contention or []))


def test_a_profiled_share_is_its_own_formula() -> None:
    latency = model(2, 8)
    assert latency.prefill_s(2, 10, 50) == pytest.approx(4 * 10 + 0.5 * 50 + 2)
    assert latency.decode_s(8, 100, 6) == pytest.approx(100 + 6 + 1)


def test_a_few_tokens_behind_a_long_cache_pay_for_reading_it() -> None:
    k = Coefficients(1.0, 0.0, 2.0, 0.5)
    shares = [ShareProfile(2, k, k), ShareProfile(4, Coefficients(1.0, 0.0, 2.0, 0.25), k)]
    latency = LatencyModel(DeviceProfile("test device", "made up", 8, 1, 4, shares))
    assert latency.prefill_s(2, 4, 4 * (1000 + 2)) == pytest.approx(4 + 2 + 0.5 * 1002)
    assert latency.prefill_s(3, 4, 4 * 1002) == pytest.approx(6 + (0.25 + 0.25 / 3) * 1002), "linear in 1 / units"
    assert latency.prefill_s(2, 0, 0) == 2.0
    assert latency.hybrid_s(2, 4, 4 * 1002, 0, 0) == pytest.approx(latency.prefill_s(2, 4, 4 * 1002))
    assert latency.decode_s(2, 0, 0) == 2.0, "a term of prefill alone"


@pytest.mark.parametrize("units", range(2, 9))
def test_work_that_scales_with_the_share_is_exact_between_two(units: int) -> None:
    assert model(2, 8).prefill_s(units, 10, 50) == pytest.approx((80 + 50) / units + 2)


def test_a_saturated_phase_stays_flat_beyond_its_knee() -> None:
    latency = model(1, 4, 8)
    assert latency.decode_s(6, 100, 0) == latency.decode_s(4, 100, 0) == latency.decode_s(8, 100, 0)


def test_beyond_the_ends_the_nearest_share_holds() -> None:
    latency = model(2, 6)
    assert latency.prefill_s(1, 10, 0) == pytest.approx(latency.prefill_s(2, 10, 0))
    assert latency.prefill_s(8, 10, 0) == pytest.approx(latency.prefill_s(6, 10, 0))


def test_contention_is_that_of_the_pair_and_between_pairs_of_both() -> None:
    pairs = [ContentionProfile(6, 2, 1.1, 1.5), ContentionProfile(2, 6, 1.3, 1.1), ContentionProfile(8, 8, 2.0, 3.0)]
    latency = model(2, 8, contention=pairs)
    assert latency.contention(6, 2) == (1.1, 1.5)
    prefill, decode = latency.contention(4, 4)
    assert 1.1 < prefill < 1.3 and 1.1 < decode < 1.5, "the shared plan must not colour a split"
    assert latency.contention(8, 8) == (2.0, 3.0)
    assert latency.prefill_s(6, 10, 0, peer_units=2) == pytest.approx(1.1 * latency.prefill_s(6, 10, 0))
    assert latency.decode_s(2, 10, 1, peer_units=6) == pytest.approx(1.5 * latency.decode_s(2, 10, 1))


def test_without_a_measured_pair_only_overlap_costs() -> None:
    latency = model(2, 8)
    assert latency.contention(6, 2) == (1.0, 1.0)
    assert latency.contention(8, 8) == (2.0, 2.0)


def test_a_hybrid_forward_reads_the_weights_once() -> None:
    latency = model(8)
    rows, chunk = 4, 16
    together = latency.hybrid_s(8, chunk, chunk * chunk / 2, 100, rows)
    apart = latency.prefill_s(8, chunk, chunk * chunk / 2) + latency.decode_s(8, 100, rows)
    assert latency.prefill_s(8, chunk, chunk * chunk / 2) < together < apart
    assert latency.hybrid_s(8, 0, 0, 100, rows) == pytest.approx(latency.decode_s(8, 100, rows))
    assert latency.hybrid_s(8, chunk, 128, 0, 0) == pytest.approx(latency.prefill_s(8, chunk, 128))


def test_residuals_correct_one_phase_slowly_and_converge() -> None:
    latency = model(8)
    first = latency.prefill_s(8, 10, 0)
    for _ in range(400):
        latency.observe("prefill", latency.prefill_s(8, 10, 0), 1.4 * first)
    assert latency.prefill_s(8, 10, 0) == pytest.approx(1.4 * first, rel=0.01)
    assert latency.correction("decode") == 1.0
    assert latency.mean_error["prefill"] < 0.02, "what was learnt is no error any more"


@given(st.lists(st.tuples(st.floats(0, 1e3), st.floats(0, 1e6)), max_size=300))
def test_no_measurement_bends_the_model_beyond_its_bound(observed: list[tuple[float, float]]) -> None:
    latency = model(8)
    for predicted_s, measured_s in observed:
        latency.observe("decode", predicted_s, measured_s)
        assert latency.correction("decode") * (1 + 1e-12) >= 1 / MAX_CORRECTION
        assert latency.correction("decode") <= MAX_CORRECTION * (1 + 1e-12)


def test_one_long_tail_hardly_moves_it() -> None:
    latency = model(8)
    latency.observe("decode", 1.0, 1000.0)
    assert latency.correction("decode") < 1.03


def test_the_roofline_prior_follows_its_formula_and_says_what_it_is() -> None:
    profile = roofline_profile(
        device="eight cores", model="tiny", units=8, granularity=2, num_layers=4, hidden_size=64,
        num_parameters=1000, weight_bytes=4000, kv_bytes_per_token=32, flops_per_s=8e3, bytes_per_s=4e3,
        saturating_units=4, launch_s=0.0,
    )  # fmt: skip
    assert [each.units for each in profile.shares] == [2, 4, 6, 8]
    assert not profile.is_measured and "not measured" in profile.source
    half = profile.shares[1]
    assert half.prefill.a == pytest.approx(2 * 1000 / 4e3) and half.prefill.b == pytest.approx(4 * 4 * 64 / 4e3)
    assert half.decode.c == pytest.approx(1.0) and profile.shares[0].decode.c == pytest.approx(2.0)
    assert profile.shares[3].decode.a == half.decode.a, "four of eight units saturate the memory"
