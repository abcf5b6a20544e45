"""Lines over a rate, a latency or time, in one panel or several; and points on two axes."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from colocate.bench.report.charts.style import (
    FONT_PT,
    INK,
    MUTED,
    NAMED_DASHES,
    PAGE,
    SMALL_PT,
    WIDTH_IN,
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
from colocate.bench.report.model import LineChart, Mark, Panel, ScatterChart, Series

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_DODGE_PT = 3.0


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
    is_single = len(chart.panels) == 1
    dress(axes, chart.x_label if is_single else "", chart.y_label if is_single else "")
    axes.tick_params(labelbottom=True)
    axes.set_title(short(panel.title), color=INK, fontsize=FONT_PT, pad=3)
    if chart.level is not None:
        axes.axhline(chart.level, color=INK, linewidth=0.8, linestyle=NAMED_DASHES["dashdot"])
    if chart.level_x is not None:
        axes.axvline(chart.level_x, color=INK, linewidth=0.8, linestyle=NAMED_DASHES["dashdot"])
    ordered = sorted(panel.series, key=lambda series: series.slot >= 0)
    shifts_pt = dodge_pt(ordered, WIDTH_IN * 0.8 * 72) if chart.is_dodged else [0.0] * len(ordered)
    for series, shift_pt in zip(ordered, shifts_pt, strict=True):
        _draw_series(axes, series, shift_pt)
    for x, y, slot in panel.drops:
        axes.plot([x, x], [chart.y_min, y], color=colour(slot), linewidth=1.0, linestyle=NAMED_DASHES["dotted"])
        axes.plot([x], [y], marker="|", markersize=7, color=colour(slot))
    if chart.is_x_log:
        plain_log(axes, "x")
    else:
        fit_x(axes, panel.series, 8 if is_single else 5)
    if chart.is_y_log:
        plain_log(axes, "y")
    else:
        top = None if chart.y_max is None else chart.y_max + (chart.y_max - chart.y_min) * 0.04
        axes.set_ylim(chart.y_min, top)


def fit_x(axes: Axes, series: Sequence[Series], num_ticks: int) -> None:
    """From the lowest to the highest x, or from zero if that is near; with ticks at the points if these are few."""
    from matplotlib.ticker import MaxNLocator

    places = sorted({x for each in series for x in each.x})
    if not places:
        return
    span = places[-1] - places[0] or places[-1] or 1.0
    margin = span * (0.02 if any(each.is_step for each in series) else 0.07)
    start = 0.0 if 0 <= places[0] < span * 0.15 else places[0] - margin
    axes.set_xlim(start, places[-1] + margin)
    if len(places) <= num_ticks and min((b - a for a, b in pairwise(places)), default=span) > span * 0.08:
        axes.set_xticks(places, [f"{x:g}" for x in places])
    else:
        axes.xaxis.set_major_locator(MaxNLocator(num_ticks, steps=[1, 2, 4, 5, 10]))


def dodge_pt(series: Sequence[Series], width_pt: float) -> list[float]:
    """Points to the right of each line, so that lines that coincide, and their intervals, stand side by side. At most
    half of the least distance between two places is used; thin grey lines stay where they are."""
    named = [each for each in series if each.slot >= 0]
    places = sorted({x for each in named for x in each.x})
    if len(places) < 2 or len(named) < 2:
        return [0.0] * len(series)
    least = min(b - a for a, b in pairwise(places)) / (places[-1] - places[0]) * width_pt
    step = min(_DODGE_PT, least / 2 / len(named))
    rank = {each.label: i for i, each in enumerate(sorted(named, key=lambda each: each.slot))}
    middle = (len(named) - 1) / 2
    return [(rank[each.label] - middle) * step if each.slot >= 0 else 0.0 for each in series]


def shifted(axes: Axes, shift_pt: float) -> Any:
    """Data moved to the right on the page. Limits do not follow what is drawn with it: set them."""
    from matplotlib.transforms import ScaledTranslation

    figure = axes.get_figure()
    assert figure is not None
    return axes.transData + ScaledTranslation(shift_pt / 72, 0, figure.dpi_scale_trans) if shift_pt else axes.transData


def _draw_series(axes: Axes, series: Series, shift_pt: float = 0.0) -> None:
    has_own_dash = series.dash is None
    style: dict[str, Any] = {
        "transform": shifted(axes, shift_pt),
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
                axes.plot([x, x], [low, high], color=style["color"], linewidth=0.8, transform=style["transform"])


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
    for mark in chart.marks:
        if mark.slot < 0:
            _name_beside(axes, mark)
    legend(figure, handles)
    return to_inline_svg(figure, chart.id, chart.alt)


def _name_beside(axes: Axes, mark: Mark) -> None:
    """On the side with more room, so that it stays within the axes."""
    low, high = axes.get_xlim()
    is_right = mark.x * mark.x > low * high  # of the middle of a logarithmic axis
    text = axes.annotate(short(mark.label), (mark.x, mark.y or 0.0), (-4 if is_right else 4, 3),
                         textcoords="offset points", ha="right" if is_right else "left", fontsize=SMALL_PT - 1,
                         color=MUTED)  # fmt: skip
    text.set_in_layout(False)
