"""Work launched on the device and not handled yet, oldest first: what it was, and when it ran.

A piece is due from when it is launched, or from when the piece ahead of it ended: so its time is the device's own, not
that of the launch, and adds up to the time the device was busy.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

from colocate.worker.progress import Progress

W = TypeVar("W")


@dataclass(slots=True)
class Piece(Generic[W]):
    work: W
    amount: int  # tokens, rows: what its time scales with
    started_ns: int = 0  # 0: a piece ahead of it is under way


class Flight(Generic[W]):
    """Owned by one loop. The board's deadline is always that of the oldest piece."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._pieces: deque[Piece[W]] = deque()

    def __len__(self) -> int:
        return len(self._pieces)

    def __iter__(self) -> Iterator[W]:
        return (piece.work for piece in self._pieces)

    @property
    def oldest(self) -> W:
        return self._pieces[0].work

    def add(self, work: W, amount: int) -> None:
        """It is launched now."""
        self._pieces.append(Piece(work, amount))
        self._begin_oldest()

    def land(self) -> tuple[int, int]:
        """The oldest piece is done: when it began and ended, monotonic ns."""
        finished_ns = self._progress.end()
        started_ns = self._pieces.popleft().started_ns
        self._begin_oldest()
        return started_ns, finished_ns

    def withdraw(self, is_void: Callable[[W], bool]) -> None:
        """Forget pieces that nobody waits for any more."""
        self._pieces = deque(piece for piece in self._pieces if not is_void(piece.work))
        self._begin_oldest()

    def clear(self) -> None:
        self._pieces.clear()

    def _begin_oldest(self) -> None:
        if self._pieces and not self._pieces[0].started_ns:
            self._pieces[0].started_ns = self._progress.begin(self._pieces[0].amount)
