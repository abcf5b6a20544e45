"""The report as Markdown: the same words and tables; of each chart what it shows, in words."""

from __future__ import annotations

import re
from collections.abc import Iterator

from colocate.bench.report.model import Cell, ReportModel, Section, Table
from colocate.bench.report.words import with_interval

# Text of a cell must not end it, nor be markup.
_SPECIAL = re.compile(r"([\\`*_\[\]<>|#])")


def to_markdown(model: ReportModel) -> str:
    return "\n".join(_lines(model)).rstrip() + "\n"


def _lines(model: ReportModel) -> Iterator[str]:
    yield f"# {escape(model.title)}"
    yield from ("", f"**{escape(model.verdict.headline)}**", "")
    for verdict in model.verdict.by_slo:
        yield f"* {escape(verdict.slo)}: {escape(' '.join(verdict.sentences))}"
    if model.verdict.cautions:
        yield from ("", "Caution:", "")
        yield from (f"* {escape(caution)}" for caution in model.verdict.cautions)
    yield ""
    for section in model.sections:
        yield from _section(section)
    yield f"Results of {model.created}, colocate {escape(model.colocate)}, denominator {escape(model.denominator)}."


def _section(section: Section) -> Iterator[str]:
    yield from (f"## {escape(section.title)}", "")
    for text in (*section.lead, *section.notes):
        yield from (escape(text), "")
    for chart in section.charts:
        yield from (f"{escape(chart.title)}: {escape(chart.alt)}", "")
    for table in section.tables:
        yield from _table(table)
    if section.code:
        fence = "`" * (max((len(run) for line in section.code for run in re.findall("`+", line)), default=2) + 1)
        fence = fence if len(fence) > 2 else "```"
        yield from (fence, *(" ".join(line.splitlines()) for line in section.code), fence, "")


def _table(table: Table) -> Iterator[str]:
    yield from (escape(table.caption), "")
    heads = (f"{column.label}, {column.unit}" if column.unit else column.label for column in table.columns)
    yield f"| {' | '.join(map(escape, heads))} |"
    yield "|---" * len(table.columns) + "|"
    for row in table.rows:
        yield f"| {' | '.join(map(cell_text, row))} |"
    yield ""


def cell_text(cell: Cell) -> str:
    """`92.1 [90.3, 93.8] at least`; of a cell without a number its text."""
    if cell.value is None:
        return escape(cell.text)
    told = with_interval(cell.value, cell.low, cell.high).replace("[", r"\[").replace("]", r"\]")
    return " ".join(part for part in (told, escape(cell.text)) if part)


def escape(text: str) -> str:
    return _SPECIAL.sub(r"\\\1", " ".join(text.split()))
