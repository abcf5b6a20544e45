"""Getting on, as opposed to being alive: a deadline for the next boundary, from how long such work took so far."""

from __future__ import annotations

from collections.abc import Callable

from colocate.transport.board import Board
from colocate.types import Role

_SMOOTHING = 0.2  # weight of the newest observation


class WorkRate:
    """Exponentially weighted seconds per unit of work. Predicts 0 before the first observation."""

    def __init__(self) -> None:
        self._seconds_per_unit = 0.0

    def observe(self, amount: int, seconds: float) -> None:
        latest = seconds / max(amount, 1)
        known = self._seconds_per_unit
        self._seconds_per_unit = known + _SMOOTHING * (latest - known) if known else latest

    def predict(self, amount: int) -> float:
        return self._seconds_per_unit * amount


class Progress:
    """One worker's progress record on the board. `factor` and `floor_s` turn a prediction into a deadline."""

    def __init__(self, role: Role, board: Board, clock_ns: Callable[[], int], factor: float, floor_s: float) -> None:
        self._role = role
        self._board = board
        self._clock_ns = clock_ns
        self._factor = factor
        self._floor_s = floor_s
        self._rate = WorkRate()
        self._counter = 0
        self._amount = 0
        self._started_ns = 0

    def begin(self, amount: int) -> int:
        """Work of this size (tokens, rows) starts now; answers when (monotonic ns)."""
        now_ns = self._clock_ns()
        allowed_s = max(self._floor_s, self._factor * self._rate.predict(amount))
        self._counter += 1
        self._amount = amount
        self._started_ns = now_ns
        self._board.set_progress(self._role, self._counter, now_ns + int(allowed_s * 1e9))
        return now_ns

    def end(self) -> int:
        """The work is done; answers when. The deadline stands until the next `begin` or `idle`."""
        now_ns = self._clock_ns()
        self._rate.observe(self._amount, (now_ns - self._started_ns) / 1e9)
        return now_ns

    def idle(self) -> None:
        """Nothing is due."""
        if self._started_ns:
            self._started_ns = 0
            self._counter += 1
            self._board.set_progress(self._role, self._counter, 0)
