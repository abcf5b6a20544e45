"""How every chart looks: colours by CSS variable (light, dark and print), dashes, markers, sizes.

Colours are those of Okabe and Ito (2008), which people with any of the usual colour blindnesses can tell apart; some
are darker on white, for contrast. An arm also has a dash and a marker of its own, so that print in grey is enough.

matplotlib draws with placeholder colours; `to_inline_svg` replaces them by variables, so one SVG serves light and dark.
"""

from __future__ import annotations

import html
import io
import re
from typing import TYPE_CHECKING, Any

from colocate.errors import ConfigError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH_IN = 4.4  # of a chart: 317 points, so text is no smaller on a phone
FONT_PT = 9.4
SMALL_PT = 8.8
_LONGEST_NAME = 28
_LEGEND_CHARS = 57  # that fit beside each other, 8 of them for each sample of a line

INK, MUTED, GRID, PAGE = "#010203", "#010204", "#010205", "#010206"
_SLOTS = tuple(f"#0a0b{slot:02x}" for slot in range(8))
_ROLES = {INK: "ink", MUTED: "muted", GRID: "grid", PAGE: "page", **{c: f"arm-{i}" for i, c in enumerate(_SLOTS)}}
LIGHT = ("#0072b2", "#d55e00", "#009e73", "#b8528b", "#a87000", "#3b9ad6", "#202428", "#8a7d00")
_DARK = ("#4aa8e0", "#f08040", "#2cc79a", "#dd96bd", "#e69f00", "#8fd0f5", "#e8eaed", "#f0e442")

MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<")
DASHES: tuple[Any, ...] = (
    "-",
    (0, (5, 1.5)),
    (0, (1, 1.2)),
    (0, (5, 1.2, 1, 1.2)),
    (0, (3, 1, 1, 1, 1, 1)),
    (0, (8, 2)),
    (0, (2, 2)),
    (0, (6, 1, 3, 1)),
)
NAMED_DASHES: dict[str, Any] = {
    "solid": "-",
    "dotted": (0, (1, 1.5)),
    "dashed": (0, (4.5, 2)),
    "dashdot": (0, (5, 1.5, 1, 1.5)),
}
# Lines only: a pattern of dots is a quarter of a megabyte of SVG.
HATCHES = ("", "////", "----", "xxxx", "||||", "\\\\\\\\", "++++", "//")


def colour(slot: int) -> str:
    return _SLOTS[slot % len(_SLOTS)] if slot >= 0 else MUTED


def shades(num: int) -> list[str]:
    """So many colours in order, from dark to light: a ramp in grey as well, and for any colour blindness."""
    import matplotlib
    from matplotlib.colors import to_hex

    ramp = matplotlib.colormaps["cividis"]
    return [to_hex(ramp(i / max(1, num - 1))) for i in range(num)]


def marker(slot: int) -> str:
    return MARKERS[slot % len(MARKERS)] if slot >= 0 else ""


def dash(slot: int) -> Any:
    return DASHES[slot % len(DASHES)] if slot >= 0 else "-"


def stylesheet() -> str:
    """The variables of the arms' colours, for light and dark; print is always light."""
    light, dark = ("".join(f"--arm-{i}:{value};" for i, value in enumerate(colours)) for colours in (LIGHT, _DARK))
    return (
        f":root{{{light}}}\n@media screen and (prefers-color-scheme: dark){{:root{{{dark}}}}}\n"
        "svg text{font-family:inherit !important}\n"
    )


def new_figure(height_in: float, width_in: float = WIDTH_IN) -> Figure:
    """Raises ConfigError without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        remedy = "pip install 'colocate[bench]', or ask for --format md,json"
        raise ConfigError("report", "charts need matplotlib, which is not installed", remedy) from None
    return Figure(figsize=(width_in, height_in), layout="constrained", facecolor="none")


def dress(axes: Axes, x_label: str = "", y_label: str = "") -> None:
    """Only what carries meaning: two spines, a faint grid, labels with units."""
    axes.set_facecolor("none")
    axes.spines[["top", "right"]].set_visible(False)
    for spine in axes.spines.values():
        spine.set_color(MUTED)
        spine.set_linewidth(0.7)
    axes.grid(True, color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(colors=MUTED, labelcolor=INK, labelsize=SMALL_PT, width=0.7, length=3, which="both")
    axes.tick_params(which="minor", length=0)
    axes.set_xlabel(x_label, color=INK, fontsize=FONT_PT)
    axes.set_ylabel(y_label, color=INK, fontsize=FONT_PT)


def plain_log(axes: Axes, which: str) -> None:
    """A logarithmic axis with numbers as people write them."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis = axes.xaxis if which == "x" else axes.yaxis
    (axes.set_xscale if which == "x" else axes.set_yscale)("log")
    low, high = axis.get_view_interval()
    ratio = high / max(low, 1e-12)
    steps = (1.0,) if ratio > 300 else (1.0, 2.0, 5.0) if ratio > 12 else (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.0)
    axis.set_major_locator(LogLocator(subs=steps, numticks=9))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
    axis.set_minor_formatter(NullFormatter())


def legend(figure: Figure, handles: list[Any]) -> None:
    """Below the axes, in as many columns as the longest name allows."""
    if not handles:
        return
    for handle in handles:
        handle.set_label(short(str(handle.get_label())))
    longest = max(len(str(handle.get_label())) for handle in handles)
    columns = max(1, min(4, len(handles), int(_LEGEND_CHARS / (longest + 8))))
    found = figure.legend(handles=handles, loc="outside lower center", ncols=columns, frameon=False, fontsize=SMALL_PT,
                          labelcolor=INK, handlelength=2.8, columnspacing=1.2, borderaxespad=0.0)  # fmt: skip
    found.set_in_layout(True)


def short(label: str) -> str:
    """A name that leaves room for the chart; tables have it in full."""
    label = label.replace("$", r"\$")  # no formula of matplotlib's
    return label if len(label) <= _LONGEST_NAME else f"{label[: _LONGEST_NAME - 2]}.."


def legend_height(num: int, longest: int) -> float:
    """Inches that a legend of `num` names takes."""
    longest = min(longest, _LONGEST_NAME)
    columns = max(1, min(4, num, int(_LEGEND_CHARS / (longest + 8))))
    return 0.18 * -(-num // columns) + 0.05 if num else 0.0


def to_inline_svg(figure: Figure, chart_id: str, alt: str) -> str:
    """The figure as an `svg` element that scales with its column: no prolog, no metadata, ids of its own."""
    import matplotlib

    written = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": chart_id, "path.simplify": True}):
        figure.savefig(written, format="svg", metadata=nothing, facecolor="none")
    text = written.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    view = re.search(r'viewBox="([^"]+)"', text)
    assert view is not None
    prefix = re.sub(r"[^A-Za-z0-9-]", "-", chart_id)
    text = re.sub(r'(\s)id="([^"]+)"', rf'\1id="{prefix}-\2"', text)
    text = re.sub(r'xlink:href="#([^"]+)"', rf'href="#{prefix}-\1"', text)
    text = text.replace("url(#", f"url(#{prefix}-")
    for placeholder, role in _ROLES.items():
        text = text.replace(placeholder, f"var(--{role})")
    text = re.sub(r"(\d+\.\d{2})\d+", r"\1", text)
    text = re.sub(r"\n\s*", "\n", text)
    head = f'<svg viewBox="{view[1]}" role="img" aria-label="{html.escape(alt, quote=True)}">'
    return re.sub(r"^<svg[^>]*>", lambda _: head, text, count=1)
