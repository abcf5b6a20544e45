"""`colocate plan`: what every plan of a profiled device would do to a load, and the plan file for `serve --plans`."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

from colocate.cli.plan_table import PRIOR, Answer, as_json, predicted_of, show
from colocate.config.plan_file import (
    PLAN_FILE_VERSION,
    FilePlan,
    Load,
    PlanFile,
    check_plans,
    plan_file_text,
)
from colocate.config.profile import load_profile
from colocate.config.slo import SloClass, parse_slo_classes
from colocate.core.forecast import Limits, choose_best, dominated_by, forecast_plans
from colocate.core.latency import LatencyModel
from colocate.core.plan import SHARED, build_plan_table
from colocate.errors import ConfigError
from colocate.workload.read import read_workload

_DEFAULT_CV = 1.0
# A policy judges every candidate within its budget of a decision; more would not make it choose better.
_MAX_WRITTEN = 16


@dataclass(frozen=True, slots=True)
class Ask:
    """The command line. A number is None where it was not given."""

    profile: Path
    slo: str
    rate: float | None
    prompt_tokens: float | None
    output_tokens: float | None
    prompt_cv: float | None
    output_cv: float | None
    workload: Path | None
    limits: Limits
    out: Path | None
    as_json: bool


def run_plan(ask: Ask) -> int:
    """Print the forecast of every plan, and write the plan file where one is asked for. Raises ConfigError."""
    answer = compute(ask)
    if ask.as_json:
        print(json.dumps(as_json(answer), indent=2))
    else:
        show(answer)
    if ask.out is not None:
        _write(ask.out, ask, answer)
        if not ask.as_json:
            print(f"\nwritten to {ask.out}: colocate serve --plans {ask.out}")
    return 0


def compute(ask: Ask) -> Answer:
    profile = load_profile(ask.profile)
    slo = _slo(ask.slo)
    load = _load(ask)
    limits = Limits(
        ask.limits.max_num_seqs, ask.limits.max_num_batched_tokens, ask.limits.kv_tokens or profile.kv_tokens
    )
    table = build_plan_table(profile.units, profile.granularity)
    forecasts = forecast_plans(LatencyModel(profile), table, load, slo, limits)
    return Answer(profile, slo, load, limits, forecasts, dominated_by(forecasts), choose_best(forecasts))


def _slo(text: str) -> SloClass:
    """`ttft 300 ms, tpot 50 ms`, or with a class name before a colon."""
    classes = parse_slo_classes([text if ":" in text else f"target: {text}"], "--slo")
    if len(classes) != 1:
        raise ConfigError("--slo", f"names {len(classes)} classes", "plan for one class at a time")
    return classes[0]


def _load(ask: Ask) -> Load:
    if ask.workload is not None:
        given = [ask.prompt_tokens, ask.output_tokens, ask.prompt_cv, ask.output_cv]
        if any(value is not None for value in given):
            raise ConfigError("--workload", "says how long prompts and answers are", "drop the options about tokens")
        return load_of_workload(ask.workload, ask.rate)
    numbers = {"--rate": ask.rate, "--prompt-tokens": ask.prompt_tokens, "--output-tokens": ask.output_tokens}
    for flag, value in numbers.items():
        if value is None:
            raise ConfigError(flag, "is missing", "give --rate, --prompt-tokens and --output-tokens, or --workload")
        if not (math.isfinite(value) and value > 0):
            raise ConfigError(flag, f"{value:g} is not a load", "give a number above 0")
    prompt, output = ask.prompt_tokens or 0.0, ask.output_tokens or 0.0
    return Load(
        rate_per_s=ask.rate or 0.0,
        prompt_tokens=prompt,
        prompt_tokens_square=prompt**2 * (1 + _cv("--prompt-cv", ask.prompt_cv) ** 2),
        output_tokens=output,
        output_tokens_square=output**2 * (1 + _cv("--output-cv", ask.output_cv) ** 2),
    )


def _cv(flag: str, value: float | None) -> float:
    if value is None:
        return _DEFAULT_CV
    if not (math.isfinite(value) and 0 <= value <= 100):
        raise ConfigError(flag, f"{value:g} is not a coefficient of variation", "give 0 (all the same) to 100")
    return value


def load_of_workload(path: Path, rate: float | None = None) -> Load:
    """Moments of a workload file; `rate` stretches or squeezes its arrivals. Raises ConfigError."""
    workload = read_workload(path)
    if rate is not None and not (math.isfinite(rate) and rate > 0):
        raise ConfigError("--rate", f"{rate:g} is not a load", "give a number above 0")
    prompts = [float(row.prompt_tokens) for row in workload.rows]
    outputs = [float(row.output_tokens) for row in workload.rows]
    gaps = [after.arrival_s - before.arrival_s for before, after in zip(workload.rows, workload.rows[1:], strict=False)]
    mean_gap_s = _mean(gaps) if gaps else 0.0
    return Load(
        rate_per_s=rate or workload.rate,
        prompt_tokens=_mean(prompts),
        prompt_tokens_square=_mean_square(prompts),
        output_tokens=_mean(outputs),
        output_tokens_square=_mean_square(outputs),
        arrival_cv2=max(_mean_square(gaps) / mean_gap_s**2 - 1.0, 0.0) if mean_gap_s > 0 else 1.0,
    )


def _mean(values: list[float]) -> float:
    return math.fsum(values) / len(values)


def _mean_square(values: list[float]) -> float:
    return math.fsum(value * value for value in values) / len(values)


def plan_file(ask_slo: str, answer: Answer) -> PlanFile:
    """What `--out` writes: the splits that can serve the load and that no other beats, thinned out evenly where there
    are too many. `shared` is left to be added by hand, like splits for a load of another kind."""
    splits = [each for each in answer.forecasts if each.plan.name != SHARED] or answer.forecasts
    kept = [
        each for each in splits if each is answer.best or not (each.is_saturated or each.plan.name in answer.dominated)
    ]
    stride = -(-len(kept) // _MAX_WRITTEN)
    offset = kept.index(answer.best) % stride
    profile = answer.profile
    return PlanFile(
        version=PLAN_FILE_VERSION,
        units=profile.units,
        granularity=profile.granularity,
        best_static=answer.best.plan.name,
        device=profile.name,
        model=profile.model,
        prediction=profile.kind,
        slo=ask_slo,
        load=answer.load,
        plans=[
            FilePlan(each.plan.name, each.plan.prefill_units, each.plan.decode_units, predicted_of(each))
            for each in kept[offset::stride]
        ],
    )


def _write(out: Path, ask: Ask, answer: Answer) -> None:
    file = plan_file(ask.slo, answer)
    check_plans(str(out), file)
    comments = ["Made by `colocate plan`; `colocate serve --plans` reads it. Predictions are seconds, null where the"]
    comments.append("load is more than the plan can serve.")
    if not answer.profile.is_measured:
        comments.append(PRIOR)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(plan_file_text(file, comments), encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            "--out", f"cannot write {out}: {error.strerror}", "name a file in a directory you own"
        ) from None
