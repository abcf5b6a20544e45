"""Run as a process: prints what these cores can do at most, as one line of JSON. About 60 ms of measuring.

Floating-point rate: float32 matrix products of [256, 512] by [512, 512], a prefill's shape, on all cores at once.
Bandwidth: sums over buffers that no cache holds, on one core and on all. Best of several rounds each.
Started with one BLAS thread per process: the threads here are ours.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable

import numpy as np

_ROWS, _WIDTH = 256, 512
_BUFFER_BYTES = 32 << 20  # per core
_ROUNDS = 5


def main() -> None:
    num_cores = len(os.sched_getaffinity(0))
    left = np.ones((_ROWS, _WIDTH), np.float32)
    right = np.ones((_WIDTH, _WIDTH), np.float32)
    buffers = [np.ones(_BUFFER_BYTES // 4, np.float32) for _ in range(num_cores)]

    def multiply(_: int) -> float:
        left @ right
        return 2.0 * _ROWS * _WIDTH * _WIDTH

    def read(index: int) -> float:
        np.max(buffers[index])
        return float(_BUFFER_BYTES)

    facts = {
        "flops_per_s": _best_rate(multiply, num_cores),
        "bytes_per_s": _best_rate(read, num_cores),
        "one_core_bytes_per_s": _best_rate(read, 1),
    }
    print(json.dumps(facts))


def _best_rate(work: Callable[[int], float], num_threads: int) -> float:
    """Work per second of all threads together, the best of each. By the threads' own processor time: on a busy machine
    the clock on the wall also counts the others."""
    rates = [0.0] * num_threads

    def run(index: int) -> None:
        for _ in range(_ROUNDS):
            started_s = time.thread_time()
            amount = work(index)
            rates[index] = max(rates[index], amount / (time.thread_time() - started_s))

    threads = [threading.Thread(target=run, args=(index,)) for index in range(num_threads)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(rates)


if __name__ == "__main__":
    main()
