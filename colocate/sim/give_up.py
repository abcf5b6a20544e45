"""Ending a run that can no longer reach an attainment: what a search for goodput needs of an overloaded point."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from colocate.messages.slo import SloClass


class GiveUp:
    """Counts misses as they become certain and calls `stop` once there are more than `most_misses`."""

    __slots__ = ("_classes", "_most_misses", "_num_misses", "_prompt_tokens", "_stop")

    def __init__(
        self, most_misses: int, classes: Sequence[SloClass], prompt_tokens: Sequence[int], stop: Callable[[], None]
    ) -> None:
        """`classes` and `prompt_tokens` belong to the requests by index."""
        self._most_misses = most_misses
        self._classes = classes
        self._prompt_tokens = prompt_tokens
        self._stop = stop
        self._num_misses = 0

    def first_token(self, index: int, ttft_s: float) -> None:
        target_s = self._classes[index].ttft_target_s(self._prompt_tokens[index])
        if target_s is not None and ttft_s > target_s:
            self.missed()

    def finished(self, index: int, ttft_s: float, tpot_s: float | None, itl_p99_s: float | None) -> None:
        """A late first token was counted when it came."""
        slo = self._classes[index]
        target_s = slo.ttft_target_s(self._prompt_tokens[index])
        was_in_time = target_s is None or ttft_s <= target_s
        if was_in_time and (_is_over(tpot_s, slo.tpot_s) or _is_over(itl_p99_s, slo.itl_s)):
            self.missed()

    def missed(self) -> None:
        self._num_misses += 1
        if self._num_misses > self._most_misses:
            self._stop()


def _is_over(measured_s: float | None, target_s: float | None) -> bool:
    return measured_s is not None and target_s is not None and measured_s > target_s
