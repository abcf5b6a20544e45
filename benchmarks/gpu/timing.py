"""Seconds of work on a lane: CUDA events on its stream; on an inline lane, where work is done at once, the clock."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

import torch

from colocate.device.cuda.backend import Backend
from colocate.device.cuda.lane import Lane

WARM_UPS = 2


def times_s(
    backend: Backend, lane: Lane, work: Callable[[], object], repeats: int, warm_ups: int = WARM_UPS
) -> list[float]:
    """Each of `repeats` runs by itself. `work` launches on torch's current stream and does not wait.

    What was prepared on other streams is waited for first: a lane is ordered with none of them.
    """
    backend.driver.synchronize()
    with lane.use():
        for _ in range(warm_ups):
            work()
        if backend.is_fake:
            return [_clocked(work) for _ in range(repeats)]
        marks = []
        for _ in range(repeats):
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            begin.record()
            work()
            end.record()
            marks.append((begin, end))
    marks[-1][1].synchronize()
    return [begin.elapsed_time(end) / 1e3 for begin, end in marks]


def median_s(backend: Backend, lane: Lane, work: Callable[[], object], repeats: int, warm_ups: int = WARM_UPS) -> float:
    return statistics.median(times_s(backend, lane, work, repeats, warm_ups))


def _clocked(work: Callable[[], object]) -> float:
    started_s = time.perf_counter()
    work()
    return time.perf_counter() - started_s


def quantile(values: Sequence[float], share: float) -> float:
    """Nearest rank. Raises ValueError for no values."""
    if not values:
        raise ValueError("no samples")
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
