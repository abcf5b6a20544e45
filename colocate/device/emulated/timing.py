"""How long the emulated device takes for a slice or a step, and letting that time pass."""

from __future__ import annotations

import random
import time
from collections.abc import Callable

from colocate.config.profile import DeviceProfile, NoiseProfile
from colocate.core.latency import LatencyModel

# `time.sleep` wakes this much late on an idle kernel; the rest is spun.
_SPIN_S = 0.00015


class PhaseTimer:
    """Device time of one phase. Without a profile everything takes no time.

    `peer_units` answers how many units the other phase works on at this moment, 0 while it is idle.
    """

    def __init__(self, phase: str, profile: DeviceProfile | None, peer_units: Callable[[], int]) -> None:
        self._phase = phase
        self._profile = profile
        self._model = LatencyModel(profile) if profile else None
        self._peer_units = peer_units
        self._noise = _Noise(profile.noise if profile else NoiseProfile(), phase)
        self._num_units = 0

    def units_changed(self, num_units: int) -> None:
        self._num_units = num_units

    @property
    def num_slices(self) -> int:
        return self._profile.num_layers if self._profile else 4

    def prefill_slice_s(self, spans: list[tuple[int, int]], num_layers: int = 1) -> float:
        """So many layers of a forward over rows of (new, cached) tokens."""
        if self._profile is None or self._model is None:
            return 0.0
        linear = sum(new for new, _ in spans)
        pairs = sum(new * (cached + new / 2) for new, cached in spans)
        peer_units = self._peer_units()
        seconds = self._model.prefill_s(self._num_units, linear, pairs)
        if peer_units:
            seconds *= self._contended(self._model.contention(self._num_units, peer_units)[0])
        return seconds * num_layers / self._profile.num_layers * self._profile.noise.prefill_bias * self._noise.factor()

    def decode_step_s(self, sum_context: int, num_rows: int) -> float:
        if self._profile is None or self._model is None:
            return 0.0
        peer_units = self._peer_units()
        seconds = self._model.decode_s(self._num_units, sum_context, num_rows)
        if peer_units:
            seconds *= self._contended(self._model.contention(peer_units, self._num_units)[1])
        return seconds * self._profile.noise.decode_bias * self._noise.factor()

    def hybrid_step_s(self, spans: list[tuple[int, int]], sum_context: int, num_rows: int) -> float:
        """A chunk and the standing batch in one forward, on every unit."""
        if self._profile is None or self._model is None:
            return 0.0
        linear = sum(new for new, _ in spans)
        pairs = sum(new * (cached + new / 2) for new, cached in spans)
        bias = self._profile.noise.prefill_bias if spans else self._profile.noise.decode_bias
        return self._model.hybrid_s(self._num_units, linear, pairs, sum_context, num_rows) * bias * self._noise.factor()

    def _contended(self, factor: float) -> float:
        """The device's own contention, which may be stronger or weaker than the profile's."""
        assert self._profile is not None
        return max(1.0, 1.0 + (factor - 1.0) * self._profile.noise.contention_bias)

    @property
    def takes_time(self) -> bool:
        return self._profile is not None


class _Noise:
    """Seeded, so a run on the emulator can be repeated; its order follows the order of work."""

    def __init__(self, noise: NoiseProfile, phase: str) -> None:
        self._noise = noise
        self._random = random.Random(f"{noise.seed}/{phase}")

    def factor(self) -> float:
        noise = self._noise
        if not noise.sigma and not noise.tail_probability:
            return 1.0
        factor = self._random.lognormvariate(0.0, noise.sigma)
        if self._random.random() < noise.tail_probability:
            factor *= noise.tail_factor
        return factor


def pass_time(seconds: float, started_s: float | None = None) -> None:
    """Return `seconds` after `started_s` (`time.perf_counter`; default now): sleep, then spin the last bit."""
    until = (time.perf_counter() if started_s is None else started_s) + seconds
    remaining = until - time.perf_counter()
    if remaining > _SPIN_S:
        time.sleep(remaining - _SPIN_S)
    while time.perf_counter() < until:
        pass
