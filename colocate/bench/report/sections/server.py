"""KV, memory and energy: as the servers told, and as the sweep saw their processes."""

from __future__ import annotations

from collections.abc import Sequence

from colocate.bench.report.collect import Evidence, Point
from colocate.bench.report.model import Cell, Chart, Column, DotChart, LineChart, Mark, Panel, Section, Series, Table
from colocate.bench.report.sections.rates import RATE_AXIS
from colocate.bench.report.words import number

_GIB = 2.0**30


def memory_section(evidence: Evidence) -> Section:
    """KV in use against rate; memory, preemptions, cache and energy as a table."""
    points = [point for point in evidence.points if any(view.figures.server.num_samples for view in point.views)
              or _memory_gib(point) is not None]  # fmt: skip
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
            )
        )
    memory = _memory_by_arm(evidence, points)
    charts += [memory] if memory else []
    lead = (
        "KV: what the server told once a second in the measured window, the worst of the seeds. Memory: the server and "
        "all it has started at the end of a run, shared pages once; where no sweep looked, the peak of what it told.",
    )
    return Section("memory", "KV and memory", lead, tuple(charts), (_table(points),))


def _peak(point: Point, name: str) -> float | None:
    known = [value for view in point.views if (value := getattr(view.figures.server, name)) is not None]
    return max(known, default=None)


def _told(point: Point, name: str) -> float | None:
    """The highest of what the sweep noted about the server, over the seeds."""
    told = [view.run.manifest.figures.get(name) for view in point.views]
    return max((float(value) for value in told if isinstance(value, int | float)), default=None)


def _memory_gib(point: Point) -> float | None:
    seen = _told(point, "server_resident_bytes")
    return _times(_peak(point, "memory_peak_bytes") if seen is None else seen, 1 / _GIB)


def _memory_by_arm(evidence: Evidence, points: Sequence[Point]) -> DotChart | None:
    """Each arm's highest, over all loads. None where fewer than two are known."""
    marks: list[Mark] = []
    for arm in evidence.arms:
        known = [found for point in points if point.arm == arm.name and (found := _memory_gib(point)) is not None]
        if known:
            marks.append(Mark(arm.name, arm.slot, max(known)))
    marks.sort(key=lambda mark: mark.x)
    gist = "; ".join(f"{mark.label} {number(mark.x)} GiB" for mark in marks)
    title = "Memory of the server, most over all runs"
    return DotChart("memory-by-arm", title, f"{gist}.", "GiB", tuple(marks)) if len(marks) > 1 else None


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
        Column("memory", "GiB"),
        Column("start", "s"),
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
            _memory_gib(point), _told(point, "server_start_s"), _peak(point, "power_mean_w"),
            _peak(point, "joules_per_output_token"),
        )  # fmt: skip
        cells = (Cell(text="-", tone="muted") if value is None else Cell(value) for value in shown)
        rows.append((Cell(text=point.arm), Cell(text=point.load), *cells))
    caption = "KV, cache, memory and energy by point; a dash where the server did not tell."
    return Table("memory-table", caption, columns, tuple(rows), is_long=True)
