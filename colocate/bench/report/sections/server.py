"""KV, memory and energy as the servers told them; and what failed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from colocate.bench.report.collect import Evidence, Point
from colocate.bench.report.model import BarChart, Cell, Chart, Column, LineChart, Panel, Section, Series, Table
from colocate.bench.report.sections.rates import RATE_AXIS
from colocate.bench.report.words import count, number

_GIB = 2.0**30
_MAX_KINDS = 8  # in the chart; the table has all
_MAX_BARS = 12


def memory_section(evidence: Evidence) -> Section:
    """KV in use against rate; memory, preemptions, cache and energy as a table."""
    points = [point for point in evidence.points if any(view.figures.server.num_samples for view in point.views)]
    if not points:
        text = "No server told its KV use or its memory, so there is nothing to show."
        return Section("memory", "KV and memory", (text,))
    charts: list[Chart] = []
    series: list[Series] = []
    for arm in evidence.leading():
        of_arm = [point for point in evidence.of_arm(arm.name) if _peak(point, "kv_usage_peak") is not None]
        if of_arm:
            peaks = tuple(_times(_peak(point, "kv_usage_peak"), 100) for point in of_arm)
            series.append(Series(arm.name, arm.slot, tuple(point.rate or 0.0 for point in of_arm), peaks))
    if series and len(evidence.rates) > 1:
        gist = "; ".join(f"{line.label} {number(line.y[-1])} % at {line.x[-1]:g} requests/s" for line in series)
        charts.append(
            LineChart(
                "kv",
                "Peak of KV in use",
                f"{gist}.",
                RATE_AXIS,
                "KV in use, %",
                (Panel("", tuple(series)),),
                y_max=100.0,
            )
        )
    lead = ("Peaks and means of what the server told once a second in the measured window, worst of the seeds.",)
    return Section("memory", "KV and memory", lead, tuple(charts), (_table(points),))


def _peak(point: Point, name: str) -> float | None:
    known = [value for view in point.views if (value := getattr(view.figures.server, name)) is not None]
    return max(known, default=None)


def _times(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor


def _table(points: Sequence[Point]) -> Table:
    columns = (
        Column("arm"),
        Column("load"),
        Column("KV mean", "%"),
        Column("KV peak", "%"),
        Column("waiting, peak", "requests"),
        Column("preemptions"),
        Column("prompt tokens cached", "%"),
        Column("memory, peak", "GiB"),
        Column("power", "W"),
        Column("energy", "J/output token"),
    )
    rows = []
    for point in points:
        cached = [view.figures.cached_share for view in point.views if view.figures.cached_share is not None]
        shown = (
            _times(_peak(point, "kv_usage_mean"), 100), _times(_peak(point, "kv_usage_peak"), 100),
            _peak(point, "waiting_peak"), _peak(point, "num_preemptions"),
            _times(sum(cached) / len(cached) if cached else None, 100),
            _times(_peak(point, "memory_peak_bytes"), 1 / _GIB), _peak(point, "power_mean_w"),
            _peak(point, "joules_per_output_token"),
        )  # fmt: skip
        cells = (Cell(text="-", tone="muted") if value is None else Cell(value) for value in shown)
        rows.append((Cell(text=point.arm), Cell(text=point.load), *cells))
    return Table("memory-table", "KV, cache, memory and energy by point; `-` where the server did not tell.", columns,
                 tuple(rows), is_long=True)  # fmt: skip


def failures_section(evidence: Evidence) -> Section:
    """Requests that did not finish, by outcome and kind of error."""
    found: list[tuple[Point, Counter[str], int]] = []
    for point in evidence.points:
        kinds: Counter[str] = Counter()
        for view in point.views:
            kinds.update(view.figures.failures)
        found.append((point, kinds, sum(view.figures.num_offered for view in point.views)))
    failing = [(point, kinds, of) for point, kinds, of in found if kinds]
    num_offered = sum(of for _, _, of in found)
    total = sum(sum(kinds.values()) for _, kinds, _ in found)
    if not failing:
        text = f"All of the {count(num_offered, 'offered request')} that count finished."
        return Section("failures", "Failures", (text,))
    names = [kind for kind, _ in sum((kinds for _, kinds, _ in failing), Counter[str]()).most_common()]
    lead = f"{total:,} of {count(num_offered, 'offered request')} did not finish. Each counts as a miss."
    worst = sorted(failing, key=lambda each: -sum(each[1].values()) / each[2])[:_MAX_BARS]
    bars = tuple(f"{point.arm}, {point.load}" for point, _, _ in worst)
    parts = tuple((kind, tuple(kinds[kind] / of * 100 for _, kinds, of in worst)) for kind in names[:_MAX_KINDS])
    gist = "; ".join(f"{bar}: " + ", ".join(f"{kind} {num} of {of}" for kind, num in kinds.most_common(3))
                     for bar, (_, kinds, of) in zip(bars, worst, strict=True))  # fmt: skip
    title = "Requests that did not finish, % of offered"
    title += f": the {_MAX_BARS} worst of {len(failing)} points" if len(failing) > _MAX_BARS else ""
    chart = BarChart("failure-bars", title, f"{gist}.", "% of offered", bars, parts)
    columns = (
        Column("arm"),
        Column("load"),
        Column("offered", "requests"),
        *(Column(kind, "requests") for kind in names),
    )
    rows = tuple(
        (Cell(text=point.arm), Cell(text=point.load), Cell(of), *(Cell(kinds[kind]) for kind in names))
        for point, kinds, of in failing
    )
    table = Table("failure-table", "Requests that did not finish, by outcome and kind of error.", columns, rows,
                  is_long=len(rows) > _MAX_BARS)  # fmt: skip
    return Section("failures", "Failures", (lead,), (chart,), (table,))
