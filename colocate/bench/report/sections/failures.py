"""What went wrong: requests that did not finish, by kind of error; and of the others, which promise was broken."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from colocate.bench.metrics.attainment import verdict
from colocate.bench.metrics.window import offered
from colocate.bench.report.collect import Evidence, Point
from colocate.bench.report.model import BarChart, Cell, Chart, Column, Section, Table
from colocate.bench.report.words import count, listed

_MAX_KINDS = 8  # in the chart; the table has all
_MAX_BARS = 12
_UNFINISHED = "did not finish"


def failures_section(evidence: Evidence) -> Section:
    """Failures by outcome and kind of error; misses by the promise that was broken."""
    points = [point for point in evidence.points if point.views]
    failed_lead, failed_charts, failed_tables = _failed(points)
    missed_lead, missed_charts, missed_tables = _missed(evidence, points)
    return Section("failures", "Failures and broken promises", (failed_lead, missed_lead),
                   (*failed_charts, *missed_charts), (*failed_tables, *missed_tables))  # fmt: skip


_Part = tuple[str, tuple[Chart, ...], tuple[Table, ...]]


def _failed(points: Sequence[Point]) -> _Part:
    found: list[tuple[Point, Counter[str], int]] = []
    for point in points:
        kinds: Counter[str] = Counter()
        for view in point.views:
            kinds.update(view.figures.failures)
        found.append((point, kinds, _num_offered(point)))
    failing = [(point, kinds, of) for point, kinds, of in found if kinds]
    num_offered = sum(of for _, _, of in found)
    total = sum(sum(kinds.values()) for _, kinds, _ in found)
    if not failing:
        return f"All {count(num_offered, 'offered request')} finished.", (), ()
    names = [kind for kind, _ in sum((kinds for _, kinds, _ in failing), Counter[str]()).most_common()]
    lead = f"{total:,} of {count(num_offered, 'offered request')} did not finish. Each counts as a miss."
    worst = sorted(failing, key=lambda each: -sum(each[1].values()) / each[2])[:_MAX_BARS]
    bars = tuple(f"{point.arm}, {point.load}" for point, _, _ in worst)
    parts = tuple((kind, tuple(kinds[kind] / of * 100 for _, kinds, of in worst)) for kind in names[:_MAX_KINDS])
    gist = "; ".join(f"{bar}: " + ", ".join(f"{kind} {num} of {of}" for kind, num in kinds.most_common(3))
                     for bar, (_, kinds, of) in zip(bars, worst, strict=True))  # fmt: skip
    title = "Requests that did not finish, % of offered"
    title += f": the {_MAX_BARS} worst of {len(failing)} points" if len(failing) > _MAX_BARS else ""
    chart = BarChart("failure-bars", title, f"{gist}.", "% of offered", bars, parts)
    rows = tuple(
        (Cell(text=point.arm), Cell(text=point.load), Cell(of), *(Cell(kinds[kind]) for kind in names))
        for point, kinds, of in failing
    )
    columns = (Column("arm"), Column("load"), Column("offered", "requests"),
               *(Column(kind, "requests") for kind in names))  # fmt: skip
    table = Table("failure-table", "Requests that did not finish, by outcome and kind of error.", columns, rows,
                  is_long=len(rows) > _MAX_BARS)  # fmt: skip
    return lead, (chart,), (table,)


def broken_promises(point: Point) -> Counter[str]:
    """Of the offered requests of all seeds those that are no good, by what broke: `did not finish`, `TTFT only`, `TPOT
    and ITL`, ..."""
    found: Counter[str] = Counter()
    for view in point.views:
        for row in offered(view.run):
            if row.outcome != "finished":
                found[_UNFINISHED] += 1
                continue
            told = verdict(row, point.promises.of(row))
            broken = [name.upper() for name in ("ttft", "tpot", "itl") if getattr(told, name) is False]
            if broken:
                found[f"{broken[0]} only" if len(broken) == 1 else listed(broken)] += 1
    return found


def _missed(evidence: Evidence, points: Sequence[Point]) -> _Part:
    by_point = [(point, broken_promises(point)) for point in points]
    kinds = [kind for kind, _ in sum((broken for _, broken in by_point), Counter[str]()).most_common()]
    if not kinds:
        return "No promise was broken.", (), ()
    load = _most_broken_load(evidence, points)
    shown = [(point, broken) for point, broken in by_point if point.load == load]
    shown.sort(key=lambda each: sum(each[1].values()) / _num_offered(each[0]))
    shown = shown[:_MAX_BARS]
    parts = tuple((kind, tuple(broken[kind] / _num_offered(point) * 100 for point, broken in shown)) for kind in kinds)
    gist = "; ".join(
        f"{point.arm}: " + (", ".join(f"{kind} {num}" for kind, num in broken.most_common(3)) or "none")
        + f" of {_num_offered(point)}"
        for point, broken in shown
    )  # fmt: skip
    title = f"Why requests were no good at {load}, % of offered"
    chart = BarChart("missed-bars", title, f"{gist}.", "% of offered", tuple(point.arm for point, _ in shown),
                     parts)  # fmt: skip
    columns = (Column("arm"), Column("load"), Column("offered", "requests"), Column("no good", "requests"),
               *(Column(kind, "requests") for kind in kinds))  # fmt: skip
    rows = tuple(
        (Cell(text=point.arm), Cell(text=point.load), Cell(_num_offered(point)), Cell(sum(broken.values())),
         *(Cell(broken[kind]) for kind in kinds))
        for point, broken in by_point
    )  # fmt: skip
    caption = "Requests that were no good, by the promise that was broken."
    table = Table("missed-table", caption, columns, rows, is_long=True)
    lead = f"Which promise breaks first tells what an arm is short of; shown at {load}, the table has every load."
    return lead, (chart,), (table,)


def _most_broken_load(evidence: Evidence, points: Sequence[Point]) -> str:
    """The highest rate that most arms have: there most is broken. Without a rate, the last load."""
    if not evidence.rates:
        return points[-1].load
    num_arms = Counter(point.rate for point in points if point.rate is not None)
    most = max(num_arms.values())
    rate = max(rate for rate, num in num_arms.items() if num == most)
    return next(point.load for point in points if point.rate == rate)


def _num_offered(point: Point) -> int:
    return sum(view.figures.num_offered for view in point.views)
