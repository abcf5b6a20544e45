"""Blocking until something can be read, on channels, control sockets and plain descriptors alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import zmq


class HasFileno(Protocol):
    def fileno(self) -> int: ...


class Waiter:
    """A fixed set of sources to wait on. Build once, wait often."""

    def __init__(self, sources: Sequence[HasFileno | int]) -> None:
        self._poller = zmq.Poller()
        for source in sources:
            # A ZMQ socket polled as itself is level-triggered; its bare descriptor would not be.
            self._poller.register(source if isinstance(source, int) else getattr(source, "socket", source), zmq.POLLIN)

    def wait(self, timeout_s: float | None) -> bool:
        """True where something is readable. None waits for ever; the resolution is one millisecond, rounded up."""
        timeout_ms = None if timeout_s is None else max(0, -int(-timeout_s * 1000 // 1))
        return bool(self._poller.poll(timeout_ms))


def wait(sources: Sequence[HasFileno | int], timeout_s: float | None) -> bool:
    """One-off form of `Waiter`, for sets of sources that change."""
    return Waiter(sources).wait(timeout_s)
