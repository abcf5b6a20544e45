"""The same log under other people's SLOs and denominators."""

from __future__ import annotations

from collections.abc import Sequence

from colocate.bench.metrics.denominators import DENOMINATORS
from colocate.bench.metrics.window import offered
from colocate.bench.report.collect import Evidence, Point
from colocate.bench.report.curves import RATE, slo_cases, targets_text
from colocate.bench.report.model import TARGET_SHARE, Cell, Column, Section, SloVerdict, Table
from colocate.bench.report.sections.scales import scale_chart
from colocate.bench.report.verdict import bound_words
from colocate.bench.report.words import listed, number, percent
from colocate.bench.slo_library import Definition, DefinitionFigure, evaluate, published_definitions
from colocate.bench.statistics import proportion

_FINDINGS = {
    "dynamic": "dynamic pays",
    "static": "static is better",
    "tie": "not distinguishable: static is enough",
    "unresolved": "unresolved",
    "one static": "not said: one static plan only",
    "unknown": "not known",
}


def definitions_section(evidence: Evidence, verdicts: Sequence[SloVerdict]) -> Section:
    """Who wins under each SLO; each arm under each published definition; each arm under each denominator."""
    points = _shown(evidence)
    tables = [_winners(verdicts)]
    lead = [
        "One log, judged by each definition: the requests were not sent again. Goodput@90 under each in the "
        "first table."
    ]
    if points:
        lead.append(
            f"The second table is at {points[0].load}: whether each source would call the run kept, by its own "
            "statistic, and the share of requests that meet all its targets."
        )
        tables += [_published(evidence, points), _denominators(points)]
    chart = scale_chart(evidence, points) if points else None
    charts = (chart,) if chart else ()
    return Section("definitions", "SLO definitions and denominators side by side", tuple(lead), charts, tuple(tables))


def _shown(evidence: Evidence) -> list[Point]:
    if evidence.reference_rate is not None:
        return list(evidence.at(evidence.reference_rate).values())
    points = [point for point in evidence.points if point.views]
    return [point for point in points if point.load == points[-1].load]


def _winners(verdicts: Sequence[SloVerdict]) -> Table:
    columns = (Column("SLO"), Column("targets"), Column("highest goodput@90"), Column("best static"),
               Column("best dynamic"), Column("dynamic minus static"), Column("unit"), Column("finding"))  # fmt: skip
    rows = []
    for each in verdicts:
        difference = each.difference
        cell = Cell(text="-", tone="muted")
        if difference is not None and difference.value is not None:
            cell = Cell(difference.value, difference.low, difference.high, bound_words(difference))
        tone = {"dynamic": "good", "static": "bad"}.get(each.finding, "")
        unit = "" if difference is None else difference.unit if difference.unit == RATE else difference.what + ", pp"
        rows.append((Cell(text=each.slo), Cell(text=each.targets), _highest(each),
                     Cell(text=each.best_static or "-"), Cell(text=each.best_dynamic or "-"), cell, Cell(text=unit),
                     Cell(text=_FINDINGS[each.finding], tone=tone)))  # fmt: skip
    caption = "Which arm wins under which SLO, and whether dynamic partitioning pays. Brackets are 95% intervals."
    return Table("winners", caption, columns, tuple(rows))


def _highest(each: SloVerdict) -> Cell:
    if not each.level:
        return Cell(text="none keeps 90%", tone="muted")
    if not each.winner:
        return Cell(text=f"{listed(each.level, 2)} keep every rate tested", tone="muted")
    rest = each.level[1:]
    return Cell(text=each.winner + (f"; {listed(rest, 2)} cannot be told from it" if rest else ""))


def _own(evidence: Evidence, points: Sequence[Point]) -> list[tuple[Cell, ...]]:
    """The SLO of this report, and each of its classes where there are several: of their own requests only."""
    first, *classes = (case for case in slo_cases(evidence) if not case.is_published)
    rows = []
    for case in (first, *classes):
        cells = [Cell(text=case.name), Cell(text=case.targets), Cell(text="90% of requests; this report")]
        for point in points:
            shares = [case.of(view.figures) for view in point.views]
            share = proportion(sum(each.good for each in shares), sum(each.of for each in shares))
            kept = "kept" if (share.value or 0.0) >= TARGET_SHARE else "not kept"
            tone = "good" if kept == "kept" else "bad"
            cells.append(Cell(text="-") if not share.of else Cell(
                percent(share.value), percent(share.low), percent(share.high), kept, tone))  # fmt: skip
        rows.append(tuple(cells))
    return rows


def _published(evidence: Evidence, points: Sequence[Point]) -> Table:
    columns = (Column("SLO"), Column("targets"), Column("judged by"), *(Column(point.arm, "%") for point in points))
    rows = _own(evidence, points)
    for definition in published_definitions():
        cells = (_under(evidence, definition, point) for point in points)
        rows.append(
            (
                Cell(text=definition.name),
                Cell(text=targets_text(definition.slo)),
                Cell(text=_judged(definition)),
                *cells,
            )
        )
    caption = f"Requests that meet every target at {points[0].load}, and whether the source's own statistic does."
    return Table("published", caption, columns, tuple(rows), is_long=True)


def _judged(definition: Definition) -> str:
    words = {"attainment": "90% of requests", "p90": "P90 of each", "p99-tbt": "P99 of all gaps"}
    return f"{words[definition.judged]}; {definition.source}"


def _under(evidence: Evidence, definition: Definition, point: Point) -> Cell:
    rows = [row for view in point.views for row in offered(view.run)]
    found = evaluate(definition, rows, DENOMINATORS[evidence.rule])
    share = found.attainment
    kept = "not judged" if found.is_met is None else "kept" if found.is_met else "not kept"
    tone = "" if found.is_met is None else "good" if found.is_met else "bad"
    return Cell(percent(share.value), percent(share.low), percent(share.high), kept + _statistic(found), tone)


def _statistic(found: DefinitionFigure) -> str:
    shown = [
        f"{name.removesuffix('_s').replace('_', ' ')} {number(value * 1e3)} ms"
        for name, value in found.statistics.items()
        if value is not None and name.endswith("_s")
    ]
    return f": {', '.join(shown)}" if shown else ""


def _denominators(points: Sequence[Point]) -> Table:
    columns = (Column("rule"), Column("divides by"), *(Column(point.arm, "%") for point in points))
    rows = []
    for rule in DENOMINATORS.values():
        cells = []
        for point in points:
            shares = [view.figures.attainment_by_denominator[rule.name] for view in point.views]
            pooled = proportion(sum(share.good for share in shares), sum(share.of for share in shares))
            cells.append(Cell(text="-") if not pooled.of else Cell(
                percent(pooled.value), percent(pooled.low), percent(pooled.high), f"of {pooled.of:,}"))  # fmt: skip
        rows.append((Cell(text=rule.name), Cell(text=rule.words), *cells))
    caption = (
        f"Attainment at {points[0].load} under the SLO of this report, by whose denominator; Wilson's 95% intervals."
    )
    return Table("denominators", caption, columns, tuple(rows))
