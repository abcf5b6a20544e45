"""One arm at one rate over its seeds: every figure with an interval, and two arms against each other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
from msgspec import Struct

from colocate.bench.goodput import RatePoint
from colocate.bench.metrics.attainment import OURS, Promises, is_good
from colocate.bench.metrics.denominators import Denominator
from colocate.bench.metrics.distribution import distribution
from colocate.bench.metrics.latency import e2e_s, itl_p99_s, itl_s, tpot_s, ttft_s
from colocate.bench.metrics.throughput import num_output_tokens, per_second
from colocate.bench.metrics.window import offered, window
from colocate.bench.read import Run
from colocate.bench.records import RequestRow
from colocate.bench.statistics import (
    NO_COMPARISON,
    Comparison,
    Interval,
    Proportion,
    Values,
    bootstrap,
    bounds,
    compare,
    compare_draws,
    count_draws,
    over_runs,
    pick_both,
    pick_seeds,
    proportion,
    quantiles_at,
)

Latency = Literal["ttft_s", "tpot_s", "itl_p99_s", "e2e_s"]
LATENCIES: dict[Latency, Callable[[RequestRow], float | None]] = {
    "ttft_s": ttft_s,
    "tpot_s": tpot_s,
    "itl_p99_s": itl_p99_s,
    "e2e_s": e2e_s,
}
_SHARES = (0.5, 0.9, 0.99)


class Percentiles(Struct, frozen=True):
    """Over the requests of all seeds, each with its interval; in seconds."""

    p50: Interval
    p90: Interval
    p99: Interval


class ArmFigures(Struct, frozen=True):
    """Runs of one arm at one rate, one per seed. `attainment` pools the requests; its interval is the wider of Wilson's
    over the requests and the bootstrap's over the seeds. Latencies are per request (`itl_p99_s`: of each request's own
    99th percentile); `itl_all_p50_s` and `itl_all_p99_s` are over all gaps, the mean of the runs' values."""

    arm: str
    offered_rate: float | None  # requests per second, nominal; None: closed loop
    concurrency: int | None
    seeds: tuple[int, ...]
    num_runs_left_out: int
    good: tuple[int, ...]  # per seed
    offered: tuple[int, ...]  # per seed, what the denominator counts
    attainment: Interval
    attainment_pooled: Proportion
    goodput_per_s: Interval
    output_tokens_per_s: Interval
    ttft_s: Percentiles
    tpot_s: Percentiles
    itl_p99_s: Percentiles
    e2e_s: Percentiles
    itl_all_p50_s: Interval
    itl_all_p99_s: Interval

    @property
    def num_offered(self) -> int:
        return sum(self.offered)

    @property
    def rate_point(self) -> RatePoint:
        """For `goodput_at`. Open loop only."""
        assert self.offered_rate is not None, "a closed loop has no offered rate"
        return RatePoint(self.offered_rate, self.good, self.offered, self.attainment)


class ArmComparison(Struct, frozen=True):
    """A against B at one rate: differences are A - B, ratios A / B. Latencies at p50, p90 and p99."""

    attainment: Comparison
    goodput_per_s: Comparison
    ttft_s: tuple[Comparison, ...]
    tpot_s: tuple[Comparison, ...]
    itl_p99_s: tuple[Comparison, ...]
    e2e_s: tuple[Comparison, ...]


def arm_figures(
    runs: Sequence[Run], promises: Promises, rule: Denominator = OURS, *, seed: int = 0, valid_only: bool = True
) -> ArmFigures:
    """Of one or more runs of the same arm at the same rate. Runs that say nothing about their arm (`says_something`)
    are left out and counted, unless `valid_only` is false. Raises ValueError without runs."""
    if not runs:
        raise ValueError("an arm without runs has no figures")
    kept = sorted((run for run in runs if says_something(run) or not valid_only), key=lambda run: run.manifest.seed)
    rows = [offered(run) for run in kept]
    good, of = counts(rows, promises, rule)
    windows = [window(run.manifest) for run in kept]
    lengths_s = [found.length_s for found in windows]
    gaps = [distribution(gap_s for row in of_run for gap_s in itl_s(row)) for of_run in rows]
    tokens = [per_second(num_output_tokens(run.rows, found), found) for run, found in zip(kept, windows, strict=True)]
    first = runs[0].manifest
    return ArmFigures(
        arm=first.arm,
        offered_rate=first.offered_rate,
        concurrency=first.concurrency,
        seeds=tuple(run.manifest.seed for run in kept),
        num_runs_left_out=len(runs) - len(kept),
        good=good,
        offered=of,
        attainment=attainment_interval(good, of, seed=seed),
        attainment_pooled=proportion(sum(good), sum(of)),
        goodput_per_s=_counts_interval(good, of, lengths_s, seed),
        output_tokens_per_s=over_runs(tokens, seed=seed),
        itl_all_p50_s=over_runs([found.p50 for found in gaps], seed=seed),
        itl_all_p99_s=over_runs([found.p99 for found in gaps], seed=seed),
        ttft_s=_percentiles(rows, "ttft_s", seed),
        tpot_s=_percentiles(rows, "tpot_s", seed),
        itl_p99_s=_percentiles(rows, "itl_p99_s", seed),
        e2e_s=_percentiles(rows, "e2e_s", seed),
    )


def says_something(run: Run) -> bool:
    """Whether a run tells of its arm: it is valid, or the server failed under its load, so that its requests are
    misses. A client that was late (invalid), a run that was cut, and a server that never came up do not."""
    return run.status == "valid" or (run.status == "failed" and bool(offered(run)))


def compare_arms(
    runs_a: Sequence[Run], runs_b: Sequence[Run], promises: Promises, rule: Denominator = OURS, *, seed: int = 0
) -> ArmComparison:
    """Runs of two arms at one rate that say something. Where seeds are common to both, those are compared, in pairs."""
    a, b, is_paired = _paired(runs_a, runs_b)
    rows_a, rows_b = [offered(run) for run in a], [offered(run) for run in b]
    counts_a, counts_b = counts(rows_a, promises, rule), counts(rows_b, promises, rule)
    lengths_a, lengths_b = ([window(run.manifest).length_s for run in runs] for runs in (a, b))
    latencies = {
        name: _compare_latency(_values(rows_a, name), _values(rows_b, name), is_paired, seed) for name in LATENCIES
    }
    return ArmComparison(
        attainment=_compare_counts(counts_a, counts_b, counts_a[1], counts_b[1], is_paired, seed),
        goodput_per_s=_compare_counts(counts_a, counts_b, lengths_a, lengths_b, is_paired, seed),
        **latencies,
    )


def counts(
    rows: Sequence[Sequence[RequestRow]], promises: Promises, rule: Denominator = OURS
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Good requests and what the rule counts, per run."""
    good: list[int] = []
    of: list[int] = []
    for of_run in rows:
        counted = [row for row in of_run if rule.counts(row, promises.of(row))]
        of.append(len(counted))
        good.append(sum(is_good(row, promises.of(row)) and rule.allows_good(row, promises.of(row)) for row in counted))
    return tuple(good), tuple(of)


def attainment_interval(good: Sequence[int], of: Sequence[int], *, seed: int = 0) -> Interval:
    """Pooled share, with the wider of Wilson's interval and the bootstrap's over seeds: the first knows how few
    requests there are where all are good, the second how much seeds differ."""
    pooled = proportion(sum(good), sum(of))
    spread = _counts_interval(good, of, of, seed)
    if pooled.low is None or pooled.high is None or spread.low is None or spread.high is None:
        return Interval(pooled.value, pooled.low, pooled.high, len(of))
    return Interval(pooled.value, min(pooled.low, spread.low), max(pooled.high, spread.high), len(of))


def _counts_interval(good: Sequence[int], of: Sequence[int], per: Sequence[float], seed: int) -> Interval:
    if not sum(per):
        return Interval(None, None, None, len(of))
    low, high = bounds(_draws(good, of, per, seed))
    return Interval(sum(good) / sum(per), low, high, len(of))


def _draws(good: Sequence[int], of: Sequence[int], per: Sequence[float], seed: int) -> Values:
    rng = np.random.default_rng(seed)
    return count_draws(good, of, per, pick_seeds(len(of), rng), rng)


def _compare_counts(
    a: tuple[tuple[int, ...], tuple[int, ...]],
    b: tuple[tuple[int, ...], tuple[int, ...]],
    per_a: Sequence[float],
    per_b: Sequence[float],
    is_paired: bool,
    seed: int,
) -> Comparison:
    if not sum(per_a) or not sum(per_b):
        return NO_COMPARISON
    rng = np.random.default_rng(seed)
    picks_a, picks_b = pick_both(len(per_a), len(per_b), is_paired, rng)
    draws = count_draws(*a, per_a, picks_a, rng), count_draws(*b, per_b, picks_b, rng)
    return compare_draws(sum(a[0]) / sum(per_a), sum(b[0]) / sum(per_b), *draws, min(len(per_a), len(per_b)))


def _compare_latency(
    a: Sequence[Sequence[float]], b: Sequence[Sequence[float]], is_paired: bool, seed: int
) -> tuple[Comparison, ...]:
    found = tuple(compare(a, b, quantiles_at(*_SHARES), is_paired=is_paired, seed=seed))
    return found if len(found) == len(_SHARES) else (NO_COMPARISON,) * len(_SHARES)


def _values(rows: Sequence[Sequence[RequestRow]], name: Latency) -> list[list[float]]:
    take = LATENCIES[name]
    return [[value for row in of_run if (value := take(row)) is not None] for of_run in rows]


def _percentiles(rows: Sequence[Sequence[RequestRow]], name: Latency, seed: int) -> Percentiles:
    found = bootstrap(_values(rows, name), quantiles_at(*_SHARES), seed=seed)
    return Percentiles(*found) if len(found) == len(_SHARES) else Percentiles(found[0], found[0], found[0])


def _paired(runs_a: Sequence[Run], runs_b: Sequence[Run]) -> tuple[list[Run], list[Run], bool]:
    a, b = (sorted(filter(says_something, runs), key=lambda run: run.manifest.seed) for runs in (runs_a, runs_b))
    common = {run.manifest.seed for run in a} & {run.manifest.seed for run in b}
    if not common:
        return a, b, False
    a, b = ([run for run in runs if run.manifest.seed in common] for runs in (a, b))
    return a, b, len(a) == len(b)  # a run that was repeated with its seed has no partner
