"""The report as one HTML file: no script, no reference to anything outside it, charts as inline SVG."""

from __future__ import annotations

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from colocate.bench.report.charts.draw import draw
from colocate.bench.report.charts.style import stylesheet
from colocate.bench.report.model import Chart, ReportModel
from colocate.bench.report.words import aligned

_HERE = Path(__file__).parent


def to_html(model: ReportModel) -> str:
    """Every text is escaped; only the charts and the style sheet, which are made here, are markup."""
    environment = Environment(
        loader=FileSystemLoader(_HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.globals.update(chart_svg=_svg, aligned=aligned)
    style = Markup((_HERE / "page.css").read_text(encoding="utf-8") + stylesheet())
    return environment.get_template("page.html.j2").render(model=model, style=style)


def _svg(chart: Chart) -> Markup:
    return Markup(draw(chart))
