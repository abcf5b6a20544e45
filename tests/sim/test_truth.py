"""The device's own times: the formula where nothing differs, and every way of differing does what it says."""

from __future__ import annotations

import math
import statistics

import msgspec
import pytest

from colocate.config.profile import NoiseProfile, Sample
from colocate.core.latency import LatencyModel
from colocate.sim.settings import bend
from colocate.sim.truth import DeviceTruth
from tests.sim.devices import DEVICE

MODEL = LatencyModel(DEVICE)


def truth(noise: NoiseProfile = NoiseProfile(), error: float = 0.0, seed: str = "0") -> DeviceTruth:
    return DeviceTruth(DEVICE, noise, error, seed)


def test_without_errors_it_is_the_formula() -> None:
    device = truth()
    assert device.forward_s(4, 100, 5000.0, 0) == pytest.approx(100 * 1e-4 + 5000 * 2.5e-8 + 2e-3)
    assert device.step_s(4, 1000, 8, 0) == pytest.approx(1000 * 1e-7 + 8 * 1e-4 + 4e-3)
    assert device.forward_s(4, 100, 5000.0, 4) == pytest.approx(1.1 * device.forward_s(4, 100, 5000.0, 0))
    assert device.step_s(8, 1000, 8, 8) == pytest.approx(2.0 * device.step_s(8, 1000, 8, 0))
    assert device.hybrid_s(8, 100, 5000.0, 1000, 8) == pytest.approx(MODEL.hybrid_s(8, 100, 5000.0, 1000, 8))
    assert device.jitter() == 1.0


def test_biases_and_contention_of_its_own() -> None:
    device = truth(NoiseProfile(prefill_bias=1.3, decode_bias=0.8, contention_bias=2.0))
    assert device.forward_s(4, 100, 0.0, 0) == pytest.approx(1.3 * truth().forward_s(4, 100, 0.0, 0))
    assert device.step_s(4, 100, 1, 0) == pytest.approx(0.8 * truth().step_s(4, 100, 1, 0))
    assert device.step_s(4, 100, 1, 4) == pytest.approx(1.4 * device.step_s(4, 100, 1, 0))


def test_a_misfit_stays_for_similar_work_and_differs_elsewhere() -> None:
    device = truth(error=0.1)
    ratio = [device.step_s(4, context, 8, 0) / MODEL.decode_s(4, context, 8) for context in (1030, 1100, 2040)]
    assert ratio[0] == pytest.approx(ratio[1])
    assert ratio[0] == pytest.approx(ratio[2])
    other = device.step_s(4, 5000, 8, 0) / MODEL.decode_s(4, 5000, 8)
    assert abs(other - ratio[0]) > 1e-6


def test_the_spread_of_devices_is_the_error_asked_for() -> None:
    formula_s = MODEL.decode_s(4, 1000, 8)
    logs = [math.log(truth(error=0.1, seed=str(seed)).step_s(4, 1000, 8, 0) / formula_s) for seed in range(400)]
    # A bias and a misfit, both of sigma 0.1.
    assert statistics.stdev(logs) == pytest.approx(0.1 * math.sqrt(2), rel=0.15)
    assert abs(statistics.fmean(logs)) < 0.03


def test_held_out_samples_are_what_misfits_are_drawn_from() -> None:
    def sample(factor: float, held_out: bool) -> Sample:
        return Sample("decode", 4, 0, 1000, 8, factor * MODEL.decode_s(4, 1000, 8), held_out)

    samples = [sample(1.25, True), sample(0.5, True), sample(3.0, False)]
    device = DeviceTruth(msgspec.structs.replace(DEVICE, samples=samples), NoiseProfile(), 0.0, "0")
    ratios = {round(device.step_s(4, 2**size, 8, 0) / MODEL.decode_s(4, 2**size, 8), 6) for size in range(1, 16)}
    assert ratios == {1.25, 0.5}
    assert device.forward_s(4, 10, 0.0, 0) == pytest.approx(MODEL.prefill_s(4, 10, 0.0))


def test_jitter_has_its_spread_and_its_tail() -> None:
    device = truth(NoiseProfile(sigma=0.1))
    assert statistics.stdev(math.log(device.jitter()) for _ in range(2000)) == pytest.approx(0.1, rel=0.1)
    device = truth(NoiseProfile(tail_probability=0.1, tail_factor=5.0))
    drawn = [device.jitter() for _ in range(2000)]
    assert set(drawn) == {1.0, 5.0}
    assert drawn.count(5.0) == pytest.approx(200, rel=0.3)


def test_what_the_engine_believes_can_be_bent_and_is_seeded() -> None:
    assert bend(DEVICE, 0.0, 1).shares == DEVICE.shares
    bent = bend(DEVICE, 0.3, 1)
    assert bent == bend(DEVICE, 0.3, 1)
    assert bent != bend(DEVICE, 0.3, 2)
    factors = {share.decode.c / own.decode.c for share, own in zip(bent.shares, DEVICE.shares, strict=True)}
    assert len(factors) == len(DEVICE.shares)
    assert all(math.exp(-0.6) <= factor <= math.exp(0.6) for factor in factors)
    assert all(pair.prefill >= 1 and pair.decode >= 1 for pair in bent.contention)
