"""The fake device's kernels: the proofs of `native/cuda`, acted out on the SMs of the launching stream.

A launch takes the time it would take on a GPU and returns when it is done. Under MPS, and within one process, kernels
run side by side. Two processes without MPS are time-sliced: each runs only while it holds a lock on this very file, so
two kernels together take twice as long and nothing stays behind when a process dies.

Not modelled: what other kernels of the same SMs cost, warps, caches, and launches that return before the work is done.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from colocate.device.cuda.driver import INVALID_VALUE, NOT_FOUND, cuda_error

_SLICE_NS = 2_000_000  # about what the hardware's time slice is
_THREADS_PER_SM = 2048
_MAX_THREADS_PER_BLOCK = 1024
_ROUND_NS = 150

Arguments = Sequence[tuple[str, int]]


@dataclass(frozen=True, slots=True)
class Launch:
    """What a fake kernel sees. `write` stores bytes at a device address and faults where nothing is mapped."""

    sm_ids: tuple[int, ...]
    grid: int
    block: int
    begin_ns: int
    hold: Callable[[int], int]  # occupy the SMs for so many ns; returns when that ended
    write: Callable[[int, bytes], None]


def _smid_probe(launch: Launch, arguments: Arguments) -> None:
    """smid.cu: each block holds its place for `spin_ns`."""
    smid_of_block, begin_of_block, end_of_block, spin_ns = _values(arguments, "ptr ptr ptr u64")
    _occupy(launch, spin_ns, smid_of_block, begin_of_block, end_of_block)


def _burn(launch: Launch, arguments: Arguments) -> None:
    """burn.cu: a round is 64 dependent multiply-adds of four cycles each at 1.7 GHz."""
    smid_of_block, begin_of_block, end_of_block, _, rounds = _values(arguments, "ptr ptr ptr ptr u32")
    _occupy(launch, rounds * _ROUND_NS, smid_of_block, begin_of_block, end_of_block)


def _values(arguments: Arguments, kinds: str) -> tuple[int, ...]:
    if [kind for kind, _ in arguments] != kinds.split():
        raise cuda_error("cuLaunchKernel", INVALID_VALUE)
    return tuple(value for _, value in arguments)


def _occupy(launch: Launch, block_ns: int, smid_of_block: int, begin_of_block: int, end_of_block: int) -> None:
    """Blocks go round the SMs, as many at a time as there is room for threads; each stays for `block_ns`."""
    at_a_time = len(launch.sm_ids) * (_THREADS_PER_SM // launch.block)
    waves = -(-launch.grid // at_a_time)
    took_ns = launch.hold(waves * block_ns) - launch.begin_ns
    sms, begins, ends = [], [], []
    for block in range(launch.grid):
        wave = block // at_a_time
        sms.append(launch.sm_ids[block % len(launch.sm_ids)])
        begins.append(launch.begin_ns + took_ns * wave // waves)
        ends.append(launch.begin_ns + took_ns * (wave + 1) // waves)
    launch.write(smid_of_block, bytes((ctypes.c_uint32 * launch.grid)(*sms)))
    launch.write(begin_of_block, bytes((ctypes.c_uint64 * launch.grid)(*begins)))
    launch.write(end_of_block, bytes((ctypes.c_uint64 * launch.grid)(*ends)))


_KERNELS: dict[str, Callable[[Launch, Arguments], None]] = {"smid_probe": _smid_probe, "burn": _burn}


class FakeKernel:
    """One of the kernels above, as a function of this process."""

    def __init__(
        self,
        name: str,
        image: bytes,
        sms_of: Callable[[int], tuple[int, ...]],
        write: Callable[[int, bytes], None],
        is_sliced: Callable[[], bool],
    ) -> None:
        """`image` is looked at only for the function's name, as a cubin's symbol table has it."""
        if name not in _KERNELS or name.encode() not in image:
            raise cuda_error("cuModuleGetFunction", NOT_FOUND)
        self._run = _KERNELS[name]
        self._sms_of = sms_of
        self._write = write
        self._is_sliced = is_sliced

    def launch(self, stream: int, grid: int, block: int, arguments: Arguments) -> None:
        if grid < 1 or not 1 <= block <= _MAX_THREADS_PER_BLOCK:
            raise cuda_error("cuLaunchKernel", INVALID_VALUE)
        sm_ids = self._sms_of(stream)
        begin_ns = time.monotonic_ns()
        hold = _hold_in_slices if self._is_sliced() else _hold
        self._run(Launch(sm_ids, grid, block, begin_ns, lambda ns: hold(begin_ns, ns), self._write), arguments)


def _hold(begin_ns: int, duration_ns: int) -> int:
    """Ends exactly when a GPU would have ended it; that this thread wakes later is not the device's doing."""
    end_ns = begin_ns + duration_ns
    while (left_ns := end_ns - time.monotonic_ns()) > 0:
        time.sleep(left_ns / 1e9)
    return end_ns


def _hold_in_slices(begin_ns: int, duration_ns: int) -> int:
    done_ns, end_ns = 0, begin_ns
    while done_ns < duration_ns:
        slice_ns = min(_SLICE_NS, duration_ns - done_ns)
        with _TURN:
            end_ns = _hold(max(end_ns, time.monotonic_ns()), slice_ns)
        done_ns += slice_ns
    return end_ns


class _Turn:
    """This process's turn on the device, among processes; its own threads share it."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._inside = 0
        self._fd = -1

    def __enter__(self) -> None:
        with self._guard:
            if not self._inside:
                # Opened anew each time: a descriptor that a fork shared would share the lock.
                self._fd = os.open(__file__, os.O_RDONLY | os.O_CLOEXEC)
                fcntl.flock(self._fd, fcntl.LOCK_EX)
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._guard:
            self._inside -= 1
            if not self._inside:
                os.close(self._fd)


_TURN = _Turn()
