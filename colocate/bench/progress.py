"""What a run shows while it goes: a live line on a terminal, else a plain line every ten seconds."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from itertools import pairwise

from rich.console import Console
from rich.live import Live
from rich.table import Table

from colocate.bench.loop import LoadRun
from colocate.bench.records import RequestRow
from colocate.telemetry.quantiles import quantile

_RECENT = 200
_LIVE_S = 0.5
_PLAIN_S = 10.0
_RATE_S = 10.0  # the rate shown is that of so many seconds


class Progress:
    """Of one run. `note` gets every row; `run` shows until it is cancelled."""

    def __init__(
        self, load: LoadRun, duration_s: float, console: Console | None = None, *, quiet: bool = False
    ) -> None:
        self._load = load
        self._duration_s = duration_s
        self._console = console or Console(stderr=True, highlight=False)
        self._quiet = quiet
        self._ttft_s: deque[float] = deque(maxlen=_RECENT)
        self._itl_s: deque[float] = deque(maxlen=_RECENT)
        self._ended_s: deque[float] = deque()

    def note(self, row: RequestRow) -> None:
        self._ended_s.append(self._load.clock())
        if row.token_s:
            self._ttft_s.append(row.token_s[0] - row.scheduled_s)
        if len(row.token_s) > 1:
            self._itl_s.append(_median([later - earlier for earlier, later in pairwise(row.token_s)]))

    async def run(self) -> None:
        if self._quiet:
            return
        if not self._console.is_terminal:
            while True:
                await asyncio.sleep(_PLAIN_S)
                self._console.print(", ".join(f"{name} {value}" for name, value in self._cells()), soft_wrap=True)
        with Live(self._table(), console=self._console, transient=True, auto_refresh=False) as live:
            while True:
                live.update(self._table(), refresh=True)
                await asyncio.sleep(_LIVE_S)

    def _cells(self) -> list[tuple[str, str]]:
        counts, now_s = self._load.counts, self._load.clock()
        failed = sum(number for outcome, number in counts.outcomes.items() if outcome not in ("finished", "rejected"))
        return [
            ("time", f"{now_s:.0f}/{self._duration_s:.0f} s"),
            ("sent", f"{counts.sent}" if self._load.is_closed else f"{counts.sent}/{counts.offered}"),
            ("per s", f"{self._rate(now_s):.2f}"),
            ("in flight", str(counts.in_flight)),
            ("TTFT p50", _ms(self._ttft_s)),
            ("ITL p50", _ms(self._itl_s)),
            ("rejected", str(counts.outcomes.get("rejected", 0))),
            ("failed", str(failed)),
        ]

    def _rate(self, now_s: float) -> float:
        """Requests that ended, per second, lately."""
        while self._ended_s and self._ended_s[0] < now_s - _RATE_S:
            self._ended_s.popleft()
        return len(self._ended_s) / min(max(now_s, 1.0), _RATE_S)

    def _table(self) -> Table:
        table = Table(box=None, pad_edge=False)
        cells = self._cells()
        for name, _ in cells:
            table.add_column(name, justify="right", style="cyan", header_style="dim")
        table.add_row(*(value for _, value in cells))
        return table


def _median(values: Sequence[float]) -> float:
    return quantile(sorted(values), 0.5)


def _ms(values: Sequence[float]) -> str:
    return f"{_median(values) * 1e3:.1f} ms" if values else "-"
