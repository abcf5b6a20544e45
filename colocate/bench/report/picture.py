"""One picture of a report, for a README: attainment against rate with intervals, the 90% line, and every arm's goodput.

A file by itself: light ground, colours and outlines of its letters inside, so it looks the same on any page. The lines
and figures are the model's.
"""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

from colocate.bench.report.charts.lines import dodge_pt, fit_x, shifted
from colocate.bench.report.charts.style import DASHES, LIGHT, MARKERS, NAMED_DASHES, new_figure, short
from colocate.bench.report.model import DotChart, Goodput, LineChart, Mark, ReportModel
from colocate.bench.report.words import capital, number, with_interval
from colocate.bench.report.write import remove
from colocate.errors import ConfigError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SUFFIXES = (".svg", ".png")
WIDTH_IN, HEIGHT_IN = 9.4, 4.4
_INK, _MUTED, _GRID = "#1b1f23", "#57606a", "#d5dae0"
_TITLE_PT, _TEXT_PT = 13.0, 9.5
_LEFT, _RIGHT, _TOP, _BOTTOM = 0.062, 0.60, 0.80, 0.125  # of the axes, as shares of the figure
_WIDTH_CHARS = 118  # of a line of the subtitle
_MAX_ROWS = 13  # of the legend


def write_picture(model: ReportModel, path: Path) -> None:
    """Raises ConfigError: a name that does not end in .svg or .png, a report without attainment at an offered rate, no
    matplotlib, a file that cannot be written."""
    check_picture(path)
    figure = drawn(model)
    unfinished = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _save(figure, unfinished, path.suffix.lower().lstrip("."))
        unfinished.replace(path)
    except OSError as error:
        remove(unfinished)
        raise ConfigError(str(path), f"cannot be written: {error.strerror}", "choose another place") from None


def check_picture(path: Path) -> None:
    """Raises ConfigError for a name that does not end in .svg or .png."""
    if path.suffix.lower() not in SUFFIXES:
        raise ConfigError("--picture", f"{path} is neither .svg nor .png", "name a file that ends in one of them")


def _chart(model: ReportModel) -> LineChart | DotChart:
    for section in model.sections:
        for chart in section.charts:
            if section.id == "attainment" and isinstance(chart, LineChart | DotChart):
                return chart
    problem = "there is no attainment at an offered rate to draw"
    raise ConfigError("--picture", problem, "give results of an open loop, without --compare")


def _save(figure: Figure, path: Path, kind: str) -> None:
    import matplotlib

    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type")) if kind == "svg" else {"Software": None}
    with matplotlib.rc_context({"svg.fonttype": "path", "svg.hashsalt": "picture", "path.simplify": True}):
        figure.savefig(path, format=kind, metadata=nothing, facecolor="#ffffff", dpi=200 if kind == "png" else 72)


def drawn(model: ReportModel) -> Figure:
    """The picture as a figure of matplotlib. Raises ConfigError as `write_picture`."""
    chart = _chart(model)
    figure = new_figure(HEIGHT_IN, WIDTH_IN)
    figure.set_layout_engine("none")
    axes = figure.add_axes((_LEFT, _BOTTOM, _RIGHT - _LEFT, _TOP - _BOTTOM))
    _title(figure, model)
    if isinstance(chart, LineChart):
        _draw_lines(axes, chart)
        _goodput_legend(figure, model, chart)
    else:
        axes.set_position((0.2, _BOTTOM, 0.76, _TOP - _BOTTOM))
        _draw_dots(axes, chart)
    _dress(axes, chart)
    return figure


def _title(figure: Figure, model: ReportModel) -> None:
    """What ran where; then what `good` means. A device that is no hardware says so in the same breath."""
    first = model.verdict.by_slo[0]
    device, _, warning = model.verdict.device.partition(": ")
    title = f"{capital(device.removeprefix('a ').removeprefix('an '))}, {model.verdict.model}"
    figure.text(0.012, 0.965, title, fontsize=_TITLE_PT, fontweight="bold", color=_INK, va="top")
    promise = f"SLO: {first.targets}" if first.targets != "no targets" else "no SLO: what finished is good"
    lines = (f"Load: {model.verdict.load}.", ". ".join(filter(None, (promise, capital(warning)))) + ".")
    text = "\n".join(textwrap.fill(line, _WIDTH_CHARS) for line in lines)
    figure.text(0.012, 0.905, text, fontsize=_TEXT_PT, color=_MUTED, va="top",
                linespacing=1.35)  # fmt: skip


def _look(slot: int) -> dict[str, Any]:
    if slot < 0:
        return {"color": _MUTED, "linewidth": 0.8, "linestyle": "-", "marker": "", "alpha": 0.6}
    return {"color": LIGHT[slot % len(LIGHT)], "linewidth": 1.8, "linestyle": DASHES[slot % len(DASHES)],
            "marker": MARKERS[slot % len(MARKERS)], "markersize": 6, "markeredgecolor": "#ffffff",
            "markeredgewidth": 0.6}  # fmt: skip


def _draw_lines(axes: Axes, chart: LineChart) -> None:
    series = [each for panel in chart.panels for each in panel.series]
    for each, shift_pt in zip(series, dodge_pt(series, (_RIGHT - _LEFT) * WIDTH_IN * 72), strict=True):
        look = _look(each.slot)
        look["transform"] = shifted(axes, shift_pt)
        axes.plot(each.x, [float("nan") if y is None else y for y in each.y], **look)
        for x, low, high in zip(each.x, each.low, each.high, strict=True):
            if each.slot >= 0 and low is not None and high is not None:
                axes.plot([x, x], [low, high], color=look["color"], linewidth=1.1, transform=look["transform"])
    fit_x(axes, series, 9)
    axes.set_ylim(chart.y_min, 100 + (100 - chart.y_min) * 0.03)
    if chart.level is not None:
        axes.axhline(chart.level, color=_INK, linewidth=0.9, linestyle=NAMED_DASHES["dashdot"], zorder=1)
        axes.annotate(f"{chart.level:g}%", (1, chart.level), (3, 0), xycoords=axes.get_yaxis_transform(), va="center",
                      textcoords="offset points", fontsize=_TEXT_PT - 1, color=_INK)  # fmt: skip


def _draw_dots(axes: Axes, chart: DotChart) -> None:
    for row, mark in enumerate(chart.marks):
        look = _look(mark.slot)
        axes.plot([_end(mark, mark.low), _end(mark, mark.high)], [row, row], color=look["color"], linewidth=1.8)
        axes.plot([mark.x], [row], color=look["color"], marker=look["marker"] or "o", markersize=7)
    axes.set_yticks(range(len(chart.marks)), [short(mark.label) for mark in chart.marks])
    axes.set_ylim(len(chart.marks) - 0.4, -0.6)
    axes.set_xlim(0, 103)
    if chart.level is not None:
        axes.axvline(chart.level, color=_INK, linewidth=0.9, linestyle=NAMED_DASHES["dashdot"], zorder=1)


def _end(mark: Mark, end: float | None) -> float:
    return mark.x if end is None else end


def _dress(axes: Axes, chart: LineChart | DotChart) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(True, color=_GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(colors=_MUTED, labelcolor=_INK, labelsize=_TEXT_PT, length=3)
    axes.set_xlabel(chart.x_label, color=_INK, fontsize=_TEXT_PT)
    axes.set_ylabel(chart.y_label if isinstance(chart, LineChart) else "", color=_INK, fontsize=_TEXT_PT)


def _goodput_legend(figure: Figure, model: ReportModel, chart: LineChart) -> None:
    """A row per arm, best first: sample, name, goodput. Where lines lie on each other, this still tells them apart."""
    from matplotlib.lines import Line2D

    own = [each for each in model.goodput if each.slo == model.verdict.by_slo[0].slo]
    ranked = sorted(own, key=lambda each: -(each.value or 0.0))
    slots = {each.label: each.slot for panel in chart.panels for each in panel.series}
    left, top, step = _RIGHT + 0.045, _TOP - 0.005, 0.05
    figure.text(left + 0.055, top, "arm", fontsize=_TEXT_PT, color=_MUTED, va="center")
    figure.text(0.985, top, "goodput@90, requests/s", fontsize=_TEXT_PT, color=_MUTED, va="center", ha="right")
    for row, each in enumerate(ranked[:_MAX_ROWS], 1):
        y = top - row * step
        look = _look(slots.get(each.arm, -1))
        figure.add_artist(Line2D([left, left + 0.022, left + 0.044], [y, y, y], markevery=[1], **look))
        figure.text(left + 0.055, y, short(each.arm), fontsize=_TEXT_PT, color=_INK, va="center")
        figure.text(0.985, y, _goodput_text(each), fontsize=_TEXT_PT, color=_INK, va="center", ha="right")
    rest = len(ranked) - _MAX_ROWS
    note = f"{rest} more in the report. " if rest > 0 else ""
    note += "Bars and brackets: 95% intervals.\nLines stand a little apart, to be seen."
    figure.text(left, _BOTTOM, note, fontsize=_TEXT_PT - 1, color=_MUTED, va="bottom", linespacing=1.35)


def _goodput_text(each: Goodput) -> str:
    if each.above is None:
        return f"below {number(each.below)}" if each.below is not None else "-"
    if each.below is None:
        return f"at least {number(each.above)}"
    return with_interval(each.value, each.low, each.high)
