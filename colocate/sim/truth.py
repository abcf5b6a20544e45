"""How long the simulated device really takes. It is not the latency model that the engine predicts with.

    seconds = formula(profile) * bias * misfit(region) * jitter * tail, contended or not

* `bias`, one per phase: the profile's noise section, times exp(truth_error * N(0, 1)), drawn once per seed.
* `misfit`: a fit is wrong in the same way for similar work, so the error belongs to a region of (phase, share, size of
  the work by powers of two, contended or not) and stays for the run. Where the profile holds held-out samples, it is
  one of their ratios measured / predicted, drawn by region (a bootstrap); else exp(truth_error * N(0, 1)).
* `jitter` and `tail`, for every slice and step: lognormal, and rare long ones, from the profile's noise section.
* Contention is the profile's, its excess times `contention_bias` and exp(3 * truth_error * N(0, 1)): co-running work is
  what a profile knows least.
"""

from __future__ import annotations

import math
import random

from colocate.config.profile import DeviceProfile, NoiseProfile, Phase
from colocate.core.latency import LatencyModel

CONTENTION_ERROR = 3.0  # times truth_error
_Region = tuple[Phase, int, int, int, bool]


class DeviceTruth:
    """Owned by one simulated device. The same seed and the same order of work give the same times."""

    def __init__(self, profile: DeviceProfile, noise: NoiseProfile, truth_error: float, seed: str) -> None:
        self._model = LatencyModel(profile)  # never told what was measured, so it stays what the file says
        self._noise = noise
        self._error = truth_error
        self._seed = f"{noise.seed}/{seed}"
        character = random.Random(f"{self._seed}/character")
        self._prefill_bias = noise.prefill_bias * self._off(character)
        self._decode_bias = noise.decode_bias * self._off(character)
        self._contention_bias = noise.contention_bias * self._off(character, CONTENTION_ERROR)
        self._ratios = _held_out_ratios(profile, LatencyModel(profile))
        self._misfits: dict[_Region, float] = {}
        self._random = random.Random(f"{self._seed}/jitter")
        self.num_layers = profile.num_layers

    def forward_s(self, units: int, linear: int, pairs: float, peer_units: int) -> float:
        """A whole prefill forward, before jitter. Arguments as in `LatencyModel.prefill_s`."""
        seconds = self._model.prefill_s(units, linear, pairs) * self._prefill_bias
        if peer_units:
            seconds *= self._contended(self._model.contention(units, peer_units)[0])
        return seconds * self._misfit(("prefill", units, linear.bit_length(), int(pairs).bit_length(), peer_units > 0))

    def step_s(self, units: int, sum_context: int, num_rows: int, peer_units: int) -> float:
        """One decode step, before jitter."""
        seconds = self._model.decode_s(units, sum_context, num_rows) * self._decode_bias
        if peer_units:
            seconds *= self._contended(self._model.contention(peer_units, units)[1])
        region: _Region = ("decode", units, sum_context.bit_length(), num_rows.bit_length(), peer_units > 0)
        return seconds * self._misfit(region)

    def hybrid_s(self, units: int, linear: int, pairs: float, sum_context: int, num_rows: int) -> float:
        """One forward of mode `chunked`, before jitter: a chunk, the standing batch, or both."""
        seconds = self._model.hybrid_s(units, linear, pairs, sum_context, num_rows)
        if linear:
            region: _Region = ("prefill", units, linear.bit_length(), int(pairs).bit_length(), False)
            return seconds * self._prefill_bias * self._misfit(region)
        region = ("decode", units, sum_context.bit_length(), num_rows.bit_length(), False)
        return seconds * self._decode_bias * self._misfit(region)

    def jitter(self) -> float:
        """The factor of one slice or step."""
        noise = self._noise
        factor = math.exp(self._random.gauss(0.0, noise.sigma)) if noise.sigma else 1.0
        if noise.tail_probability and self._random.random() < noise.tail_probability:
            factor *= noise.tail_factor
        return factor

    def _off(self, rng: random.Random, times: float = 1.0) -> float:
        return math.exp(times * self._error * rng.gauss(0.0, 1.0))

    def _contended(self, factor: float) -> float:
        return max(1.0, 1.0 + (factor - 1.0) * self._contention_bias)

    def _misfit(self, region: _Region) -> float:
        misfit = self._misfits.get(region)
        if misfit is None:
            rng = random.Random(f"{self._seed}/{region}")
            ratios = self._ratios.get((region[0], region[4])) or self._ratios.get((region[0], False))
            misfit = self._misfits[region] = rng.choice(ratios) if ratios else self._off(rng)
        return misfit


def _held_out_ratios(profile: DeviceProfile, model: LatencyModel) -> dict[tuple[Phase, bool], list[float]]:
    """Measured / predicted of the samples that the fit has not seen, by phase and contended or not."""
    ratios: dict[tuple[Phase, bool], list[float]] = {}
    for sample in profile.samples:
        if not sample.held_out:
            continue
        predict = model.prefill_s if sample.phase == "prefill" else model.decode_s
        predicted_s = predict(sample.units, sample.linear, sample.pairs, sample.peer_units)
        if predicted_s > 0:
            ratios.setdefault((sample.phase, sample.peer_units > 0), []).append(sample.seconds / predicted_s)
    return ratios
