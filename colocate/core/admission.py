"""How many prompt tokens the next forward may hold: all there is room for, or throttled by load and KV pressure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from colocate.errors import ConfigError

# gLLM's own values are 8 and 32, for a pipeline of several stages that all need something to do. Here one worker runs
# one forward at a time, and a forward of less than some hundred tokens takes as long as one of some hundred: it has to
# read the weights.
ITER_P = 8
MIN_P = 256

# The reserve: gLLM's KV threshold as the floor, and how it adapts.
MIN_RESERVE = 0.05
MAX_RESERVE = 0.40
RESERVE_STEP = 0.02
RESERVE_HALF_LIFE_S = 30.0


class Admission(Protocol):
    """Owned by the engine. Time is an argument and never runs back."""

    def budget(self, most: int, waiting_tokens: int, kv_free: float, now_ns: int, is_idle: bool) -> int:
        """Prompt tokens of the next forward, `0 .. most`.

        `most` is what a forward may hold at all, `waiting_tokens` what is not computed yet of those that wait or are in
        prefill, `kv_free` the share of the pool that is free or only cached. `is_idle`: nothing is in flight in either
        phase, so no event will come that frees memory and raises the budget; then `most` is allowed, or what waits
        would wait for ever. Whether the pool has blocks for it is not asked here.
        """
        ...

    def preempted(self, now_ns: int) -> None:
        """A running request lost its blocks to another, or a row waited for a block: too much had been admitted."""
        ...


class Greedy:
    """Always the whole forward."""

    __slots__ = ()

    def budget(self, most: int, waiting_tokens: int, kv_free: float, now_ns: int, is_idle: bool) -> int:
        return most

    def preempted(self, now_ns: int) -> None:
        """Nothing is learnt from it."""


class Throttle:
    """Token throttling (gLLM, arXiv 2504.14775: its two limits, by waiting tokens and by KV use, at once):

        budget = min(round(maxp * (free - reserve) / (1 - reserve)), max(waiting_tokens // iterp, minp))

    with maxp = `most`, and never below 0. The first term lets prefill fade out before the pool is full, so that rows in
    decode have blocks to grow into; the second spreads a burst over about `iterp` forwards.

    The reserve adapts, which gLLM's constant does not: it rises by RESERVE_STEP with each preemption, up to
    MAX_RESERVE, and what it stands above MIN_RESERVE halves every RESERVE_HALF_LIFE_S.
    """

    __slots__ = ("_excess", "_excess_ns", "_iter_p", "_min_p")

    def __init__(self, iter_p: int = ITER_P, min_p: int = MIN_P) -> None:
        self._iter_p = iter_p
        self._min_p = min_p
        self._excess = 0.0  # of the reserve over MIN_RESERVE, at `_excess_ns`
        self._excess_ns = 0

    def reserve(self, now_ns: int) -> float:
        """Share of the pool that prefill leaves alone now."""
        elapsed_s = (now_ns - self._excess_ns) / 1e9
        excess: float = self._excess * 0.5 ** (elapsed_s / RESERVE_HALF_LIFE_S)
        return MIN_RESERVE + excess

    def budget(self, most: int, waiting_tokens: int, kv_free: float, now_ns: int, is_idle: bool) -> int:
        if is_idle:
            return most
        reserve = self.reserve(now_ns)
        by_memory = round(most * (kv_free - reserve) / (1 - reserve))
        by_waiting = max(waiting_tokens // self._iter_p, self._min_p)
        return max(min(by_memory, by_waiting, most), 0)

    def preempted(self, now_ns: int) -> None:
        self._excess = min(self.reserve(now_ns) + RESERVE_STEP, MAX_RESERVE) - MIN_RESERVE
        self._excess_ns = now_ns


ADMISSIONS: dict[str, Callable[[], Admission]] = {"throttle": Throttle, "greedy": Greedy}


def choose_admission(name: str) -> Admission:
    """Raises ConfigError."""
    admission = ADMISSIONS.get(name)
    if admission is None:
        raise ConfigError("admission", f"there is no {name!r}", "choose from: " + ", ".join(ADMISSIONS))
    return admission()
