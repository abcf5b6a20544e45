"""What `colocate simulate` prints and writes."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from colocate import __version__
from colocate.cli.plan_table import PRIOR
from colocate.config.slo import SloClass
from colocate.core.policy.choose import policy_in_force
from colocate.sim.records import Quantiles, SimResult
from colocate.sim.settings import SimSettings
from colocate.workload.rows import Workload

FORMAT_VERSION = 1


@dataclass(frozen=True, slots=True)
class RunOfSeed:
    seed: int
    workload: Workload
    result: SimResult


def show(settings: SimSettings, runs: Sequence[RunOfSeed], took_s: float) -> None:
    """A table of every figure: its value, or over several seeds its mean and its range."""
    console = Console(soft_wrap=True, highlight=False)
    profile, plan = settings.profile, policy_in_force(settings.mode, settings.plan)
    if not profile.is_measured:
        console.print(PRIOR, style="bold red")
    console.print(
        f"device {profile.name}, {profile.units} units; mode {settings.mode}, plan {plan}, "
        f"{settings.discipline}, admission {settings.admission}"
    )
    first = runs[0].workload
    console.print(
        f"load {first.name}: {len(first.rows)} requests in {first.duration_s:.0f} s, {first.rate:.2f}/s; "
        f"SLO {_slo_text(settings.slo_classes)}; {_count(len(runs), 'seed')}"
    )
    console.print()
    table = Table(box=None, pad_edge=False)
    for heading in ("", "p50", "p90", "p99", "mean"):
        table.add_column(heading, justify="left" if not heading else "right")
    for name, of in _LATENCIES.items():
        cells = [_over([_ms(getattr(of(run.result), share)) for run in runs]) for share in Quantiles.__struct_fields__]
        table.add_row(name, *cells)
    console.print(table)
    console.print()
    figures = Table(box=None, pad_edge=False, show_header=False)
    for name, figure in _FIGURES.items():
        figures.add_row(name, _over([figure(run.result) for run in runs]))
    for slo_class in runs[0].result.summary.attainment_by_class if len(settings.slo_classes) > 1 else ():
        shares = [run.result.summary.attainment_by_class.get(slo_class, 0.0) * 100 for run in runs]
        figures.add_row(f"  of class {slo_class} %", _over(shares))
    console.print(figures)
    console.print()
    console.print("in force, share of the time with work: " + _residency(runs))
    simulated_s = sum(run.result.simulated_s for run in runs)
    console.print(f"{simulated_s:.0f} s simulated in {took_s:.1f} s")


def as_json(settings: SimSettings, runs: Sequence[RunOfSeed]) -> dict[str, Any]:
    """Everything `show` prints and more, for programs."""
    profile = settings.profile
    return {
        "version": FORMAT_VERSION,
        "colocate": __version__,
        "device": profile.name,
        "model": profile.model,
        "prediction": profile.kind,
        "warning": "" if profile.is_measured else PRIOR,
        "settings": {
            name: getattr(settings, name)
            for name in SimSettings.__dataclass_fields__
            if name not in ("profile", "latency_profile", "noise")
        },
        "runs": [
            {
                "seed": run.seed,
                "load": {
                    "name": run.workload.name,
                    "requests": len(run.workload.rows),
                    "duration_s": run.workload.duration_s,
                    "rate": run.workload.rate,
                },
                "simulated_s": run.result.simulated_s,
                "summary": run.result.summary,
                "residency": run.result.residency,
                "switches": run.result.num_switches,
                "prediction_error": [state.prediction_error for state in run.result.states],
                "guards": [state.guards for state in run.result.states],
                "shadow": [state.shadow for state in run.result.states],
            }
            for run in runs
        ],
    }


_LATENCIES: dict[str, Callable[[SimResult], Quantiles]] = {
    "TTFT ms": lambda result: result.summary.ttft_s,
    "TPOT ms": lambda result: result.summary.tpot_s,
    "ITL p99 of a request ms": lambda result: result.summary.itl_p99_s,
    "E2E ms": lambda result: result.summary.e2e_s,
    "queue ms": lambda result: result.summary.queue_s,
}
_FIGURES: dict[str, Callable[[SimResult], float]] = {
    "attainment % (good / offered)": lambda result: result.summary.attainment * 100,
    "goodput, good requests/s": lambda result: result.summary.goodput,
    "offered, requests/s": lambda result: result.summary.offered_rate,
    "answered, tokens/s": lambda result: result.summary.output_tokens_per_s,
    "rejected": lambda result: result.summary.num_rejected,
    "unfinished": lambda result: result.summary.num_offered - result.summary.num_finished - result.summary.num_rejected,
    "plan switches": lambda result: result.num_switches,
    "preemptions": lambda result: result.summary.num_preemptions,
    "prompt tokens found cached %": lambda result: result.summary.cached_share * 100,
}


def _over(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    mean = statistics.fmean(known)
    return _number(mean) if len(known) == 1 else f"{_number(mean)} [{_number(min(known))}..{_number(max(known))}]"


def _number(value: float) -> str:
    return f"{value:.0f}" if value == int(value) or abs(value) >= 1000 else f"{value:.2f}"


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else seconds * 1e3


def _count(number: int, word: str) -> str:
    return f"{number} {word}" + ("s" if number > 1 else "")


def _slo_text(classes: Sequence[SloClass]) -> str:
    return "; ".join(_class_text(each) for each in classes) or "none: every finished request is good"


def _class_text(slo: SloClass) -> str:
    parts = [
        f"{name} {seconds * 1e3:g} ms"
        for name, seconds in (
            ("ttft", slo.ttft_s),
            ("ttft per token", slo.ttft_per_token_s),
            ("tpot", slo.tpot_s),
            ("itl", slo.itl_s),
        )
        if seconds is not None
    ]
    return f"{slo.name}: {', '.join(parts) or 'none'}"


def _residency(runs: Sequence[RunOfSeed]) -> str:
    shares: dict[str, float] = {}
    for run in runs:
        for plan, share in run.result.residency.items():
            shares[plan] = shares.get(plan, 0.0) + share / len(runs)
    ordered = sorted(shares.items(), key=lambda item: -item[1])
    return ", ".join(f"{plan} {share:.1%}" for plan, share in ordered if share >= 0.001) or "none"
