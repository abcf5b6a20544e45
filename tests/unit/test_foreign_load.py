"""What the kernel says about other programs on our cores, asked of processes made busy on purpose."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from colocate.runtime.profiling.foreign import ForeignLoad, WaitingTime

BUSY = "import os, sys\nos.sched_setaffinity(0, {int(sys.argv[1])})\nwhile True: pass"


@pytest.fixture
def core() -> int:
    return min(os.sched_getaffinity(0))


@pytest.fixture
def rivals(core: int) -> Iterator[list[int]]:
    """Two endless loops on one core."""
    processes = [subprocess.Popen([sys.executable, "-c", BUSY, str(core)]) for _ in range(2)]
    yield [process.pid for process in processes]
    for process in processes:
        process.kill()
        process.wait()


def lap_until(probe: Iterator[float], enough: float) -> float:
    """The first lap over `enough`: on a busy machine a loop may get its core late."""
    return next(value for value in probe if value > enough)


def laps(load: ForeignLoad | WaitingTime) -> Iterator[float]:
    while True:
        time.sleep(0.1)
        yield load.lap()


def test_loops_of_others_are_foreign(core: int, rivals: list[int]) -> None:
    assert lap_until(laps(ForeignLoad([core], [os.getpid()])), 0.5) <= 1.0


def test_one_of_two_loops_on_a_core_waits(rivals: list[int]) -> None:
    assert lap_until(laps(WaitingTime(rivals[0])), 0.02) > 0.0


def test_a_process_that_is_gone_took_no_time(core: int) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    assert WaitingTime(gone.pid).lap() == 0.0
    assert ForeignLoad([core], [gone.pid]).lap() == 0.0
