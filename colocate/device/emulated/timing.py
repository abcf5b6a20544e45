"""How long the emulated device takes for a slice or a step, and letting that time pass."""

from __future__ import annotations

import random
import time
from collections.abc import Callable

from colocate.device.emulated.profile import DeviceProfile, NoiseProfile

# `time.sleep` wakes this much late on an idle kernel; the rest is spun.
_SPIN_S = 0.00015


class PhaseTimer:
    """Device time of one phase. Without a profile everything takes no time.

    `peer_units` answers how many units the other phase works on at this moment, 0 while it is idle.
    """

    def __init__(self, phase: str, profile: DeviceProfile | None, peer_units: Callable[[], int]) -> None:
        self._phase = phase
        self._profile = profile
        self._peer_units = peer_units
        self._noise = _Noise(profile.noise if profile else NoiseProfile(), phase)
        self._num_units = 0

    def units_changed(self, num_units: int) -> None:
        self._num_units = num_units

    @property
    def num_slices(self) -> int:
        return self._profile.num_layers if self._profile else 4

    def prefill_slice_s(self, spans: list[tuple[int, int]]) -> float:
        """One layer slice over rows of (new, cached) tokens."""
        if self._profile is None:
            return 0.0
        k = self._profile.coefficients("prefill", self._num_units)
        linear = sum(new for new, _ in spans)
        quadratic = sum(new * (cached + new / 2) for new, cached in spans)
        return self._shaped((k.a * linear + k.b * quadratic + k.c) / self._profile.num_layers)

    def decode_step_s(self, sum_context: int, num_rows: int) -> float:
        if self._profile is None:
            return 0.0
        k = self._profile.coefficients("decode", self._num_units)
        return self._shaped(k.a * sum_context + k.b * num_rows + k.c)

    @property
    def takes_time(self) -> bool:
        return self._profile is not None

    def _shaped(self, seconds: float) -> float:
        assert self._profile is not None
        peer_units = self._peer_units()
        if peer_units:
            seconds *= self._profile.contention_of(self._phase, self._num_units, peer_units)
        return seconds * self._noise.factor()


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
