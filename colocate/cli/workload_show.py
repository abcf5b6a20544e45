"""`colocate workload show`: a workload on one screen, and the same figures as JSON."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import msgspec
from msgspec import Struct
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from colocate.telemetry.quantiles import quantile
from colocate.workload.read import Reading, read_trace
from colocate.workload.rows import Workload
from colocate.workload.sharing import shared_tokens

_BARS = "▁▂▃▄▅▆▇█"
_SPARK_COLUMNS = 60
_HISTOGRAM_COLUMNS = 40
_SHARES = {"p1": 0.01, "p50": 0.5, "p90": 0.9, "p99": 0.99}


class TokenFigures(Struct, frozen=True):
    """Lengths of prompts or answers, in tokens."""

    total: int
    mean: float
    min: int
    p1: float
    p50: float
    p90: float
    p99: float
    max: int
    histogram: dict[int, int]  # requests by the power of two that their length reaches


class WorkloadFigures(Struct, frozen=True):
    """A workload in figures. The JSON of `colocate workload show --json`."""

    name: str
    format: str
    num_requests: int
    num_skipped: int
    duration_s: float
    rate: float  # requests per second
    gap_cv: float | None  # standard deviation of the gaps between arrivals over their mean: 1 is Poisson
    prompt: TokenFigures
    output: TokenFigures
    prefix_sharing: float  # share of prompt tokens that a cache without bounds finds
    num_sessions: int
    turns_per_session: float | None
    slo_classes: dict[str, int]  # "": those that name none
    requests_over_time: list[int]  # in equal parts of the duration


def workload_figures(workload: Workload, format: str, num_skipped: int = 0) -> WorkloadFigures:
    rows = workload.rows
    gaps = [after.arrival_s - before.arrival_s for before, after in pairwise(rows)]
    mean_gap_s = statistics.fmean(gaps) if gaps else 0.0
    turns = Counter(row.session for row in rows if row.session)
    over_time = [0] * min(_SPARK_COLUMNS, max(1, len(rows) // 2))
    for row in rows:
        part = int(row.arrival_s / workload.duration_s * len(over_time))
        over_time[min(part, len(over_time) - 1)] += 1
    return WorkloadFigures(
        name=workload.name,
        format=format,
        num_requests=len(rows),
        num_skipped=num_skipped,
        duration_s=workload.duration_s,
        rate=workload.rate,
        gap_cv=statistics.pstdev(gaps) / mean_gap_s if mean_gap_s > 0 else None,
        prompt=_tokens([row.prompt_tokens for row in rows]),
        output=_tokens([row.output_tokens for row in rows]),
        prefix_sharing=sum(shared_tokens(rows)) / sum(row.prompt_tokens for row in rows),
        num_sessions=len(turns),
        turns_per_session=turns.total() / len(turns) if turns else None,
        slo_classes=dict(sorted(Counter(row.slo_class for row in rows).items())),
        requests_over_time=over_time,
    )


def _tokens(lengths: Sequence[int]) -> TokenFigures:
    ordered = sorted(lengths)
    powers = Counter(length.bit_length() - 1 for length in ordered)
    return TokenFigures(
        total=sum(ordered),
        mean=statistics.fmean(ordered),
        min=ordered[0],
        max=ordered[-1],
        histogram={2**power: powers[power] for power in range(min(powers), max(powers) + 1)},
        **{name: quantile(ordered, share) for name, share in _SHARES.items()},
    )


def run_show(file: Path, reading: Reading, *, as_json: bool) -> None:
    """Raises ConfigError."""
    trace = read_trace(file, reading)
    figures = workload_figures(trace.workload, trace.format, trace.num_skipped)
    if as_json:
        print(msgspec.json.format(msgspec.json.encode(figures), indent=1).decode())
        return
    console = Console(highlight=False)
    console.print(f"[bold]{escape(figures.name)}[/] ({figures.format})")
    console.print(_facts(figures))
    console.print(f"rate over time, up to {_peak_rate(figures):.4g}/s")
    console.print(f"  {sparkline(figures.requests_over_time)}\n")
    console.print(_length_table(figures))
    for name, tokens in (("prompt", figures.prompt), ("output", figures.output)):
        console.print(f"\n{name} tokens")
        for line in histogram_lines(tokens.histogram):
            console.print(line)


def _facts(figures: WorkloadFigures) -> Table:
    table = Table.grid(padding=(0, 2))
    skipped = f", {figures.num_skipped} without tokens left out" if figures.num_skipped else ""
    table.add_row("requests", f"{figures.num_requests}{skipped}")
    table.add_row("duration", f"{figures.duration_s:.5g} s")
    cv = "" if figures.gap_cv is None else f", gaps vary by {figures.gap_cv:.2f} of their mean (Poisson: 1)"
    table.add_row("rate", f"{figures.rate:.4g}/s{cv}")
    table.add_row("prefix sharing", f"{figures.prefix_sharing:.1%} of prompt tokens")
    turns = "" if figures.turns_per_session is None else f", {figures.turns_per_session:.2f} turns each"
    table.add_row("conversations", f"{figures.num_sessions}{turns}")
    classes = ", ".join(f"{escape(name) or '(default)'} {number}" for name, number in figures.slo_classes.items())
    table.add_row("SLO classes", classes)
    return table


def _length_table(figures: WorkloadFigures) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("tokens", "total", "mean", "min", *_SHARES, "max"):
        table.add_column(column, justify="left" if column == "tokens" else "right")
    for name, tokens in (("prompt", figures.prompt), ("output", figures.output)):
        values = [tokens.total, tokens.mean, tokens.min, *(getattr(tokens, share) for share in _SHARES), tokens.max]
        table.add_row(name, *(f"{value:,.0f}" for value in values))
    return table


def _peak_rate(figures: WorkloadFigures) -> float:
    return max(figures.requests_over_time) * len(figures.requests_over_time) / figures.duration_s


def sparkline(numbers: Sequence[int]) -> str:
    """One character each; a blank is none at all."""
    top = max(*numbers, 1)
    return "".join(" " if number == 0 else _BARS[math.ceil(number / top * len(_BARS)) - 1] for number in numbers)


def histogram_lines(histogram: dict[int, int]) -> list[str]:
    """A bar to each power of two."""
    top = max(histogram.values())
    width = len(f"{2 * max(histogram) - 1:,}")
    lines = []
    for low, number in histogram.items():
        bar = "█" * math.ceil(number / top * _HISTOGRAM_COLUMNS)
        lines.append(f"  {low:>{width},} - {2 * low - 1:>{width},} {bar} {number}")
    return lines
