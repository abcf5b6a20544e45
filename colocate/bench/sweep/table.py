"""What a sweep has found so far, in a terminal: attainment by arm and rate, and goodput."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.table import Table
from rich.text import Text

from colocate.bench.arms import ArmFigures, arm_figures
from colocate.bench.figures import promises_of
from colocate.bench.goodput import GoodputAt, goodput_at
from colocate.bench.read import Run, Sweep

MAX_RATES = 8  # columns; a search tries more, each arm others

Points = dict[str, dict[float, list[Run]]]


def points_of(sweep: Sweep) -> Points:
    """Runs by arm, in the order of the manifest, and by rate."""
    points: Points = {arm.name: {} for arm in sweep.manifest.arms}
    for run in sweep.runs:
        rate = run.manifest.offered_rate
        if run.manifest.arm in points and rate is not None and run.manifest.status != "partial":
            points[run.manifest.arm].setdefault(rate, []).append(run)
    return points


def sweep_table(sweep: Sweep, attainment: float = 0.9) -> Table:
    """One row per arm. `93% 86-97` is the share of all requests of all seeds with its 95% interval; `!` marks points
    with runs that are not valid, which are left out of the goodput."""
    points = points_of(sweep)
    rates = sorted({rate for of_arm in points.values() for rate in of_arm})
    wide = len(rates) <= MAX_RATES
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title_justify="left")
    table.add_column("arm", no_wrap=True)
    for rate in rates if wide else ():
        table.add_column(f"{rate:g}/s", justify="right", no_wrap=True)
    table.add_column(f"goodput@{attainment * 100:g}", justify="right", no_wrap=True)
    if not wide:
        table.add_column("rates", justify="right")
    table.add_column("", style="dim")
    for arm, of_arm in points.items():
        cells = [_cell(of_arm.get(rate, [])) for rate in rates] if wide else []
        found = _goodput(of_arm, attainment)
        tried = [] if wide else [str(len(of_arm))]
        table.add_row(arm, *cells, _goodput_text(found), *tried, "" if found is None else found.reason)
    return table


def attainment_text(figures: ArmFigures) -> str:
    found = figures.attainment
    if found.value is None:
        return "-"
    if found.low is None or found.high is None:
        return f"{found.value:.0%}"
    return f"{found.value:.0%} {found.low * 100:.0f}-{found.high * 100:.0f}"


def _cell(runs: Sequence[Run]) -> Text:
    if not runs:
        return Text("-", style="dim")
    figures = _figures(runs, valid_only=False)
    if not figures.num_offered:
        return Text("failed", style="red")
    marked = any(run.status != "valid" for run in runs)
    return Text(attainment_text(figures) + (" !" if marked else ""), style="yellow" if marked else "")


def _goodput(of_arm: dict[float, list[Run]], attainment: float) -> GoodputAt | None:
    figures = [_figures(runs, valid_only=True) for runs in of_arm.values()]
    known = [found.rate_point for found in figures if found.num_offered]
    return goodput_at(known, attainment) if known else None


def _goodput_text(found: GoodputAt | None) -> str:
    if found is None:
        return "-"
    if found.rate_per_s.value is None:
        return f"< {found.below_per_s:g}/s" if found.below_per_s is not None else "-"
    if found.below_per_s is None:
        return f">= {found.rate_per_s.value:.3g}/s"
    low, high = found.rate_per_s.low, found.rate_per_s.high
    interval = "" if low is None else f" {low:.3g}-{'?' if high is None else f'{high:.3g}'}"
    return f"{found.rate_per_s.value:.3g}/s{interval}{'' if found.is_resolved else ' unresolved'}"


def _figures(runs: Sequence[Run], *, valid_only: bool) -> ArmFigures:
    return arm_figures(runs, promises_of(runs[0]), valid_only=valid_only)
