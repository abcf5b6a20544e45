"""Quantiles of samples, and the one rule for a request's own 99th percentile of its gaps between tokens.

The simulator and the bench share these, so that a figure means the same wherever it is printed.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence

from colocate.config.slo import LATE_GAPS_SHARE


def quantile(ordered: Sequence[float], share: float) -> float:
    """By linear interpolation between order statistics (type 7: Hyndman and Fan 1996). `ordered` rises and is not
    empty; 0 <= share <= 1. In the unit of the samples."""
    place = share * (len(ordered) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def itl_p99(token_times: Sequence[float]) -> float | None:
    """What at most LATE_GAPS_SHARE of the gaps between these times exceed (rounded down, so none of fewer than a
    hundred gaps); None of fewer than two times. `token_times` rises; in its unit."""
    gaps = sorted(map(operator.sub, token_times[1:], token_times))
    return gaps[len(gaps) - 1 - int(LATE_GAPS_SHARE * len(gaps))] if gaps else None
