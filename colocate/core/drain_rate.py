"""How fast the queue drains: the source of every `Retry-After`."""

from __future__ import annotations

MIN_RETRY_S = 1.0
MAX_RETRY_S = 60.0
HALF_LIFE_S = 10.0


class DrainRate:
    """Requests leaving the waiting queue per second, an exponentially decayed rate."""

    __slots__ = ("_count", "_since_ns")

    def __init__(self) -> None:
        self._count = 0.0
        self._since_ns = 0

    def left_queue(self, now_ns: int) -> None:
        self._decay(now_ns)
        self._count += 1.0

    def retry_after_s(self, num_waiting: int, now_ns: int) -> float:
        """Seconds until about half of what waits now has been taken; MAX_RETRY_S while nothing is being taken."""
        self._decay(now_ns)
        rate_per_s = self._count * 0.6931 / HALF_LIFE_S  # a steady rate r settles at a count of r * half-life / ln 2
        if rate_per_s <= 0.0:
            return MIN_RETRY_S if num_waiting == 0 else MAX_RETRY_S
        return min(max(num_waiting / rate_per_s / 2, MIN_RETRY_S), MAX_RETRY_S)

    def _decay(self, now_ns: int) -> None:
        if self._since_ns:
            self._count *= 0.5 ** ((now_ns - self._since_ns) / 1e9 / HALF_LIFE_S)
        self._since_ns = now_ns
