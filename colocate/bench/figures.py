"""Every figure of a run that report and sweep show, made in one place: `run_figures` for one run, `arm_figures` for one
arm at one rate over its seeds, `goodput_at` for one arm over its rates. Units are in the names; docs/metrics.md has the
formulas."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import msgspec
from msgspec import Struct

from colocate.bench.arms import ArmComparison, ArmFigures, Percentiles, arm_figures, compare_arms
from colocate.bench.goodput import GoodputAt, RatePoint, compare_goodput, goodput_at, min_requests
from colocate.bench.metrics.attainment import (
    Promises,
    attainment,
    attainment_by_class,
    attainment_of,
    goodput_per_s,
)
from colocate.bench.metrics.denominators import DENOMINATORS, denominator
from colocate.bench.metrics.distribution import Distribution, distribution
from colocate.bench.metrics.latency import STAGES, e2e_s, itl_p99_s, itl_s, lateness_s, stage_s, tpot_s, ttft_s
from colocate.bench.metrics.server import energy_j, increase, inside, joules_per_output_token, mean_of, peak_of
from colocate.bench.metrics.throughput import (
    cached_share,
    failures,
    num_completed,
    num_input_tokens,
    num_output_tokens,
    per_second,
)
from colocate.bench.metrics.window import Window, offered, window
from colocate.bench.read import Run
from colocate.bench.records import RequestRow, RunStatus
from colocate.bench.slo_library import DefinitionFigure, evaluate, published_definitions
from colocate.bench.statistics import Comparison, Interval, Proportion, proportion
from colocate.config.slo import SloClass, parse_slo_classes
from colocate.errors import ConfigError

__all__ = [
    "ArmComparison",
    "ArmFigures",
    "Comparison",
    "Distribution",
    "GoodputAt",
    "Interval",
    "Percentiles",
    "Promises",
    "Proportion",
    "RatePoint",
    "RunFigures",
    "ServerFigures",
    "arm_figures",
    "attainment_at_scales",
    "compare_arms",
    "compare_goodput",
    "goodput_at",
    "min_requests",
    "promises_of",
    "run_figures",
    "write_figures",
]

FIGURES_VERSION = 1
FIGURES_FILE = "figures.json"


class ServerFigures(Struct, frozen=True):
    """What the server told about itself in the window; None where it did not."""

    num_samples: int
    kv_usage_mean: float | None  # 0 .. 1
    kv_usage_peak: float | None
    waiting_mean: float | None  # requests
    waiting_peak: float | None
    decode_running_mean: float | None
    num_preemptions: int | None
    num_switches: int | None
    power_mean_w: float | None
    energy_j: float | None
    joules_per_output_token: float | None
    memory_peak_bytes: float | None


class RunFigures(Struct, frozen=True):
    """Figures of one run under one denominator. Requests are those offered in the window, unless a name says other."""

    figures_version: int
    run_id: str
    arm: str
    seed: int
    status: RunStatus
    reasons: tuple[str, ...]
    offered_rate: float | None  # nominal, requests per second; None: closed loop
    concurrency: int | None
    denominator: str
    classes: tuple[SloClass, ...]  # promises the requests were judged by
    default_class: str  # name of the one that requests without a class, or of an unknown one, are judged by
    unknown_classes: tuple[str, ...]
    window: Window
    window_s: float

    num_offered: int
    num_finished: int
    outcomes: dict[str, int]
    failures: dict[str, int]  # by outcome and kind of error
    rejected: Proportion
    token_sources: dict[str, int]  # how the tokens of finished requests were counted

    attainment: Proportion  # good / what the denominator counts
    attainment_ttft: Proportion  # of the offered requests with that target
    attainment_tpot: Proportion
    attainment_itl: Proportion
    attainment_by_class: dict[str, Proportion]
    attainment_by_denominator: dict[str, Proportion]
    attainment_by_definition: dict[str, DefinitionFigure]

    goodput_per_s: float | None  # good requests
    offered_per_s: float | None
    completed_per_s: float | None
    input_tokens_per_s: float | None
    output_tokens_per_s: float | None

    ttft_s: Distribution
    itl_s: Distribution  # of all gaps
    itl_p99_s: Distribution  # of each request's own 99th percentile
    tpot_s: Distribution
    e2e_s: Distribution
    lateness_s: Distribution  # of the client
    stages: dict[str, Distribution]  # tokenize_s, queue_s, prefill_s, decode_s, stream_s: where the server tells

    cached_share: float | None  # of the prompt tokens
    server: ServerFigures
    residency: dict[str, float]  # plan -> share of phase-active time


def promises_of(run: Run) -> Promises:
    """What the run's own manifest promised. Raises ConfigError where its classes cannot be read."""
    texts = run.manifest.slo_classes
    return Promises(parse_slo_classes(texts, f"{run.folder}: slo_classes"), run.manifest.default_slo_class)


def run_figures(run: Run, promises: Promises | None = None, denominator_name: str = "colocate") -> RunFigures:
    """All figures of one run. `promises`: None for the manifest's own. Raises ConfigError for an unknown denominator or
    classes that cannot be read."""
    promises = promises or promises_of(run)
    rule = denominator(denominator_name)
    manifest, rows, seconds = run.manifest, offered(run), window(run.manifest)
    overall = attainment(rows, promises, rule)
    outcomes = Counter(row.outcome for row in rows)
    return RunFigures(
        figures_version=FIGURES_VERSION,
        run_id=manifest.run_id,
        arm=manifest.arm,
        seed=manifest.seed,
        status=run.status,
        reasons=run.reasons,
        offered_rate=manifest.offered_rate,
        concurrency=manifest.concurrency,
        denominator=rule.name,
        classes=tuple(slo for name, slo in promises.by_name.items() if name),
        default_class=promises.default.name,
        unknown_classes=promises.unknown_among(rows),
        window=seconds,
        window_s=seconds.length_s,
        num_offered=len(rows),
        num_finished=outcomes["finished"],
        outcomes=dict(sorted(outcomes.items())),
        failures=failures(rows),
        rejected=proportion(outcomes["rejected"], len(rows)),
        token_sources=dict(sorted(Counter(row.token_source for row in rows if row.outcome == "finished").items())),
        attainment=overall,
        attainment_ttft=attainment_of("ttft", rows, promises),
        attainment_tpot=attainment_of("tpot", rows, promises),
        attainment_itl=attainment_of("itl", rows, promises),
        attainment_by_class=attainment_by_class(rows, promises, rule),
        attainment_by_denominator={name: attainment(rows, promises, each) for name, each in DENOMINATORS.items()},
        attainment_by_definition={
            definition.name: evaluate(definition, rows, rule) for definition in published_definitions()
        },
        goodput_per_s=goodput_per_s(overall.good, seconds.length_s),
        offered_per_s=per_second(len(rows), seconds),
        completed_per_s=per_second(num_completed(run.rows, seconds), seconds),
        input_tokens_per_s=per_second(num_input_tokens(run.rows, seconds), seconds),
        output_tokens_per_s=per_second(num_output_tokens(run.rows, seconds), seconds),
        ttft_s=distribution(map(ttft_s, rows)),
        itl_s=distribution(gap_s for row in rows for gap_s in itl_s(row)),
        itl_p99_s=distribution(map(itl_p99_s, rows)),
        tpot_s=distribution(map(tpot_s, rows)),
        e2e_s=distribution(map(e2e_s, rows)),
        lateness_s=distribution(map(lateness_s, rows)),
        stages=_stages(rows),
        cached_share=cached_share(rows),
        server=_server_figures(run, seconds),
        residency=manifest.residency,
    )


def _stages(rows: Sequence[RequestRow]) -> dict[str, Distribution]:
    found = {stage: distribution(stage_s(row, stage) for row in rows) for stage in STAGES}
    return {stage: values for stage, values in found.items() if values.count}


def _server_figures(run: Run, seconds: Window) -> ServerFigures:
    samples = inside(run.samples, seconds)
    return ServerFigures(
        num_samples=len(samples),
        kv_usage_mean=mean_of(sample.kv_usage for sample in samples),
        kv_usage_peak=peak_of(sample.kv_usage for sample in samples),
        waiting_mean=mean_of(sample.waiting for sample in samples),
        waiting_peak=peak_of(sample.waiting for sample in samples),
        decode_running_mean=mean_of(sample.decode_running for sample in samples),
        num_preemptions=increase(sample.preemptions for sample in samples),
        num_switches=increase(sample.switches for sample in samples),
        power_mean_w=mean_of(sample.power_w for sample in samples),
        energy_j=energy_j(samples),
        joules_per_output_token=joules_per_output_token(samples, run.rows),
        memory_peak_bytes=peak_of(sample.resident_bytes for sample in samples),
    )


def attainment_at_scales(
    run: Run, scales: Sequence[float], promises: Promises | None = None, denominator_name: str = "colocate"
) -> dict[float, Proportion]:
    """Attainment with every target times each scale: above 1 is easier."""
    promises = promises or promises_of(run)
    rows, rule = offered(run), denominator(denominator_name)
    return {scale: attainment(rows, promises.scaled(scale), rule) for scale in scales}


def write_figures(folder: Path, figures: RunFigures) -> Path:
    """FOLDER/figures.json, whole or not at all. benchmarks/recompute.py checks it against the rows. Raises ConfigError
    where it cannot be written."""
    path = folder / FIGURES_FILE
    unfinished = path.with_suffix(".json.part")
    try:
        unfinished.write_bytes(msgspec.json.format(msgspec.json.encode(figures), indent=2) + b"\n")
        return unfinished.replace(path)
    except OSError as error:
        unfinished.unlink(missing_ok=True)
        problem = f"cannot be written: {error.strerror}"
        raise ConfigError(str(path), problem, "make space, or check the folder's permissions") from None
