"""What a report says, before it is drawn: every number once. HTML, Markdown and JSON are three ways to write this down.

Values stand in the unit their column or axis names (ms, %, requests/s), unrounded; renderers round, and compute
nothing. The JSON form is this struct, so a number in a table or a chart can be looked up there.
"""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

REPORT_VERSION = 1
TARGET_SHARE = 0.9  # goodput@90: the attainment that a rate has to keep

Group = Literal["static", "shared", "chunked", "dynamic", "peer", "other"]
Finding = Literal["dynamic", "static", "tie", "unresolved", "one static", "unknown"]
Dash = Literal["solid", "dotted", "dashed", "dashdot"]


class Arm(Struct, frozen=True):
    """One way to run the server. `slot` is its colour, marker and dash in every chart; -1 is drawn thin and grey."""

    name: str
    group: Group
    system: str
    flags: tuple[str, ...]
    slot: int


class Figure(Struct, frozen=True):
    """A value with its 95% interval, both None where they cannot be had. `n` is what stands behind it, in words."""

    value: float | None
    low: float | None = None
    high: float | None = None
    n: str = ""


class Difference(Struct, frozen=True):
    """A - B in `unit`. `is_resolved` where the interval does not hold zero. `is_bound`: one of the two lies outside the
    rates tested, so the true difference is further from zero than `value`, and that end of the interval is None."""

    a: str
    b: str
    what: str
    unit: str
    value: float | None
    low: float | None
    high: float | None
    percent: float | None
    is_resolved: bool
    is_bound: bool
    n: str
    reason: str = ""  # why it is not resolved although its interval does not hold zero


class Goodput(Struct, frozen=True):
    """The highest rate of one arm at which `TARGET_SHARE` of what is offered is good, requests/s.

    `above` is the last rate tested that keeps it and `below` the first that does not; None where there is none.
    """

    slo: str
    arm: str
    value: float | None
    low: float | None
    high: float | None
    above: float | None
    below: float | None
    is_resolved: bool
    reason: str
    num_seeds: int


class SloVerdict(Struct, frozen=True):
    """Who wins under one SLO, and whether dynamic partitioning pays: the best dynamic arm against the best static plan.

    `winner` is empty where several keep every rate tested, none keeps the lowest, or nothing was measured. `level`
    holds it and the arms that cannot be told from it (those that keep every rate tested), `lead` its difference to the
    best of the others. `best_static` is what the controller is held against: the static plan that it cannot be told
    from, where the best one is below it. `sentences` say it; `finding` is the same for programs.
    """

    slo: str
    targets: str
    finding: Finding
    winner: str
    level: tuple[str, ...]
    lead: Difference | None
    best_dynamic: str
    best_static: str
    difference: Difference | None
    sentences: tuple[str, ...]


class Verdict(Struct, frozen=True):
    """The first screen. `device` and `model` are what was measured and `load` what it was given, in words; `headline`
    says the most important in two sentences; `by_slo` starts with the SLO of the runs."""

    device: str
    model: str
    load: str
    headline: str
    by_slo: tuple[SloVerdict, ...]
    cautions: tuple[str, ...]


class Cell(Struct, frozen=True, omit_defaults=True):
    """A number with its interval, or text, or both: then the text follows the number. `tone` is good, bad or muted."""

    value: float | int | None = None
    low: float | None = None
    high: float | None = None
    text: str = ""
    tone: str = ""


class Column(Struct, frozen=True):
    label: str
    unit: str = ""


class Table(Struct, frozen=True):
    """The first column names the row. `is_long` tables are folded away until asked for."""

    id: str
    caption: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    is_long: bool = False


class Series(Struct, frozen=True):
    """One line. `slot` is the arm's; `low` and `high` are error bars, empty where there are none."""

    label: str
    slot: int
    x: tuple[float, ...]
    y: tuple[float | None, ...]
    low: tuple[float | None, ...] = ()
    high: tuple[float | None, ...] = ()
    dash: Dash | None = None  # None: the arm's own
    has_marker: bool = True
    is_step: bool = False


class Panel(Struct, frozen=True):
    """One pair of axes. `drops` are (x, y, slot): a line from the point down to the axis."""

    title: str
    series: tuple[Series, ...]
    drops: tuple[tuple[float, float, int], ...] = ()


class LineChart(Struct, frozen=True, tag="lines"):
    """One panel, or small multiples with shared axes. `level` is a horizontal line, `level_x` a vertical one. The y
    axis starts at `y_min`; `is_dodged` sets lines a little apart along x, as they may lie on each other."""

    id: str
    title: str
    alt: str
    x_label: str
    y_label: str
    panels: tuple[Panel, ...]
    level: float | None = None
    y_max: float | None = None
    y_min: float = 0.0
    level_x: float | None = None
    is_x_log: bool = False
    is_y_log: bool = False
    is_dodged: bool = False
    legend: tuple[tuple[str, Dash], ...] = ()  # what the dashes mean, where they are not the arms'


class Mark(Struct, frozen=True):
    """A point with its interval: in a scatter both ways, in a dot chart along x only."""

    label: str
    slot: int
    x: float
    y: float | None = None
    low: float | None = None
    high: float | None = None
    y_low: float | None = None
    y_high: float | None = None
    is_open: bool = False  # the true value lies further right: nothing bounds it
    is_below: bool = False  # it lies to the left: `x` is the lowest that was tested


class ScatterChart(Struct, frozen=True, tag="scatter"):
    """`front` joins the points that no other one beats on both axes."""

    id: str
    title: str
    alt: str
    x_label: str
    y_label: str
    marks: tuple[Mark, ...]
    front: tuple[tuple[float, float], ...]
    levels: tuple[float | None, float | None] = (None, None)  # targets on x and y


class DotChart(Struct, frozen=True, tag="dots"):
    """One row per arm, best on top. `level` is a vertical line."""

    id: str
    title: str
    alt: str
    x_label: str
    marks: tuple[Mark, ...]
    level: float | None = None
    x_max: float | None = None


class BarChart(Struct, frozen=True, tag="bars"):
    """Stacked, one bar per row. `parts[i].values[j]` is the part i of row j. `is_ordered`: the parts have an order (of
    units, say), which their shades follow."""

    id: str
    title: str
    alt: str
    x_label: str
    rows: tuple[str, ...]
    parts: tuple[tuple[str, tuple[float, ...]], ...]
    x_max: float | None = None
    is_ordered: bool = False


class Band(Struct, frozen=True):
    """A plan in force from start to end, seconds of the run. Units are None where the plan's name does not tell."""

    start_s: float
    end_s: float
    plan: str
    prefill_units: int | None
    decode_units: int | None


class TimelineChart(Struct, frozen=True, tag="timeline"):
    """What was in force, and what waited meanwhile. `queues` and `kv` are lines over the same seconds."""

    id: str
    title: str
    alt: str
    bands: tuple[Band, ...]
    queues: tuple[Series, ...]
    kv: Series | None
    measured: tuple[float, float]


class HeatChart(Struct, frozen=True, tag="heat"):
    """`z[row][column]` in percent, None where nothing was measured; rows from bottom to top."""

    id: str
    title: str
    alt: str
    x_label: str
    y_label: str
    columns: tuple[str, ...]
    rows: tuple[str, ...]
    z: tuple[tuple[float | None, ...], ...]


Chart = LineChart | ScatterChart | DotChart | BarChart | TimelineChart | HeatChart


class Section(Struct, frozen=True):
    """One question of the report. `lead` answers it in sentences; `code` is shown as typed."""

    id: str
    title: str
    lead: tuple[str, ...]
    charts: tuple[Chart, ...] = ()
    tables: tuple[Table, ...] = ()
    notes: tuple[str, ...] = ()
    code: tuple[str, ...] = ()


class ReportModel(Struct, frozen=True):
    """A whole report. `created` is the newest result's time, so that the same results give the same report."""

    version: int
    title: str
    colocate: str
    created: str
    denominator: str
    results: tuple[str, ...]
    verdict: Verdict
    arms: tuple[Arm, ...]
    goodput: tuple[Goodput, ...]
    sections: tuple[Section, ...]
