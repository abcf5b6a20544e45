"""What the looks at the server say of the window. None where it does not tell."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import pairwise

from colocate.bench.metrics.throughput import num_output_tokens
from colocate.bench.metrics.window import Window
from colocate.bench.records import RequestRow, ServerSample


def inside(samples: Iterable[ServerSample], window: Window) -> list[ServerSample]:
    """The samples taken in the window."""
    return [sample for sample in samples if window.holds(sample.at_s)]


def mean_of(values: Iterable[float | None]) -> float | None:
    """Sum / count of the samples that tell, in their unit: every sample weighs the same."""
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if known else None


def peak_of(values: Iterable[float | None]) -> float | None:
    """The largest of the samples that tell, in their unit."""
    return max((value for value in values if value is not None), default=None)


def increase(counts: Iterable[int | None]) -> int | None:
    """How much a counter grew over the samples; one that falls was restarted, and counts from zero. None of fewer than
    two samples that tell."""
    known = [count for count in counts if count is not None]
    if len(known) < 2:
        return None
    return sum(later - earlier if later >= earlier else later for earlier, later in pairwise(known))


def energy_j(samples: Sequence[ServerSample]) -> float | None:
    """Integral of power over time by the trapezoid rule, between the first and the last sample, in joules. None of
    fewer than two samples with power."""
    power = [(sample.at_s, sample.power_w) for sample in samples if sample.power_w is not None]
    if len(power) < 2:
        return None
    return math.fsum(
        (later_s - earlier_s) * (earlier_w + later_w) / 2
        for (earlier_s, earlier_w), (later_s, later_w) in pairwise(power)
    )


def joules_per_output_token(samples: Sequence[ServerSample], rows: Iterable[RequestRow]) -> float | None:
    """energy_j / output tokens that arrived between the same two samples: of the whole device, idle power and prefill
    included. None without power or tokens."""
    energy = energy_j(samples)
    times_s = [sample.at_s for sample in samples if sample.power_w is not None]
    if energy is None:
        return None
    num_tokens = num_output_tokens(rows, Window(times_s[0], times_s[-1]))
    return energy / num_tokens if num_tokens else None
