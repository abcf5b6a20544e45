"""What `colocate plan` shows: a table for people, JSON for programs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from colocate.config.plan_file import Load, Predicted
from colocate.config.profile import DeviceProfile
from colocate.config.slo import SloClass
from colocate.core.forecast import ATTAINMENT, MAX_CV2, Limits, PlanForecast
from colocate.core.plan import SHARED

PRIOR = (
    "ROOFLINE PRIOR: nothing was measured on a device. These figures follow from peak rates and carry no verdict; "
    "measure with `colocate profile`."
)


@dataclass(frozen=True, slots=True)
class Answer:
    profile: DeviceProfile
    slo: SloClass
    load: Load
    limits: Limits
    forecasts: list[PlanForecast]
    dominated: dict[str, str]
    best: PlanForecast


def predicted_of(each: PlanForecast) -> Predicted:
    return Predicted(
        ttft_p50_s=finite(each.ttft_p50_s),
        ttft_p90_s=finite(each.ttft_p90_s),
        tpot_s=finite(each.tpot_s),
        tpot_p90_s=finite(each.tpot_p90_s),
        prefill_utilisation=each.prefill_utilisation,
        decode_utilisation=each.decode_utilisation,
        meets_slo=each.meets_slo,
    )


def finite(seconds: float) -> float | None:
    return seconds if math.isfinite(seconds) else None


def warnings_of(answer: Answer) -> list[str]:
    """What a reader must know before a figure."""
    warnings = [] if answer.profile.is_measured else [PRIOR]
    if answer.load.arrival_cv2 > MAX_CV2:
        warnings.append(
            f"BURSTS: gaps between arrivals vary with cv {math.sqrt(answer.load.arrival_cv2):.1f}; no formula predicts "
            "the wait behind a burst. TTFT is a guess here: compare plans with `colocate simulate`."
        )
    return warnings


def as_json(answer: Answer) -> dict[str, Any]:
    return {
        "device": answer.profile.name,
        "model": answer.profile.model,
        "prediction": answer.profile.kind,
        "warnings": warnings_of(answer),
        "slo": {
            "ttft_s": answer.slo.ttft_s,
            "ttft_per_token_s": answer.slo.ttft_per_token_s,
            "tpot_s": answer.slo.tpot_s,
        },
        "load": {name: getattr(answer.load, name) for name in answer.load.__struct_fields__},
        "limits": {
            "max_num_seqs": answer.limits.max_num_seqs,
            "max_num_batched_tokens": answer.limits.max_num_batched_tokens,
            "kv_tokens": answer.limits.kv_tokens or None,
        },
        "best_static": answer.best.plan.name,
        "graphs": {"sets": _graph_sets(answer), "bytes_on_cpu_or_emulated": 0, "bytes_on_gpu": None},
        "plans": [_plan_as_json(answer, each) for each in answer.forecasts],
    }


def _plan_as_json(answer: Answer, each: PlanForecast) -> dict[str, Any]:
    predicted = predicted_of(each)
    return {
        "name": each.plan.name,
        "prefill_units": each.plan.prefill_units,
        "decode_units": each.plan.decode_units,
        **{name: getattr(predicted, name) for name in predicted.__struct_fields__},
        "slo_ratio": finite(each.slo_ratio),
        "dominated_by": answer.dominated.get(each.plan.name),
    }


def _graph_sets(answer: Answer) -> int:
    """One set of decode graphs for each distinct decode share."""
    return len({each.plan.decode_units for each in answer.forecasts})


def show(answer: Answer) -> None:
    console = Console()
    load, limits, profile = answer.load, answer.limits, answer.profile
    for warning in warnings_of(answer):
        console.print(warning, style="bold red")
    rows = f"at most {limits.max_num_seqs} rows, forwards of {limits.max_num_batched_tokens} tokens"
    pool = f"{limits.kv_tokens} tokens of KV" if limits.kv_tokens else "KV pool not known: no bound"
    console.print(f"device {profile.name}, {profile.units} units in steps of {profile.granularity}; {rows}, {pool}")
    console.print(
        f"load   {load.rate_per_s:.3g} requests/s; prompts of {load.prompt_tokens:.0f} tokens (cv "
        f"{_cv_of(load.prompt_tokens, load.prompt_tokens_square):.2f}), answers of {load.output_tokens:.0f} (cv "
        f"{_cv_of(load.output_tokens, load.output_tokens_square):.2f}), gaps of cv {math.sqrt(load.arrival_cv2):.2f}"
    )
    console.print(_table(answer))
    _show_outcome(console, answer)


def _cv_of(mean: float, mean_square: float) -> float:
    return math.sqrt(max(mean_square / mean**2 - 1.0, 0.0))


def _table(answer: Answer) -> Table:
    table = Table(box=None, padding=(0, 1), header_style="bold")
    table.add_column("plan")
    for name in ("TTFT\np50 ms", "\np90 ms", "TPOT\nmean ms", "\np90 ms", "load\nprefill", "\ndecode"):
        table.add_column(name, justify="right")
    table.add_column("SLO")
    table.add_column("", overflow="fold")
    for each in answer.forecasts:
        style = "bold" if each is answer.best else ("" if each.meets_slo else "dim")
        table.add_row(
            each.plan.name,
            *(_ms(seconds) for seconds in (each.ttft_p50_s, each.ttft_p90_s, each.tpot_s, each.tpot_p90_s)),
            f"{each.prefill_utilisation:.0%}",
            f"{each.decode_utilisation:.0%}",
            "meets" if each.meets_slo else "misses",
            _note(answer, each),
            style=style,
        )
    return table


def _note(answer: Answer, each: PlanForecast) -> str:
    if each.is_saturated:
        note = "overloaded"
    elif each.plan.name in answer.dominated:
        note = f"{answer.dominated[each.plan.name]} is better"
    else:
        note = ""
    return "best static" + (f", {note}" if note else "") if each is answer.best else note


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.1f}" if math.isfinite(seconds) else "grows"


def _show_outcome(console: Console, answer: Answer) -> None:
    best = answer.best
    meeting = sum(each.meets_slo for each in answer.forecasts)
    promise = f"{ATTAINMENT:.0%} of the requests"
    if best.meets_slo:
        console.print(f"best static plan: {best.plan.name}; {meeting} plans keep the SLO for {promise}")
    else:
        console.print(f"NO split keeps the SLO for {promise}; {best.plan.name} comes closest", style="bold")
    shared = next((each for each in answer.forecasts if each.plan.name == SHARED), best)
    if shared.slo_ratio < best.slo_ratio:
        console.print("without a border (plan shared) the model predicts even less; it knows least about that plan")
    console.print(
        "memory for CUDA graphs: 0 on a CPU or the emulated device, which capture none; on a GPU one set for each of "
        f"{_graph_sets(answer)} decode shares, not known without a GPU"
    )
    if not answer.profile.is_measured:
        console.print("no verdict: see the first line", style="bold red")
