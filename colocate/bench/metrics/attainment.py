"""Promises kept. A request is good if it finished and met every target of its class; attainment is good / offered, so
what was rejected, failed, timed out, was cut off or was never sent is a miss."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

from msgspec import structs

from colocate.bench.metrics.denominators import DENOMINATORS, Denominator
from colocate.bench.metrics.latency import itl_p99_s, tpot_s, ttft_s
from colocate.bench.records import RequestRow
from colocate.bench.statistics import Proportion, proportion
from colocate.config.slo import SloClass
from colocate.telemetry.promises import Verdict, all_missed, judge_latencies, slo_by_name

Measure = Literal["ttft", "tpot", "itl"]
OURS = DENOMINATORS["colocate"]


class Promises:
    """Which class a request belongs to. A class that nobody defined is judged by the default one, and is named in
    `unknown_among`."""

    def __init__(self, classes: Sequence[SloClass], default_class: str = "") -> None:
        self.by_name: Mapping[str, SloClass] = slo_by_name(classes, default_class)

    @property
    def default(self) -> SloClass:
        return self.by_name[""]

    def of(self, row: RequestRow) -> SloClass:
        return self.by_name.get(row.slo_class, self.default)

    def unknown_among(self, rows: Iterable[RequestRow]) -> tuple[str, ...]:
        return tuple(sorted({row.slo_class for row in rows} - set(self.by_name)))

    def scaled(self, factor: float) -> Promises:
        """Every target times `factor`."""
        scaled = Promises(())
        scaled.by_name = {name: scale_slo(slo, factor) for name, slo in self.by_name.items()}
        return scaled


def scale_slo(slo: SloClass, factor: float) -> SloClass:
    """The class with every target times `factor`: one point of a plot of attainment against the SLO's scale."""
    fields = ("ttft_s", "tpot_s", "ttft_per_token_s", "itl_s")
    targets = {name: value * factor for name in fields if (value := getattr(slo, name)) is not None}
    return structs.replace(slo, **targets)


def verdict(row: RequestRow, slo: SloClass) -> Verdict:
    """Target by target; None where nothing was promised. Whatever did not finish missed all of them."""
    if row.outcome != "finished":
        return all_missed(slo)
    # Sorting the gaps of every request is what judging costs: only where they are promised.
    own_p99_s = None if slo.itl_s is None else itl_p99_s(row)
    return judge_latencies(slo, row.prompt_tokens, ttft_s(row), tpot_s(row), own_p99_s)


def is_good(row: RequestRow, slo: SloClass) -> bool:
    """Finished, and every target of its class met. A class that promises nothing asks for an end only."""
    return row.outcome == "finished" and verdict(row, slo).both is not False


def attainment(rows: Iterable[RequestRow], promises: Promises, rule: Denominator = OURS) -> Proportion:
    """good / what `rule` counts, of offered rows, with Wilson's 95% interval. No unit, 0 to 1."""
    good = of = 0
    for row in rows:
        slo = promises.of(row)
        if rule.counts(row, slo):
            of += 1
            good += is_good(row, slo) and rule.allows_good(row, slo)
    return proportion(good, of)


def attainment_of(measure: Measure, rows: Iterable[RequestRow], promises: Promises) -> Proportion:
    """Requests that met this one target / offered requests that have it. No unit, 0 to 1."""
    kept = [getattr(verdict(row, promises.of(row)), measure) for row in rows]
    judged = [is_kept for is_kept in kept if is_kept is not None]
    return proportion(sum(judged), len(judged))


def attainment_by_class(
    rows: Iterable[RequestRow], promises: Promises, rule: Denominator = OURS
) -> dict[str, Proportion]:
    """Attainment of the requests of each class, by its name. No unit, 0 to 1."""
    by_class: dict[str, list[RequestRow]] = {}
    for row in rows:
        by_class.setdefault(promises.of(row).name, []).append(row)
    return {name: attainment(of_class, promises, rule) for name, of_class in sorted(by_class.items())}


def goodput_per_s(num_good: int, window_s: float) -> float | None:
    """Good requests of the window / its length, per second. None of an empty window."""
    return num_good / window_s if window_s > 0 else None
