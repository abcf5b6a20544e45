"""The virtual clock: a heap of (time, sequence, event), so equal times keep the order they were asked for in."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Any

# Zero means "not yet" in many of the core's fields, so no run starts there.
START_NS = 1_000_000_000


class VirtualClock:
    """Owned by one run."""

    __slots__ = ("_heap", "_is_stopped", "_sequence", "now_ns")

    def __init__(self) -> None:
        self.now_ns = START_NS
        self._heap: list[tuple[int, int, Callable[[Any], None], Any]] = []
        self._sequence = 0
        self._is_stopped = False

    def at(self, time_ns: int, action: Callable[[Any], None], argument: Any) -> None:
        """Call `action(argument)` at `time_ns`, which must not be in the past."""
        self._sequence += 1
        heapq.heappush(self._heap, (time_ns, self._sequence, action, argument))

    def run(self, until_ns: int) -> None:
        """Until nothing is due any more, or the next thing is due after `until_ns`."""
        heap, pop = self._heap, heapq.heappop
        while heap and heap[0][0] <= until_ns and not self._is_stopped:
            self.now_ns, _, action, argument = pop(heap)
            action(argument)

    def stop(self) -> None:
        """`run` ends after the event it is at."""
        self._is_stopped = True
