"""The same log under other people's SLOs and denominators."""

from __future__ import annotations

from collections.abc import Sequence

from colocate.bench.metrics.denominators import DENOMINATORS
from colocate.bench.metrics.window import offered
from colocate.bench.report.collect import Evidence, Point
from colocate.bench.report.curves import RATE, targets_text
from colocate.bench.report.model import Cell, Column, Section, SloVerdict, Table
from colocate.bench.report.words import number, percent
from colocate.bench.slo_library import Definition, DefinitionFigure, evaluate, published_definitions
from colocate.bench.statistics import proportion

_FINDINGS = {
    "dynamic": "dynamic pays",
    "static": "static is better",
    "tie": "not distinguishable: static is enough",
    "unresolved": "unresolved",
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
            "statistic, and "
            "the share of requests that meet all its targets."
        )
        tables += [_published(evidence, points), _denominators(points)]
    return Section("definitions", "SLO definitions and denominators side by side", tuple(lead), (), tuple(tables))


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
            bound = "at least" if difference.is_bound and difference.is_resolved else ""
            cell = Cell(difference.value, difference.low, difference.high, bound)
        tone = {"dynamic": "good", "static": "bad"}.get(each.finding, "")
        unit = "" if difference is None else difference.unit if difference.unit == RATE else difference.what + ", pp"
        rows.append((Cell(text=each.slo), Cell(text=each.targets), Cell(text=each.winner or "-"),
                     Cell(text=each.best_static or "-"), Cell(text=each.best_dynamic or "-"), cell, Cell(text=unit),
                     Cell(text=_FINDINGS[each.finding], tone=tone)))  # fmt: skip
    caption = "Which arm wins under which SLO, and whether dynamic partitioning pays. Brackets are 95% intervals."
    return Table("winners", caption, columns, tuple(rows))


def _published(evidence: Evidence, points: Sequence[Point]) -> Table:
    columns = (Column("SLO"), Column("targets"), Column("judged by"), *(Column(point.arm, "%") for point in points))
    rows = []
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
