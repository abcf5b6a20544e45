"""A lane: where a worker's kernels go. One stream, confined to one share of the device.

Two implementations: `GreenLane` over a stream of a green context, and `InlineLane`, where work is done when a call
returns (torch on the CPU, Triton's interpreter): the worker's code runs unchanged on a machine without a GPU.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Protocol


class Mark(Protocol):
    """A point in a lane's work."""

    def is_done(self) -> bool:
        """Whether everything launched before it has finished. Raises CudaError where the GPU has faulted."""
        ...

    def wait(self) -> None:
        """Sleep, without spinning, until it is done."""
        ...


class Graph(Protocol):
    """Work that was captured once. It stays in the partition of the lane that captured it."""

    def replay(self) -> None:
        """Launch it on its lane. Inputs are whatever lies in the captured buffers now."""
        ...


class Lane(Protocol):
    """Owned by one worker. Kernels and copies issued inside `use()` go to it, in order."""

    @property
    def num_sms(self) -> int:
        """Read back from the driver; 0 on an inline lane stands for "not a GPU"."""
        ...

    def use(self) -> AbstractContextManager[None]: ...

    def mark(self) -> Mark:
        """After everything launched so far."""
        ...

    def follow(self, mark: Mark) -> None:
        """What is launched from here on waits, on the device, for `mark` of another lane of this process."""
        ...

    def capture(self, work: Callable[[], None]) -> Graph:
        """Record `work` without running it. Everything it needs was allocated and warmed up before."""
        ...


_TURN = threading.RLock()


@contextmanager
def _in_turn() -> Iterator[None]:
    with _TURN:
        yield


class _DoneMark:
    """Work of an inline lane is over when it was launched; only a faulted device is news."""

    def __init__(self, check: Callable[[], None]) -> None:
        self._check = check

    def is_done(self) -> bool:
        self._check()
        return True

    def wait(self) -> None:
        self._check()


class _InlineGraph:
    def __init__(
        self,
        work: Callable[[], None],
        check: Callable[[], None],
        replaying: Callable[[], AbstractContextManager[None]],
    ) -> None:
        self._work = work
        self._check = check
        self._replaying = replaying

    def replay(self) -> None:
        self._check()
        with _in_turn(), self._replaying():
            self._work()


class InlineLane:
    """`check` raises CudaError where the (fake) device has faulted; `replaying` is entered around a graph's replay."""

    def __init__(
        self,
        check: Callable[[], None] = lambda: None,
        replaying: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self._check = check
        self._replaying = replaying

    @property
    def num_sms(self) -> int:
        return 0

    def use(self) -> AbstractContextManager[None]:
        """Lanes of one process take turns: Triton's interpreter keeps the launch under way in globals."""
        self._check()
        return _in_turn()

    def mark(self) -> Mark:
        self._check()
        return _DoneMark(self._check)

    def follow(self, mark: Mark) -> None:
        self._check()

    def capture(self, work: Callable[[], None]) -> Graph:
        """The graph is the work itself: it reads the buffers it closed over when it is replayed."""
        self._check()
        return _InlineGraph(work, self._check, self._replaying)
