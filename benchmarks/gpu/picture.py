"""The PNG of a group: one row of panels per section that has something to draw."""

from __future__ import annotations

import traceback
from pathlib import Path

from gpu.sections import SECTIONS
from gpu.sheet import GroupFile


def draw_group(group: GroupFile, path: Path) -> None:
    """A section without data, or whose drawing fails, is left out; nothing is written where none is left, or where
    matplotlib is not installed."""
    try:
        import matplotlib as mpl

        mpl.use("Agg")
        from matplotlib.figure import Figure
    except ImportError:
        print("no picture: matplotlib is not installed")
        return
    drawn = []
    for section in SECTIONS:
        result = group.sections.get(section.name)
        if result is None or not result.data or not hasattr(section.load(), "draw"):
            continue
        drawn.append((section, result.data))
    if not drawn:
        return
    figure = Figure(figsize=(13, 4.2 * len(drawn)), layout="constrained")
    rows = figure.subfigures(len(drawn), 1, squeeze=False)[:, 0]
    for (section, data), row in zip(drawn, rows, strict=True):
        row.suptitle(section.name if group.is_real else f"{section.name} (fake backend: no figure means anything)")
        try:
            section.load().draw(row, data)
        except Exception:  # the figures are in the JSON file; a picture is only a picture
            print(f"cannot draw {section.name}:\n{traceback.format_exc()}")
    figure.savefig(path, dpi=110)
