"""The partition as bands over time, with the queues and KV below, on one axis of seconds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from colocate.bench.report.charts.style import (
    FONT_PT,
    HATCHES,
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
    new_figure,
    short,
    to_inline_svg,
)
from colocate.bench.report.model import Band, Series, TimelineChart

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_PREFILL, _DECODE, _WHOLE = 2, 0, 3  # as the lines of what prefills and decodes


def draw_timeline(chart: TimelineChart) -> str:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    lower = [lines for lines in (chart.queues, (chart.kv,) if chart.kv else ()) if lines]
    heights = [1.1, *(1.1 if lines is chart.queues else 0.8 for lines in lower)]
    has_units = any(band.decode_units is not None for band in chart.bands)
    handles: list[Any] = [
        Patch(label="prefill's units", **_fill(_PREFILL)),
        Patch(label="decode's units", **_fill(_DECODE)),
    ]
    handles = handles if has_units else []
    unnamed = dict.fromkeys(band.plan for band in chart.bands if band.decode_units is None)
    handles += [Patch(label=plan, **_fill(_WHOLE + i)) for i, plan in enumerate(unnamed)]
    handles += [Line2D([], [], color=colour(line.slot), linestyle=dash(line.slot), linewidth=1.3, label=line.label)
                for line in chart.queues]  # fmt: skip
    longest = max((len(handle.get_label()) for handle in handles), default=0)
    figure = new_figure(sum(heights) + 0.45 + legend_height(len(handles), longest))
    grid = figure.subplots(len(heights), 1, sharex=True, squeeze=False, height_ratios=heights)
    all_axes = list(grid[:, 0])
    _draw_bands(all_axes[0], chart.bands, list(unnamed))
    for axes, lines in zip(all_axes[1:], lower, strict=True):
        _draw_lines(axes, lines, "requests" if lines is chart.queues else "KV, %")
    for axes in all_axes:
        for at_s in chart.measured:
            axes.axvline(at_s, color=MUTED, linewidth=0.7, linestyle=NAMED_DASHES["dotted"])
    end_s = max((band.end_s for band in chart.bands), default=chart.measured[1])
    all_axes[-1].set_xlim(0, end_s)
    all_axes[-1].set_xlabel("s", color=INK, fontsize=FONT_PT)
    legend(figure, handles)
    return to_inline_svg(figure, chart.id, chart.alt)


def _fill(slot: int) -> dict[str, Any]:
    hatch = {_PREFILL: "", _DECODE: "////"}.get(slot, HATCHES[slot % len(HATCHES)])
    return {"facecolor": colour(slot), "edgecolor": PAGE, "hatch": hatch, "linewidth": 0.4}


def _draw_bands(axes: Axes, bands: tuple[Band, ...], unnamed: list[str]) -> None:
    """Decode from below and prefill from above, as the device is divided; a plan without units fills the height."""
    total = max((band.prefill_units + band.decode_units for band in bands
                 if band.prefill_units is not None and band.decode_units is not None), default=1)  # fmt: skip
    dress(axes, "", "units" if total > 1 else "plan")
    axes.grid(False)
    # One area each: a run may switch a thousand times, and a shape per band would be a megabyte of SVG.
    edges = [band.start_s for band in bands] + [bands[-1].end_s] if bands else []
    decode = [band.decode_units or 0 for band in bands]
    prefill = [total - (band.prefill_units or 0) for band in bands]
    if bands:
        # Edges would be most of the ink where bands are narrow; the hatch is drawn in their colour all the same.
        axes.stairs(decode, edges, fill=True, **{**_fill(_DECODE), "linewidth": 0})
        axes.stairs([total] * len(bands), edges, baseline=prefill, fill=True, **{**_fill(_PREFILL), "linewidth": 0})
    for band in bands:
        if band.decode_units is None or band.prefill_units is None:
            width = band.end_s - band.start_s
            axes.bar(band.start_s, total, width, align="edge", **_fill(_WHOLE + unnamed.index(band.plan)))
    axes.set_ylim(0, total)
    if total == 1:
        axes.set_yticks([])
    elif total <= 8:
        axes.set_yticks(range(total + 1))
    widest = sorted(bands, key=lambda band: band.start_s - band.end_s)[:6]
    end_s = max((band.end_s for band in bands), default=1.0)
    for band in widest:
        if (band.end_s - band.start_s) / end_s > 0.12:
            axes.text(
                (band.start_s + band.end_s) / 2,
                total * 0.86,
                short(band.plan),
                ha="center",
                va="center",
                fontsize=SMALL_PT - 1,
                color=INK,
                bbox={"facecolor": PAGE, "edgecolor": "none", "pad": 1.2},
            )


def _draw_lines(axes: Axes, lines: tuple[Series, ...], label: str) -> None:
    dress(axes, "", label)
    for line in lines:
        y = [float("nan") if value is None else value for value in line.y]
        axes.step(line.x, y, where="post", color=colour(line.slot), linestyle=dash(line.slot), linewidth=1.2)
    axes.set_ylim(bottom=0)
