"""Attainment against rate, and the rate that keeps 90%."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from colocate.bench.metrics.attainment import Measure
from colocate.bench.report.collect import Evidence, Point
from colocate.bench.report.curves import RATE, Curve
from colocate.bench.report.model import (
    TARGET_SHARE,
    Arm,
    Cell,
    Chart,
    Column,
    Dash,
    DotChart,
    Goodput,
    LineChart,
    Mark,
    Panel,
    Section,
    Series,
    Table,
)
from colocate.bench.report.words import count, listed, number, percent
from colocate.bench.statistics import Proportion, proportion

LEVEL = TARGET_SHARE * 100
OVERVIEW = "attainment-all"
_NEAR_ZERO = 40.0  # percent: an axis that starts lower may as well start at zero
RATE_AXIS = "offered requests/s"
GOOD_AXIS = "requests within SLO, %"
_MEASURES: tuple[Measure, ...] = ("ttft", "tpot", "itl")
_DASH_OF: dict[Measure, Dash] = {"ttft": "dotted", "tpot": "dashed", "itl": "dashdot"}


def attainment_section(evidence: Evidence, found: Mapping[str, Curve]) -> Section:
    """One chart over all arms, one panel per arm, and every point as a table."""
    charts: list[Chart] = []
    if found and len(evidence.rates) > 1:
        charts = [_overview(evidence, found), _by_arm(evidence, found)]
    elif found:
        charts = [_at_one_rate(found, evidence.rates[0])]
    lead = (
        "A request is good if it finished and met every target of its class; latencies count from the scheduled time. "
        f"{_keeps(found)}"
    )
    return Section("attainment", "Attainment against rate", (lead,), tuple(charts), (_points_table(evidence),))


def _keeps(found: Mapping[str, Curve]) -> str:
    if not found:
        return "No arm has a valid run at an offered rate."
    keep = [name for name, curve in found.items() if not curve.is_below]
    return f"{len(keep)} of {count(len(found), 'arm')} keep {LEVEL:g}% at their lowest rate."


def _overview(evidence: Evidence, found: Mapping[str, Curve]) -> LineChart:
    ordered = sorted(evidence.arms, key=lambda arm: (arm.slot < 0, arm.slot))
    series = tuple(attainment_line(arm.name, arm.slot, found[arm.name]) for arm in ordered if arm.name in found)
    gist = "; ".join(
        f"{name} falls from {number(percent(curve.points[0].share))} % at {curve.points[0].rate_per_s:g} to "
        f"{number(percent(curve.points[-1].share))} % at {curve.points[-1].rate_per_s:g}"
        for name, curve in found.items()
    )
    title = "Requests within SLO against offered rate"
    return LineChart(OVERVIEW, title, f"{gist} requests/s.", RATE_AXIS, GOOD_AXIS, (Panel("", series),), LEVEL, 100.0,
                     bottom(series), is_dodged=True)  # fmt: skip


def bottom(series: Sequence[Series]) -> float:
    """Where the axis of shares starts: at zero, unless nothing is near it."""
    lows = [low for each in series for low in each.low if low is not None]
    start = min(80.0, min(lows, default=0.0) // 10 * 10 - 10)
    return start if start >= _NEAR_ZERO else 0.0


def _at_one_rate(found: Mapping[str, Curve], rate: float) -> DotChart:
    """Without a second rate there is no curve: the arms at the one there is."""
    ordered = sorted(found.values(), key=lambda curve: -curve.points[0].share)
    shares = [curve.points[0].attainment for curve in ordered]
    marks = tuple(
        Mark(arm.name, arm.slot, (share.value or 0.0) * 100, low=percent(share.low), high=percent(share.high))
        for arm, share in zip((curve.arm for curve in ordered), shares, strict=True)
    )
    gist = "; ".join(f"{mark.label} {number(mark.x)} %" for mark in marks)
    title = f"Requests within SLO at {rate:g} requests/s"
    return DotChart(OVERVIEW, title, f"{gist}.", f"{title}, %", marks, LEVEL, 100.0)


def attainment_line(label: str, slot: int, curve: Curve, dash: Dash | None = None) -> Series:
    """Attainment by rate with its interval; `dash` None for that of the slot."""
    points = curve.points
    return Series(
        label,
        slot,
        tuple(point.rate_per_s for point in points),
        tuple(percent(point.share) for point in points),
        tuple(percent(point.attainment.low) for point in points),
        tuple(percent(point.attainment.high) for point in points),
        dash,
    )


def _by_arm(evidence: Evidence, found: Mapping[str, Curve]) -> LineChart:
    panels: list[Panel] = []
    words: list[str] = []
    for arm in evidence.leading():
        curve = found.get(arm.name)
        if curve is None:
            continue
        series = [attainment_line(arm.name, arm.slot, curve, "solid")]
        for measure, dash in _DASH_OF.items():
            line = _one_target(arm, evidence.of_arm(arm.name), measure, dash)
            series += [line] if line else []
        at = None if curve.is_open or curve.is_below else curve.found.rate_per_s.value
        panels.append(Panel(arm.name, tuple(series), ((at, LEVEL, arm.slot),) if at is not None else ()))
        crosses = "does not cross" if at is None else f"crosses at {number(at)}"
        words.append(f"{arm.name} {crosses} {LEVEL:g}%")
    measures = [measure for measure in _DASH_OF if any(_of_measure(point, measure).of for point in evidence.points)]
    legend = (("all targets", "solid"), *((f"{measure.upper()} only", _DASH_OF[measure]) for measure in measures))
    title = "Which target binds, arm by arm"
    return LineChart("attainment-by-arm", title, "; ".join(words) + f" {RATE}.", RATE_AXIS, GOOD_AXIS, tuple(panels),
                     LEVEL, 100.0, legend=legend)  # fmt: skip


def _one_target(arm: Arm, points: Sequence[Point], measure: Measure, dash: Dash) -> Series | None:
    shares = [_of_measure(point, measure) for point in points]
    if not any(share.of for share in shares):
        return None
    rates = tuple(point.rate or 0.0 for point in points)
    return Series(
        f"{arm.name}, {measure.upper()} only",
        arm.slot,
        rates,
        tuple(percent(share.value) for share in shares),
        dash=dash,
        has_marker=False,
    )


def _of_measure(point: Point, measure: Measure) -> Proportion:
    shares = [getattr(view.figures, f"attainment_{measure}") for view in point.views]
    return proportion(sum(share.good for share in shares), sum(share.of for share in shares))


def _points_table(evidence: Evidence) -> Table:
    columns = (
        Column("arm"), Column("load"), Column("seeds"), Column("counted", "requests"), Column("good", "requests"),
        Column("attainment", "%"), Column("TTFT kept", "%"), Column("TPOT kept", "%"), Column("ITL kept", "%"),
        Column("goodput", "good requests/s"), Column("output", "tokens/s"), Column("TTFT p50", "ms"),
        Column("TTFT p90", "ms"), Column("TTFT p99", "ms"), Column("TPOT p50", "ms"), Column("TPOT p99", "ms"),
        Column("ITL p50", "ms"), Column("ITL p99", "ms"), Column("E2E p50", "ms"),
    )  # fmt: skip
    rows = tuple(_point_row(point, len(columns)) for point in evidence.points)
    caption = "Every point: arm and load, over its seeds. Brackets are 95% intervals. ITL is over all gaps."
    return Table("points", caption, columns, rows, is_long=True)


def _point_row(point: Point, width: int) -> tuple[Cell, ...]:
    found = point.figures
    if found is None:
        why = "; ".join(sorted({view.why_not for view in point.left_out}))
        failed = (Cell(text=point.arm), Cell(text=point.load), Cell(0), Cell(text=f"failed: {why}", tone="bad"))
        return failed + tuple(Cell(text="-", tone="muted") for _ in range(width - len(failed)))
    pooled = found.attainment_pooled
    kept = [_of_measure(point, measure) for measure in _MEASURES]
    left = f"{len(point.left_out)} left out" if point.left_out else ""
    attained = percent(found.attainment.value)
    return (
        Cell(text=point.arm),
        Cell(text=point.load),
        Cell(len(found.seeds), text=left, tone="bad" if left else ""),
        Cell(pooled.of),
        Cell(pooled.good),
        Cell(attained, percent(found.attainment.low), percent(found.attainment.high),
             tone="good" if attained is not None and attained >= LEVEL else "bad"),
        *(Cell(percent(share.value), percent(share.low), percent(share.high)) if share.of else Cell(text="-")
          for share in kept),
        seen(found.goodput_per_s),
        seen(found.output_tokens_per_s),
        *(in_ms(each) for each in (found.ttft_s.p50, found.ttft_s.p90, found.ttft_s.p99, found.tpot_s.p50,
                                   found.tpot_s.p99, found.itl_all_p50_s, found.itl_all_p99_s, found.e2e_s.p50)),
    )  # fmt: skip


def seen(found: object) -> Cell:
    """An Interval in its own unit; `-` where there is none."""
    value, low, high = (getattr(found, name) for name in ("value", "low", "high"))
    return Cell(text="-", tone="muted") if value is None else Cell(value, low, high)


def in_ms(found: object) -> Cell:
    """An Interval of seconds, in milliseconds."""
    value, low, high = (getattr(found, name) for name in ("value", "low", "high"))
    if value is None:
        return Cell(text="-", tone="muted")
    return Cell(value * 1e3, None if low is None else low * 1e3, None if high is None else high * 1e3)


def goodput_section(evidence: Evidence, found: Mapping[str, Curve], goodput: Sequence[Goodput]) -> Section:
    """The highest rate that keeps 90%, per arm."""
    if not found:
        text = "Goodput needs runs at an offered rate (open loop); there is none."
        return Section("goodput", "Goodput", (text,))
    by_arm = sorted(goodput, key=lambda each: -(each.value or 0.0))
    marks = tuple(_mark(evidence, each) for each in by_arm)
    gist = "; ".join(f"{each.arm} {_goodput_words(each)}" for each in by_arm)
    chart = DotChart("goodput-by-arm", "Goodput@90 by arm", f"{gist} {RATE}.", RATE, marks)
    columns = (Column("arm"), Column("group"), Column("goodput@90", RATE), Column("keeps 90% at", RATE),
               Column("breaks it at", RATE), Column("of the best static plan", "%"), Column("seeds"),
               Column("state"))  # fmt: skip
    statics = [each for each in by_arm if found[each.arm].arm.group == "static" and each.value]
    floor = statics[0] if statics else None
    rows = tuple(_goodput_row(found[each.arm].arm, each, floor) for each in by_arm)
    unresolved = [each.arm for each in by_arm if not each.is_resolved]
    lead = [
        f"Goodput@90 is the highest offered rate at which {LEVEL:g}% of the requests are good: where the "
        "measured curve "
        "first falls below it, by linear interpolation between the two rates of the bracket.",
        "Intervals come from the bootstrap over seeds, then requests; they do not hold the error of the interpolation. "
        "The true value lies in the bracket.",
    ]
    if unresolved:
        lead.append(f"Unresolved: {listed(unresolved)}; the last column says why.")
    table = Table("goodput-table", f"Goodput@90 by arm, {RATE}, under {goodput[0].slo}.", columns, rows)
    return Section("goodput", "Goodput", tuple(lead), (chart,), (table,))


def _goodput_words(each: Goodput) -> str:
    if each.above is None:
        return f"below {number(each.below)}"
    return f"at least {number(each.above)}" if each.below is None else number(each.value)


def _mark(evidence: Evidence, each: Goodput) -> Mark:
    slot = next(arm.slot for arm in evidence.arms if arm.name == each.arm)
    if each.above is None:
        return Mark(each.arm, slot, each.below or 0.0, is_below=True)
    return Mark(each.arm, slot, each.value or 0.0, low=each.low, high=each.high, is_open=each.below is None)


def open_end(value: float | None, low: float | None) -> Cell:
    """Of an arm that keeps the target at every rate tested: its highest rate, and where some draws fall short of it."""
    return Cell(value, None if low == value else low, None, "at least")


def _of_floor(each: Goodput, floor: Goodput | None) -> Cell:
    """Percent of the best static plan's goodput; nothing where that has no upper bound, or the arm's own no lower."""
    if floor is None or not floor.value or not each.value or (floor.below is None and each is not floor):
        return Cell(text="-", tone="muted")
    return Cell(each.value / floor.value * 100, text="at least" if each.below is None and each is not floor else "")


def _goodput_row(arm: Arm, each: Goodput, floor: Goodput | None) -> tuple[Cell, ...]:
    if each.above is None:
        value = Cell(text=f"below {number(each.below)}", tone="bad")
    else:
        value = open_end(each.value, each.low) if each.below is None else Cell(each.value, each.low, each.high)
    return (
        Cell(text=arm.name),
        Cell(text=arm.group),
        value,
        Cell(text="none") if each.above is None else Cell(each.above),
        Cell(text="none") if each.below is None else Cell(each.below),
        _of_floor(each, floor),
        Cell(each.num_seeds),
        Cell(text="resolved") if each.is_resolved else Cell(text=f"unresolved: {each.reason}", tone="bad"),
    )
