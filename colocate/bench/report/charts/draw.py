"""A chart's numbers to SVG, by its kind."""

from __future__ import annotations

from colocate.bench.report.charts.bars import draw_bars, draw_dots, draw_heat
from colocate.bench.report.charts.lines import draw_lines, draw_scatter
from colocate.bench.report.charts.timeline import draw_timeline
from colocate.bench.report.model import BarChart, Chart, DotChart, HeatChart, LineChart, ScatterChart, TimelineChart


def draw(chart: Chart) -> str:
    """Raises ConfigError without matplotlib."""
    match chart:
        case LineChart():
            return draw_lines(chart)
        case ScatterChart():
            return draw_scatter(chart)
        case DotChart():
            return draw_dots(chart)
        case BarChart():
            return draw_bars(chart)
        case TimelineChart():
            return draw_timeline(chart)
        case HeatChart():
            return draw_heat(chart)
