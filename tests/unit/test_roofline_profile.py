"""The shipped H200 profile is what its own formula says, and is read as the emulated device will read it."""

from __future__ import annotations

from pathlib import Path

import pytest

from colocate.config.profile import Coefficients, load_profile

PROFILE = Path(__file__).parents[2] / "configs/profiles/emulated-h200-roofline.yaml"

UNITS = 132
FLOPS, COMPUTE_EFFICIENCY = 989e12, 0.6
BANDWIDTH, BANDWIDTH_EFFICIENCY, SATURATING_UNITS = 4.8e12, 0.8, 56
PARAMETERS, NUM_LAYERS, HIDDEN, KV_BYTES_PER_TOKEN = 8.03e9, 32, 4096, 131072
PREFILL_OVERHEAD_S, DECODE_OVERHEAD_S = 1e-3, 5e-4


def roofline(units: int) -> tuple[Coefficients, Coefficients]:
    flops = FLOPS * COMPUTE_EFFICIENCY * units / UNITS
    bandwidth = BANDWIDTH * BANDWIDTH_EFFICIENCY * min(1.0, units / SATURATING_UNITS)
    weights_s = 2 * PARAMETERS / bandwidth
    prefill = Coefficients(2 * PARAMETERS / flops, 4 * NUM_LAYERS * HIDDEN / flops, weights_s + PREFILL_OVERHEAD_S)
    decode = Coefficients(KV_BYTES_PER_TOKEN / bandwidth, 2 * PARAMETERS / flops, weights_s + DECODE_OVERHEAD_S)
    return prefill, decode


def test_every_share_follows_the_formula() -> None:
    profile = load_profile(PROFILE)
    assert profile.units == UNITS and profile.num_layers == NUM_LAYERS
    assert [share.units for share in profile.shares] == [*range(8, 129, 8), 132]
    for share in profile.shares:
        prefill, decode = roofline(share.units)
        for found, expected in ((share.prefill, prefill), (share.decode, decode)):
            assert (found.a, found.b, found.c) == pytest.approx((expected.a, expected.b, expected.c), rel=1e-3)


def test_the_file_says_that_it_is_not_measured() -> None:
    assert "not measured" in load_profile(PROFILE).source
