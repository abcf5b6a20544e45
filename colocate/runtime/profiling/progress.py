"""How far the measuring is: a bar with the time left on a terminal, a line every tenth of the way elsewhere.

Drawn between visits only: a thread that redraws would take time from the workers that are being measured.
"""

from __future__ import annotations

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

_REDRAW_S = 0.5


class ProgressLine:
    """A context manager. `num_done` visits of `num_points` points were made before, in `spent_s` of `budget_s`."""

    def __init__(self, budget_s: float, spent_s: float, num_points: int, num_done: int) -> None:
        self._budget_s = budget_s
        self._num_points = num_points
        self._num_done = num_done
        self._console = Console(stderr=True)
        self._is_live = sys.stderr.isatty()
        self._next_redraw_s = 0.0
        self._next_tenth = int(10 * spent_s / budget_s) + 1
        columns = (
            TextColumn("  measuring "),
            BarColumn(30),
            TextColumn("{task.percentage:3.0f}%"),
            TimeRemainingColumn(),
            TextColumn("{task.description}"),
        )
        self._progress = Progress(*columns, console=self._console, auto_refresh=False, speed_estimate_period=3600)
        self._task = self._progress.add_task("", total=budget_s)
        self._progress.update(self._task, completed=spent_s)

    def __enter__(self) -> ProgressLine:
        if self._is_live:
            self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._is_live:
            if error is None:
                self._progress.update(self._task, completed=self._budget_s, description="")
            self._progress.stop()

    def show(self, spent_s: float, setup: str, state: int) -> None:
        """Before a visit."""
        rounds = self._num_done / self._num_points
        self._num_done += 1
        if self._is_live:
            if time.monotonic() >= self._next_redraw_s:
                self._next_redraw_s = time.monotonic() + _REDRAW_S
                text = f"round {int(rounds) + 1}: {setup}, state {state}"
                self._progress.update(self._task, completed=spent_s, description=text, refresh=True)
        elif spent_s >= self._next_tenth * self._budget_s / 10:
            self._next_tenth = int(10 * spent_s / self._budget_s) + 1
            left_s = max(0.0, self._budget_s - spent_s)
            sys.stderr.write(f"  measuring  {100 * spent_s / self._budget_s:3.0f}%, {left_s:.0f} s left\n")
            sys.stderr.flush()
