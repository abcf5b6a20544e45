"""One row per arm: stacked bars, dots with intervals; and the map of share against rate."""

from __future__ import annotations

from typing import Any

from colocate.bench.report.charts.style import (
    FONT_PT,
    GRID,
    HATCHES,
    INK,
    MUTED,
    NAMED_DASHES,
    PAGE,
    SMALL_PT,
    colour,
    dress,
    legend,
    legend_height,
    marker,
    new_figure,
    shades,
    short,
    to_inline_svg,
)
from colocate.bench.report.model import BarChart, DotChart, HeatChart

_ROW_IN = 0.24


def draw_dots(chart: DotChart) -> str:
    figure = new_figure(0.6 + _ROW_IN * len(chart.marks))
    axes = figure.subplots()
    dress(axes, chart.x_label)
    rows = range(len(chart.marks))
    right = chart.x_max or max((mark.high or mark.x for mark in chart.marks), default=1.0)
    if chart.level is not None:
        axes.axvline(chart.level, color=INK, linewidth=0.8, linestyle=NAMED_DASHES["dashdot"])
    for row, mark in zip(rows, chart.marks, strict=True):
        shade = colour(mark.slot)
        ends = [mark.x if end is None else end for end in (mark.low, mark.high)]
        axes.plot(ends, [row, row], color=shade, linewidth=1.6)
        if mark.is_open or mark.is_below:
            axes.annotate("", (mark.x + right * (0.06 if mark.is_open else -0.06), row), (mark.x, row),
                          arrowprops={"arrowstyle": "->", "color": shade, "linewidth": 1.2})  # fmt: skip
        axes.plot([mark.x], [row], marker=marker(mark.slot) or "o", color=shade, markersize=6, markeredgecolor=PAGE,
                  markeredgewidth=0.5)  # fmt: skip
    axes.set_yticks(list(rows), [short(mark.label) for mark in chart.marks], fontsize=FONT_PT, color=INK)
    axes.set_ylim(len(chart.marks) - 0.4, -0.6)
    axes.set_xlim(0, right * (1.04 if chart.x_max else 1.1))
    return to_inline_svg(figure, chart.id, chart.alt)


def draw_bars(chart: BarChart) -> str:
    from matplotlib.patches import Patch

    names = [name for name, _ in chart.parts]
    longest = max(map(len, names), default=0)
    figure = new_figure(0.55 + _ROW_IN * 1.1 * len(chart.rows) + legend_height(len(names), longest))
    axes = figure.subplots()
    dress(axes, chart.x_label)
    left = [0.0] * len(chart.rows)
    handles: list[Any] = []
    rows = list(range(len(chart.rows)))
    fills = shades(len(names)) if chart.is_ordered else [colour(i) for i in range(len(names))]
    for i, (name, values) in enumerate(chart.parts):
        hatch = HATCHES[i % 2 if chart.is_ordered else i % len(HATCHES)]
        style: dict[str, Any] = {"facecolor": fills[i], "edgecolor": PAGE, "hatch": hatch, "linewidth": 0.6}
        axes.barh(rows, values, 0.7, left=left, **style)
        left = [start + value for start, value in zip(left, values, strict=True)]
        handles.append(Patch(label=name, **style))
    axes.set_yticks(rows, list(map(short, chart.rows)), fontsize=FONT_PT, color=INK)
    axes.invert_yaxis()
    axes.grid(False, axis="y")
    axes.set_xlim(0, chart.x_max)
    legend(figure, handles)
    return to_inline_svg(figure, chart.id, chart.alt)


def draw_heat(chart: HeatChart) -> str:
    import matplotlib
    import numpy as np

    figure = new_figure(0.75 + 0.27 * len(chart.rows))
    axes = figure.subplots()
    dress(axes, chart.x_label, chart.y_label)
    axes.grid(False)
    z = np.array([[np.nan if value is None else value for value in row] for row in chart.z])
    # A map of one hue order that is also a ramp in grey; the numbers stand in the cells.
    colours = matplotlib.colormaps["cividis"]
    for row, values in enumerate(chart.z):
        for column, value in enumerate(values):
            if value is None:
                axes.text(column, row, "-", ha="center", va="center", fontsize=SMALL_PT, color=MUTED)
                continue
            shade = colours(value / 100)
            luminance = 0.2126 * shade[0] + 0.7152 * shade[1] + 0.0722 * shade[2]
            axes.add_patch(_cell(column, row, shade, is_kept=value >= 90))
            axes.text(column, row, f"{value:.0f}", ha="center", va="center", fontsize=SMALL_PT,
                      color="#000000" if luminance > 0.4 else "#ffffff")  # fmt: skip
    axes.set_xlim(-0.5, z.shape[1] - 0.5)
    axes.set_ylim(-0.5, z.shape[0] - 0.5)
    axes.set_xticks(range(len(chart.columns)), list(chart.columns))
    axes.set_yticks(range(len(chart.rows)), list(chart.rows))
    for spine in axes.spines.values():
        spine.set_color(GRID)
    return to_inline_svg(figure, chart.id, chart.alt)


def _cell(column: int, row: int, shade: Any, *, is_kept: bool) -> Any:
    from matplotlib.patches import Rectangle

    inset = 0.03
    return Rectangle((column - 0.5 + inset, row - 0.5 + inset), 1 - 2 * inset, 1 - 2 * inset, facecolor=shade,
                     edgecolor=INK if is_kept else "none", linewidth=1.4)  # fmt: skip
