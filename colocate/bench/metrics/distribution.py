"""Percentiles and mean of many values."""

from __future__ import annotations

import math
from collections.abc import Iterable

from msgspec import Struct

from colocate.telemetry.quantiles import quantile

# Below this the 99.9th percentile is an interpolation towards the largest value: a number without evidence.
MIN_COUNT_P99_9 = 1000


class Distribution(Struct, frozen=True):
    """Of `count` values, in their unit. None where there is nothing to take it of; `withheld` says why a percentile is
    None all the same."""

    count: int = 0
    mean: float | None = None
    p50: float | None = None
    p75: float | None = None
    p90: float | None = None
    p95: float | None = None
    p99: float | None = None
    p99_9: float | None = None
    max: float | None = None
    withheld: str = ""


def distribution(values: Iterable[float | None]) -> Distribution:
    """Percentiles by linear interpolation between order statistics (type 7), mean = sum / count. None values are left
    out; p99.9 needs a thousand values."""
    known = sorted(value for value in values if value is not None)
    if not known:
        return Distribution(withheld="no values")
    p50, p75, p90, p95, p99, p99_9 = (quantile(known, share) for share in (0.5, 0.75, 0.9, 0.95, 0.99, 0.999))
    is_enough = len(known) >= MIN_COUNT_P99_9
    return Distribution(
        count=len(known),
        mean=math.fsum(known) / len(known),
        p50=p50,
        p75=p75,
        p90=p90,
        p95=p95,
        p99=p99,
        p99_9=p99_9 if is_enough else None,
        max=known[-1],
        withheld="" if is_enough else f"p99.9: too few values, {len(known)} of {MIN_COUNT_P99_9}",
    )
