"""A against B: every figure of every load that both have, as a difference with its interval and in words.

A and B are two folders, of which the arms of the same name are held against each other (or the only arm of each), or
two arms of the same results. Seeds that both have are compared in pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from colocate.bench.arms import compare_arms
from colocate.bench.figures import RunFigures
from colocate.bench.metrics.denominators import denominator
from colocate.bench.report.collect import Evidence, Point
from colocate.bench.report.curves import RATE, curves, share_bounds, slo_cases
from colocate.bench.report.curves import compare as compare_curves
from colocate.bench.report.model import Cell, Column, Difference, LineChart, Panel, Section, SloVerdict, Table
from colocate.bench.report.sections.rates import GOOD_AXIS, LEVEL, OVERVIEW, RATE_AXIS, attainment_line, bottom
from colocate.bench.report.verdict import signed_amount
from colocate.bench.report.words import count, number
from colocate.bench.statistics import Comparison, Interval, compare, means
from colocate.errors import ConfigError

_PERCENTILES = ("p50", "p90", "p99")
_LATENCIES = (("ttft_s", "TTFT"), ("tpot_s", "TPOT"), ("itl_p99_s", "ITL p99 of a request,"), ("e2e_s", "E2E"))
_LISTED = 6  # loads in the first screen
_PANELS = 8
_MORE_IS_BETTER = ("attainment", "goodput", "output", "completed", "goodput@90")


@dataclass(frozen=True)
class PairFigure:
    """One figure of one load: A, B and their difference."""

    load: str
    a: float | None
    b: float | None
    difference: Difference

    @property
    def finding(self) -> str:
        """In words; `A` and `B` stand for themselves."""
        found = self.difference
        if found.value is None or (found.low is None and found.high is None):
            return "no interval"
        if not found.is_resolved:
            return "not distinguishable"
        is_more = (found.value > 0) == (found.what.split(" ")[0] in _MORE_IS_BETTER)
        return "A is better" if is_more else "B is better"


def comparison_sections(
    a: Evidence, b: Evidence, labels: tuple[str, str], *, is_arms: bool
) -> tuple[tuple[PairFigure, ...], tuple[Section, ...]]:
    """Figures of every common load, and the section that shows them. Raises ConfigError where nothing is common."""
    arms = [labels] if is_arms else _common_arms(a, b)
    figures = tuple(each for arm_a, arm_b in arms for each in _figures(a, b, arm_a, arm_b, len(arms) > 1))
    if not figures:
        problem = f"{labels[0]} and {labels[1]} have no arm and load in common with valid runs"
        raise ConfigError("--compare", problem, "compare results of the same rates (or concurrencies)")
    return figures, (_section(figures, labels, _overlay(a, b, arms, labels)),)


def check_arms(evidence: Evidence, names: Sequence[str]) -> None:
    """Raises ConfigError for a name that no arm has."""
    for name in names:
        if name not in {arm.name for arm in evidence.arms}:
            known = ", ".join(arm.name for arm in evidence.arms)
            raise ConfigError("--compare", f"there is no arm or folder {name!r}", f"the arms are {known}")


def _common_arms(a: Evidence, b: Evidence) -> list[tuple[str, str]]:
    if len(a.arms) == len(b.arms) == 1:
        return [(a.arms[0].name, b.arms[0].name)]
    others = {arm.name for arm in b.arms}
    return [(arm.name, arm.name) for arm in a.arms if arm.name in others]


def _figures(a: Evidence, b: Evidence, arm_a: str, arm_b: str, has_many_arms: bool) -> Iterator[PairFigure]:
    prefix = f"{arm_a}, " if has_many_arms else ""
    case_a, case_b = slo_cases(a)[0], slo_cases(b)[0]
    curve_a, curve_b = curves(a, case_a).get(arm_a), curves(b, case_b).get(arm_b)
    if curve_a and curve_b and min(len(curve_a.points), len(curve_b.points)) > 1:
        yield PairFigure(f"{prefix}all rates", curve_a.value, curve_b.value, compare_curves(curve_a, curve_b))
    points_b = {(point.rate, point.concurrency): point for point in b.points if point.arm == arm_b and _valid(point)}
    for point in a.points:
        other = points_b.get((point.rate, point.concurrency))
        if point.arm == arm_a and _valid(point) and other is not None:
            yield from _point_figures(prefix + point.load, *_same_seeds(point, other))


def _valid(point: Point) -> bool:
    return any(view.run.status == "valid" for view in point.views)


def _same_seeds(a: Point, b: Point) -> tuple[Point, Point]:
    """Both with the seeds that both have, as the difference is made of these: one side's own seed would move its value
    and not the difference. As they are where no seed is common."""
    seeds_a, seeds_b = ({view.run.manifest.seed for view in point.views} for point in (a, b))
    common = seeds_a & seeds_b
    if not common:
        return a, b
    kept = [replace(point, views=tuple(view for view in point.views if view.run.manifest.seed in common))
            for point in (a, b)]  # fmt: skip
    return kept[0], kept[1]


def _point_figures(load: str, a: Point, b: Point) -> Iterator[PairFigure]:
    runs = [[view.run for view in point.views] for point in (a, b)]
    found = compare_arms(runs[0], runs[1], a.promises, denominator(a.rule))
    of_a, of_b = a.figures, b.figures
    assert of_a is not None and of_b is not None
    seeds = count(found.attainment.difference.num_seeds, "seed")
    n = f"{count(of_a.num_offered, 'request')} against {of_b.num_offered:,}, {seeds}"
    wider = _wider(found.attainment, of_a.attainment, of_b.attainment)
    yield _figure(load, "attainment", "percentage points", 100, of_a.attainment, of_b.attainment, wider, n)
    yield _figure(load, "goodput", "good requests/s", 1, of_a.goodput_per_s, of_b.goodput_per_s, found.goodput_per_s, n)
    for name, words in _LATENCIES:
        for percentile, each in zip(_PERCENTILES, getattr(found, name), strict=False):
            values = [getattr(getattr(side, name), percentile) for side in (of_a, of_b)]
            yield _figure(load, f"{words} {percentile}", "ms", 1e3, values[0], values[1], each, n)
    for what, unit, take in _RUN_FIGURES:
        values_a, values_b = (
            [value for view in point.views if (value := take(view.figures)) is not None] for point in (a, b)
        )
        if values_a and values_b:
            (each,) = compare([[value] for value in values_a], [[value] for value in values_b], means)
            mean_a, mean_b = sum(values_a) / len(values_a), sum(values_b) / len(values_b)
            yield _figure(load, what, unit, 1, Interval(mean_a, None, None), Interval(mean_b, None, None), each,
                          count(min(len(values_a), len(values_b)), "seed"))  # fmt: skip


def _wider(found: Comparison, a: Interval, b: Interval) -> Comparison:
    """With the wider of the bootstrap's interval and the one from both shares' own."""
    low, high = share_bounds(a, b)
    difference = found.difference
    if low is None or high is None or difference.low is None or difference.high is None:
        return found
    low, high = min(low, difference.low), max(high, difference.high)
    return Comparison(Interval(difference.value, low, high, difference.num_seeds), found.ratio, low > 0 or high < 0)


_RUN_FIGURES: tuple[tuple[str, str, Callable[[RunFigures], float | None]], ...] = (
    ("output", "tokens/s", lambda figures: figures.output_tokens_per_s),
    ("completed", "requests/s", lambda figures: figures.completed_per_s),
    ("ITL p50", "ms", lambda figures: _in_ms(figures.itl_s.p50)),
    ("ITL p99", "ms", lambda figures: _in_ms(figures.itl_s.p99)),
    ("KV peak", "share", lambda figures: figures.server.kv_usage_peak),
    ("preemptions", "per run", lambda figures: figures.server.num_preemptions),
    ("memory peak", "GiB", lambda figures: _in_gib(figures.server.memory_peak_bytes)),
    ("energy", "J/output token", lambda figures: figures.server.joules_per_output_token),
)


def _in_ms(seconds: float | None) -> float | None:
    return None if seconds is None else seconds * 1e3


def _in_gib(num_bytes: float | None) -> float | None:
    return None if num_bytes is None else num_bytes / 2**30


def _figure(
    load: str, what: str, unit: str, scale: float, a: Interval, b: Interval, found: Comparison, n: str
) -> PairFigure:
    value, low, high = (
        None if each is None else each * scale
        for each in (found.difference.value, found.difference.low, found.difference.high)
    )
    if found.difference.num_seeds < 2 and a.low is None and b.low is None:
        low = high = None  # one value each: there is nothing to draw from
    if low is not None and low == high:
        low = high = None  # every draw gave the same: that is no certainty
    ratio = found.ratio.value
    difference = Difference("A", "B", what, unit, value, low, high, None if ratio is None else (ratio - 1) * 100,
                            found.is_resolved and low is not None, False, n)  # fmt: skip
    value_a, value_b = (None if side.value is None else side.value * scale for side in (a, b))
    return PairFigure(load, value_a, value_b, difference)


def _overlay(
    a: Evidence, b: Evidence, arms: Sequence[tuple[str, str]], labels: tuple[str, str]
) -> tuple[LineChart, ...]:
    """Attainment against rate, A and B in one panel; a panel per arm where two folders have several."""
    curves_a, curves_b = curves(a, slo_cases(a)[0]), curves(b, slo_cases(b)[0])
    panels: list[Panel] = []
    words: list[str] = []
    for arm_a, arm_b in arms:
        pair = [found for found in (curves_a.get(arm_a), curves_b.get(arm_b)) if found and len(found.points) > 1]
        if len(pair) < 2:
            continue
        series = [attainment_line(labels[side], side, curve) for side, curve in enumerate(pair)]
        panels.append(Panel(arm_a if len(arms) > 1 else "", tuple(series)))
        words += [f"{each.label}{f', {arm_a}' if len(arms) > 1 else ''}: {number(each.y[0])} % at {each.x[0]:g} to "
                  f"{number(each.y[-1])} % at {each.x[-1]:g} {RATE}" for each in series]  # fmt: skip
    if not panels:
        return ()
    shown = tuple(panels[:_PANELS])
    title = "Requests within SLO against offered rate" + (
        f": the first {_PANELS} of {len(panels)} arms" if len(panels) > _PANELS else "")  # fmt: skip
    return (LineChart(OVERVIEW, title, "; ".join(words) + ".", RATE_AXIS, GOOD_AXIS, shown, LEVEL, 100.0,
                      bottom([each for panel in shown for each in panel.series]), is_dodged=True),)  # fmt: skip


def _section(figures: Sequence[PairFigure], labels: tuple[str, str], charts: tuple[LineChart, ...]) -> Section:
    columns = (Column("load"), Column("figure"), Column("unit"), Column("A"), Column("B"), Column("A minus B"),
               Column("A minus B", "% of B"), Column("finding"), Column("n"))  # fmt: skip
    rows = []
    for each in figures:
        found = each.difference
        tone = {"A is better": "good", "B is better": "bad"}.get(each.finding, "")
        values = (Cell(text="-") if value is None else Cell(value) for value in (each.a, each.b))
        amount = Cell(text="-") if found.value is None else Cell(found.value, found.low, found.high)
        share = Cell(text="-") if found.percent is None else Cell(found.percent)
        rows.append((Cell(text=each.load), Cell(text=found.what), Cell(text=found.unit), *values, amount, share,
                     Cell(text=each.finding, tone=tone), Cell(text=found.n)))  # fmt: skip
    lead = (
        f"A is {labels[0]}, B is {labels[1]}. Intervals are 95%, by the bootstrap over seeds, then requests; seeds "
        "that both have are drawn in pairs. Of figures that do not differ, one in twenty is resolved by chance.",
    )
    table = Table("differences", "Every figure that both have: A minus B.", columns, tuple(rows))
    return Section("comparison", "A against B", lead, charts, (table,))


def comparison_words(
    figures: Sequence[PairFigure], labels: tuple[str, str], device: str
) -> tuple[str, tuple[SloVerdict, ...]]:
    """The headline, and one sentence per load."""
    shares = [each for each in figures if each.difference.what == "attainment"]
    found = [each.finding for each in shares]
    parts = (
        (found.count("A is better"), f"{labels[0]} keeps more"),
        (found.count("B is better"), f"{labels[1]} keeps more"),
        (found.count("not distinguishable"), "the two are not distinguishable"),
        (found.count("no interval"), "no interval can be had"),
    )
    of = f" of {count(len(shares), 'load')}" if len(shares) > 1 else ""
    summary = "; ".join(f"at {num}{of} {words}" if of else words for num, words in parts if num)
    headline = f"Measured on {device}. A is {labels[0]}, B is {labels[1]}. By requests within SLO, {summary}."
    of_curves = [
        each for each in figures if each.difference.what not in ("attainment", "goodput") and "all rates" in each.load
    ]
    sentences = [f"Over {each.load}: {_words(each)}." for each in of_curves][:_LISTED]
    sentences += [_load_sentence(each, figures) for each in shares[:_LISTED]]
    if len(shares) > _LISTED:
        sentences.append(f"{len(shares) - _LISTED} more loads stand in the table.")
    verdict = SloVerdict("A against B", "", "unknown", "", (), None, "", "", None, tuple(sentences))
    return headline, (verdict,)


def _load_sentence(share: PairFigure, figures: Sequence[PairFigure]) -> str:
    wanted = ("attainment", "TTFT p90", "TPOT p90")
    shown = [each for each in figures if each.load == share.load and each.difference.what in wanted]
    return f"At {share.load}: {'; '.join(map(_words, shown))}."


def _words(each: PairFigure) -> str:
    found = each.difference
    if found.value is None:
        return f"{found.what} is not known on both sides"
    unit = "%" if found.unit == "percentage points" else found.unit
    difference = signed_amount(found)
    return f"{found.what} {number(each.a)} against {number(each.b)} {unit}, difference {difference}, {each.finding}"
