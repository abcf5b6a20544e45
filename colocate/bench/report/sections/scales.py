"""What each arm would keep if every target were tighter or looser, from the same log."""

from __future__ import annotations

from collections.abc import Sequence

from colocate.bench.figures import attainment_at_scales
from colocate.bench.report.collect import Evidence, Point
from colocate.bench.report.model import LineChart, Panel, Series
from colocate.bench.report.sections.rates import GOOD_AXIS, LEVEL
from colocate.bench.report.words import number, percent
from colocate.bench.statistics import proportion

_SCALES = (0.25, 0.35, 0.5, 0.7, 1.0, 1.4, 2.0, 2.8, 4.0)


def scale_chart(evidence: Evidence, points: Sequence[Point]) -> LineChart | None:
    """Attainment against the scale of the SLO at one load. None where nothing is promised."""
    if not any(name for name in evidence.promises.by_name):
        return None
    series: list[Series] = []
    words: list[str] = []
    for arm in evidence.leading():
        point = next((point for point in points if point.arm == arm.name), None)
        if point is None:
            continue
        shares = _shares(evidence, point)
        series.append(Series(arm.name, arm.slot, _SCALES, tuple(shares)))
        least = next((scale for scale, share in zip(_SCALES, shares, strict=True) if share and share >= LEVEL), None)
        words.append(f"{arm.name} keeps {LEVEL:g}% " + ("at none of these scales" if least is None else
                     f"from {number(least)} times the targets"))  # fmt: skip
    title = f"Requests within SLO at {points[0].load}, all targets scaled"
    return LineChart("slo-scale", title, "; ".join(words) + ".", "targets times (right: easier)", GOOD_AXIS,
                     (Panel("", tuple(series)),), LEVEL, 100.0, is_x_log=True, level_x=1.0)  # fmt: skip


def _shares(evidence: Evidence, point: Point) -> list[float | None]:
    by_run = [attainment_at_scales(view.run, _SCALES, evidence.promises, evidence.rule) for view in point.views]
    pooled = (proportion(sum(each[scale].good for each in by_run), sum(each[scale].of for each in by_run))
              for scale in _SCALES)  # fmt: skip
    return [percent(share.value) for share in pooled]
