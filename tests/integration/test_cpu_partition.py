"""The CPU partition in a process of its own: every thread moves, and what the kernel says is what is reported."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from colocate.device.cpu.partition import CpuPartition
from colocate.errors import ConfigError

CORES = tuple(sorted(os.sched_getaffinity(0)))
needs_two_cores = pytest.mark.skipif(len(CORES) < 2, reason="one core cannot be partitioned")

_WORKER = """
import os, sys, threading, time
import numpy as np
from colocate.device.cpu.partition import CpuPartition

cores = tuple(int(core) for core in sys.argv[1].split(","))
partition = CpuPartition(cores)
stop = threading.Event()
helpers = [threading.Thread(target=stop.wait) for _ in range(5)]
for helper in helpers:
    helper.start()
everyone = [thread.native_id for thread in (*helpers, threading.main_thread())]

def masks():
    return {tuple(sorted(os.sched_getaffinity(thread))) for thread in everyone}

partition.apply((1,))
assert partition.realised() == (1,), partition.realised()
assert masks() == {(cores[1],)}, masks()
late = threading.Thread(target=stop.wait)
late.start()
assert os.sched_getaffinity(late.native_id) == {cores[1]}, "a new thread inherits the share"

partition.apply((0,))
assert partition.realised() == (0,)
assert masks() == {(cores[0],)}
started = time.perf_counter()
spent = 0
while time.perf_counter() - started < 0.05:
    spent += 1
with open("/proc/self/stat") as stat:
    assert int(stat.read().rsplit(")", 1)[1].split()[36]) == cores[0], "it runs where it was put"

partition.apply(())
assert partition.realised() == (), "an empty share"
assert masks() == {(cores[0],)}, "leaves threads where they are"
partition.apply(tuple(range(len(cores))))
assert partition.realised() == tuple(range(len(cores)))

# What somebody else changes behind our back is reported, not what was asked for.
partition.apply((0,))
os.sched_setaffinity(helpers[0].native_id, {cores[1]})
assert partition.realised() == (0, 1), partition.realised()

times = []
for turn in range(400):
    began = time.perf_counter()
    partition.apply((turn % 2,))
    times.append(time.perf_counter() - began)
stop.set()
print(f"median {sorted(times)[200] * 1e6:.0f} us, p99 {sorted(times)[395] * 1e6:.0f} us")
"""


@needs_two_cores
def test_every_thread_moves_with_the_share() -> None:
    cores = ",".join(map(str, CORES[:2]))
    done = subprocess.run([sys.executable, "-c", _WORKER, cores], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    print(done.stdout)


def test_cores_that_this_process_may_not_use_are_refused_by_number() -> None:
    with pytest.raises(ConfigError, match=r"may not use core\(s\) \[4242\]"):
        CpuPartition((CORES[0], 4242))
    with pytest.raises(ConfigError):
        CpuPartition(())
