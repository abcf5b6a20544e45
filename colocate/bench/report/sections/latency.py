"""How long requests waited for their first token and for each next one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from colocate.bench.metrics.latency import itl_s, tpot_s, ttft_s
from colocate.bench.metrics.window import offered
from colocate.bench.records import RequestRow
from colocate.bench.report.collect import Evidence, Point
from colocate.bench.report.model import (
    Arm,
    Cell,
    Chart,
    Column,
    LineChart,
    Mark,
    Panel,
    ScatterChart,
    Section,
    Series,
    Table,
)
from colocate.bench.report.sections.rates import RATE_AXIS, in_ms
from colocate.bench.report.words import listed, ms, number
from colocate.bench.statistics import Interval

_CDF_POINTS = 60
_SHARES = tuple(float(share) for share in np.linspace(0.0, 1.0, _CDF_POINTS))
_TAIL = tuple(float(1 - rest) for rest in np.geomspace(0.9, 1e-4, _CDF_POINTS))  # tokens of one event share a time
_VALUES: dict[str, Callable[[RequestRow], Sequence[float | None]]] = {
    "TTFT": lambda row: (ttft_s(row),),
    "TPOT": lambda row: (tpot_s(row),),
    "ITL": itl_s,
}


def latency_section(evidence: Evidence) -> Section:
    """Distributions at one rate; percentiles over all of them."""
    rate = evidence.reference_rate
    if rate is None:
        return Section("latency", "TTFT, TPOT and ITL", ("No arm has a valid run at an offered rate.",))
    at = evidence.at(rate)
    shown = {arm: at[arm.name] for arm in evidence.leading() if arm.name in at}
    slo = evidence.promises.default
    targets = {"TTFT": None if slo.ttft_per_token_s else slo.ttft_s, "TPOT": slo.tpot_s, "ITL": slo.itl_s}
    charts: list[Chart] = [_distribution(name, shown, rate, ms(targets[name])) for name in _VALUES]
    if len(evidence.rates) > 1:
        charts += [_against_rate(evidence, name) for name in ("ttft_s", "tpot_s")]
    lead = (
        f"Distributions are at {rate:g} requests/s, the highest rate that most arms have and at which at least one of "
        "them keeps its SLO. Of the gaps between tokens the long ones matter, so that chart shows how many are longer. "
        "Dash-dotted lines are targets. Requests that failed have no latency and are counted as misses above.",
    )
    return Section("latency", "TTFT, TPOT and ITL", lead, tuple(charts), (_table(at, rate),))


def _distribution(name: str, shown: Mapping[Arm, Point], rate: float, target_ms: float | None) -> LineChart:
    """How many values are at most so long; of gaps, how many are longer, down to one in ten thousand."""
    series: list[Series] = []
    words: list[str] = []
    is_tail = name == "ITL"
    shares = _TAIL if is_tail else _SHARES
    for arm, point in shown.items():
        values = np.asarray([value for view in point.views for row in offered(view.run) for value in _VALUES[name](row)
                             if value is not None], dtype=np.float64)  # fmt: skip
        if not len(values):
            continue
        known = [share for share in shares if not is_tail or (1 - share) * len(values) >= 1]
        at_ms = tuple(float(value) * 1e3 for value in np.quantile(values, known))
        y = tuple((1 - share if is_tail else share) * 100 for share in known)
        series.append(Series(arm.name, arm.slot, at_ms, y, has_marker=False))
        p50, p99 = (float(value) * 1e3 for value in np.quantile(values, (0.5, 0.99)))
        words.append(f"{arm.name}: p50 {number(p50)}, p99 {number(p99)} ms, n = {len(values):,}")
    title = f"{name} at {rate:g} requests/s: " + ("gaps longer than this" if is_tail else "requests up to this")
    return LineChart(f"cdf-{name.lower()}", title, "; ".join(words) + ".", f"{name}, ms",
                     "gaps, %" if is_tail else "requests, %", (Panel("", tuple(series)),), None,
                     None if is_tail else 100.0, level_x=target_ms, is_x_log=True, is_y_log=is_tail)  # fmt: skip


def _against_rate(evidence: Evidence, name: str) -> LineChart:
    label = name.removesuffix("_s").upper()
    panels: list[Panel] = []
    words: list[str] = []
    for share in ("p50", "p90", "p99"):
        series: list[Series] = []
        for arm in evidence.leading():
            points = [point for point in evidence.of_arm(arm.name) if point.figures]
            found = [getattr(getattr(point.figures, name), share) for point in points]
            if any(each.value is not None for each in found):
                series.append(_line(arm, points, found))
        panels.append(Panel(share, tuple(series)))
        ends = [each for each in series if each.y[-1] is not None]
        if ends:
            least, most = (choose(ends, key=lambda each: each.y[-1] or 0.0) for choose in (min, max))
            words.append(
                f"{share} at each arm's highest rate from {number(least.y[-1])} ms ({least.label}) to "
                f"{number(most.y[-1])} ms ({most.label})"
            )
    return LineChart(f"rate-{label.lower()}", f"{label} against offered rate", "; ".join(words) + ".", RATE_AXIS,
                     f"{label}, ms", tuple(panels), is_y_log=True)  # fmt: skip


def _line(arm: Arm, points: Sequence[Point], found: Sequence[Interval]) -> Series:
    return Series(
        arm.name,
        arm.slot,
        tuple(point.rate or 0.0 for point in points),
        tuple(ms(each.value) for each in found),
    )


def _table(at: Mapping[str, Point], rate: float) -> Table:
    columns = (
        Column("arm"), Column("answered", "requests"), Column("TTFT p50", "ms"), Column("TTFT p90", "ms"),
        Column("TTFT p99", "ms"), Column("TPOT p50", "ms"), Column("TPOT p90", "ms"), Column("TPOT p99", "ms"),
        Column("ITL p50", "ms"), Column("ITL p99", "ms"), Column("E2E p50", "ms"), Column("E2E p99", "ms"),
    )  # fmt: skip
    rows: list[tuple[Cell, ...]] = []
    for name, point in at.items():
        found = point.figures
        if found is None:
            continue
        shown = (
            found.ttft_s.p50,
            found.ttft_s.p90,
            found.ttft_s.p99,
            found.tpot_s.p50,
            found.tpot_s.p90,
            found.tpot_s.p99,
            found.itl_all_p50_s,
            found.itl_all_p99_s,
            found.e2e_s.p50,
            found.e2e_s.p99,
        )
        finished = sum(view.figures.num_finished for view in point.views)
        rows.append((Cell(text=name), Cell(finished), *map(in_ms, shown)))
    caption = f"Latencies at {rate:g} requests/s with 95% intervals; ITL over all gaps, mean of the runs' percentiles."
    return Table("latencies", caption, columns, tuple(rows), is_long=True)


def frontier_section(evidence: Evidence) -> Section | None:
    """TTFT against TPOT of the arms at one rate. None where fewer than two arms have both."""
    rate = evidence.reference_rate
    if rate is None:
        return None
    slots = {arm.name: arm.slot for arm in evidence.arms}
    marks: list[Mark] = []
    for name, point in evidence.at(rate).items():
        found = point.figures
        if found is None or found.ttft_s.p90.value is None or found.tpot_s.p90.value is None:
            continue
        x, y = found.tpot_s.p90, found.ttft_s.p90
        marks.append(Mark(name, slots[name], found.tpot_s.p90.value * 1e3, found.ttft_s.p90.value * 1e3,
                          ms(x.low), ms(x.high), ms(y.low), ms(y.high)))  # fmt: skip
    if len(marks) < 2:
        return None
    on_front = front(marks)
    ends = (f"TTFT {number(mark.y)} and TPOT {number(mark.x)} ms ({mark.label})" for mark in on_front)
    alt = f"Not beaten on both: {'; '.join(ends)}."
    default = evidence.promises.default
    targets = (ms(default.tpot_s), ms(default.ttft_s))
    chart = ScatterChart("frontier", f"P90 of TTFT against P90 of TPOT at {rate:g} requests/s", alt, "TPOT p90, ms",
                         "TTFT p90, ms", tuple(marks), tuple((mark.x, mark.y or 0.0) for mark in on_front),
                         targets)  # fmt: skip
    names = listed([mark.label for mark in on_front])
    lead = (
        f"Each arm at {rate:g} requests/s with 95% intervals; lower left is better. By their points, no arm beats "
        f"{names} on both. Dash-dotted lines are the targets of the default SLO class.",
    )
    return Section("frontier", "TTFT against TPOT", lead, (chart,))


def front(marks: Sequence[Mark]) -> list[Mark]:
    """Those that none beats on one axis without losing on the other, by rising x."""
    found: list[Mark] = []
    for mark in sorted(marks, key=lambda mark: (mark.x, mark.y or 0.0)):
        if not found or (mark.y or 0.0) < (found[-1].y or 0.0):
            found.append(mark)
    return found
