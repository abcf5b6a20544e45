"""How many layers the next slice of a prefill forward may run, so that nobody waits for it longer than promised."""

from __future__ import annotations

_SMOOTHING = 0.3  # weight of the newest observation


class SlicePace:
    """Measured seconds per layer and token, smoothed, on the share in force. Owned by one prefill loop.

    Forwards are kept apart by size, in powers of two: a layer over few tokens is bound by reading the weights, so its
    seconds per token say nothing about a long prompt, nor those about it. A size not met yet starts with one layer.
    """

    def __init__(self, max_slice_s: float) -> None:
        """`max_slice_s`: what a slice is to last at most. One layer is always allowed; with 0 it is always one."""
        self._max_slice_s = max_slice_s
        self._num_units = 0
        self._seconds: dict[tuple[int, int], float] = {}  # per layer and token

    def layers(self, num_tokens: int, context_len: int) -> int:
        """At least 1. `context_len`: of the longest row, its new tokens included."""
        seconds = self._seconds.get(_size(num_tokens, context_len))
        if not seconds or not num_tokens:
            return 1
        return max(1, int(self._max_slice_s / (seconds * num_tokens)))

    def observe(self, num_tokens: int, context_len: int, num_layers: int, seconds: float) -> None:
        """A slice of so many layers took so long, sampling included where it was the last."""
        if not num_tokens or not num_layers:
            return
        key, latest = _size(num_tokens, context_len), seconds / (num_layers * num_tokens)
        known = self._seconds.get(key)
        self._seconds[key] = latest if known is None else known + _SMOOTHING * (latest - known)

    def units_changed(self, num_units: int) -> None:
        """What was measured on one share is expected to scale with the units until it is measured again."""
        if not num_units:
            return
        if self._num_units:
            factor = self._num_units / num_units
            self._seconds = {key: seconds * factor for key, seconds in self._seconds.items()}
        self._num_units = num_units


def _size(num_tokens: int, context_len: int) -> tuple[int, int]:
    return num_tokens.bit_length(), context_len.bit_length()
