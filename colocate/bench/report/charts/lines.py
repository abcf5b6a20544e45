"""Lines over a rate, a latency or time, in one panel or several; and points on two axes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from colocate.bench.report.charts.style import (
    FONT_PT,
    INK,
    MUTED,
    NAMED_DASHES,
    PAGE,
    SMALL_PT,
    colour,
    dash,
    dress,
    legend,
    legend_height,
    marker,
    new_figure,
    plain_log,
    short,
    to_inline_svg,
)
from colocate.bench.report.model import LineChart, Panel, ScatterChart, Series

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw_lines(chart: LineChart) -> str:
    num = len(chart.panels)
    columns = 1 if num == 1 else 2 if num != 3 else 3
    rows = max(1, -(-num // columns))
    handles = _handles(chart)
    longest = max((len(handle.get_label()) for handle in handles), default=0)
    figure = new_figure((2.7 if num == 1 else 1.55 if num != 3 else 2.2) * rows + legend_height(len(handles), longest))
    grid = figure.subplots(rows, columns, squeeze=False, sharex=num > 1, sharey=num > 1)
    all_axes = list(grid.flat)
    for axes, panel in zip(all_axes, chart.panels, strict=False):
        _draw_panel(axes, chart, panel)
    for axes in all_axes[num:]:
        axes.set_visible(False)
    if num > 1:
        for axes in all_axes[max(0, num - columns) : num]:
            axes.set_xlabel(chart.x_label if columns < 3 or axes is all_axes[1] else "", color=INK, fontsize=FONT_PT)
        figure.supylabel(chart.y_label, color=INK, fontsize=FONT_PT)
    legend(figure, handles)
    return to_inline_svg(figure, chart.id, chart.alt)


def _draw_panel(axes: Axes, chart: LineChart, panel: Panel) -> None:
    from matplotlib.ticker import MaxNLocator

    is_single = len(chart.panels) == 1
    dress(axes, chart.x_label if is_single else "", chart.y_label if is_single else "")
    axes.tick_params(labelbottom=True)
    axes.set_title(short(panel.title), color=INK, fontsize=FONT_PT, pad=3)
    if chart.level is not None:
        axes.axhline(chart.level, color=INK, linewidth=0.8, linestyle=NAMED_DASHES["dashdot"])
    for series in sorted(panel.series, key=lambda series: series.slot >= 0):
        _draw_series(axes, series)
    for x, y, slot in panel.drops:
        axes.plot([x, x], [0, y], color=colour(slot), linewidth=1.0, linestyle=NAMED_DASHES["dotted"])
        axes.plot([x], [y], marker="|", markersize=7, color=colour(slot))
    if chart.is_x_log:
        plain_log(axes, "x")
    else:
        axes.set_xlim(left=0)
        axes.xaxis.set_major_locator(MaxNLocator(8 if is_single else 5, steps=[1, 2, 4, 5, 10]))
    if chart.is_y_log:
        plain_log(axes, "y")
    else:
        axes.set_ylim(0, None if chart.y_max is None else chart.y_max * 1.04)


def _draw_series(axes: Axes, series: Series) -> None:
    has_own_dash = series.dash is None
    style: dict[str, Any] = {
        "color": colour(series.slot),
        "linewidth": 1.5 if series.slot >= 0 else 0.5,
        "linestyle": dash(series.slot) if has_own_dash else NAMED_DASHES[series.dash or "solid"],
        "marker": marker(series.slot) if series.has_marker else "",
        "markersize": 4.5,
        "markeredgecolor": PAGE,
        "markeredgewidth": 0.5,
    }
    y = [float("nan") if value is None else value for value in series.y]
    if series.is_step:
        axes.step(series.x, y, where="post", **style)
        return
    axes.plot(series.x, y, **style)
    if series.low and series.slot >= 0:
        for x, low, high in zip(series.x, series.low, series.high, strict=True):
            if low is not None and high is not None:
                axes.plot([x, x], [low, high], color=style["color"], linewidth=0.8)


def _handles(chart: LineChart) -> list[Any]:
    from matplotlib.lines import Line2D

    if chart.legend:
        return [Line2D([], [], color=INK, linestyle=NAMED_DASHES[kind], linewidth=1.4, label=name)
                for name, kind in chart.legend]  # fmt: skip
    seen: dict[str, Line2D] = {}
    others = 0
    for panel in chart.panels:
        for series in panel.series:
            if series.slot < 0:
                others += 1
            elif series.label not in seen:
                kind = dash(series.slot) if series.dash is None else NAMED_DASHES[series.dash]
                seen[series.label] = Line2D(
                    [],
                    [],
                    color=colour(series.slot),
                    linestyle=kind,
                    linewidth=1.4,
                    markersize=4.5,
                    marker=marker(series.slot) if series.has_marker else "",
                    markeredgecolor=PAGE,
                    markeredgewidth=0.5,
                    label=series.label,
                )
    if len(seen) == 1 and len(chart.panels) == 1 and not others:
        return list(seen.values())
    if others:
        seen["others"] = Line2D([], [], color=MUTED, linewidth=0.5, label="others")
    return list(seen.values())


def draw_scatter(chart: ScatterChart) -> str:
    from matplotlib.lines import Line2D

    num_named = sum(mark.slot >= 0 for mark in chart.marks)
    longest = max((len(mark.label) for mark in chart.marks if mark.slot >= 0), default=0)
    figure = new_figure(3.0 + legend_height(num_named + 1, longest))
    axes = figure.subplots()
    dress(axes, chart.x_label, chart.y_label)
    if chart.front:
        axes.plot(*zip(*chart.front, strict=True), color=MUTED, linewidth=0.9, linestyle=NAMED_DASHES["dotted"])
    handles: list[Any] = []
    for mark in sorted(chart.marks, key=lambda mark: mark.slot):
        y = mark.y or 0.0
        shade = colour(mark.slot)
        axes.plot([mark.x if mark.low is None else mark.low, mark.x if mark.high is None else mark.high], [y, y],
                  color=shade, linewidth=0.8)  # fmt: skip
        axes.plot(
            [mark.x, mark.x],
            [y if mark.y_low is None else mark.y_low, y if mark.y_high is None else mark.y_high],
            color=shade,
            linewidth=0.8,
        )
        shape = marker(mark.slot) or "."
        axes.plot([mark.x], [y], marker=shape, color=shade, markersize=6, markeredgecolor=PAGE, markeredgewidth=0.5)
        if mark.slot >= 0:
            handles.append(Line2D([], [], linestyle="", marker=shape, color=shade, markersize=5.5, label=mark.label))
        else:
            axes.annotate(
                short(mark.label), (mark.x, y), (3, 3), textcoords="offset points", fontsize=SMALL_PT - 1, color=MUTED
            )
    plain_log(axes, "x")
    plain_log(axes, "y")
    limits = axes.get_xlim(), axes.get_ylim()
    for level, line in zip(chart.levels, (axes.axvline, axes.axhline), strict=True):
        if level is not None:
            line(level, color=INK, linewidth=0.7, linestyle=NAMED_DASHES["dashdot"])
    axes.set_xlim(
        min(limits[0][0], (chart.levels[0] or limits[0][0]) / 1.1), max(limits[0][1], (chart.levels[0] or 0) * 1.1)
    )
    axes.set_ylim(
        min(limits[1][0], (chart.levels[1] or limits[1][0]) / 1.1), max(limits[1][1], (chart.levels[1] or 0) * 1.1)
    )
    legend(figure, handles)
    return to_inline_svg(figure, chart.id, chart.alt)
