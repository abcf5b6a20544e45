"""Plan files: which plans a policy may choose from on one device, and what they were predicted to do under one load.

`colocate plan --out` writes them, `colocate serve --plans` reads them, and people write them by hand:

    version: 1
    units: 132
    granularity: 8
    best_static: p84d48
    plans:
      - {name: p84d48, prefill_units: 84, decode_units: 48}
      - {name: p100d32, prefill_units: 100, decode_units: 32}

Everything else in a file is for the reader. Whether the device found at start has these plans is asked there.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import msgspec
import yaml
from msgspec import Meta, Struct

from colocate.errors import ConfigError

PLAN_FILE_VERSION = 1
SHARED_PLAN = "shared"  # the one plan whose phases overlap

_Positive = Annotated[float, Meta(gt=0)]
_Units = Annotated[int, Meta(ge=0)]


class Load(Struct, frozen=True, forbid_unknown_fields=True):
    """What arrives: mean rate, and mean and mean square (second moment) of the tokens of a prompt and of an answer.

    `arrival_cv2` is the squared coefficient of variation of the gaps between arrivals: 1 for a Poisson process.
    """

    rate_per_s: _Positive
    prompt_tokens: _Positive
    prompt_tokens_square: _Positive
    output_tokens: _Positive
    output_tokens_square: _Positive
    arrival_cv2: Annotated[float, Meta(ge=0)] = 1.0


class Predicted(Struct, frozen=True, forbid_unknown_fields=True):
    """Null where the load is more than the plan can serve: the queue would grow without end."""

    ttft_p50_s: float | None = None
    ttft_p90_s: float | None = None
    tpot_s: float | None = None
    tpot_p90_s: float | None = None
    prefill_utilisation: float | None = None
    decode_utilisation: float | None = None
    meets_slo: bool | None = None


class FilePlan(Struct, frozen=True, forbid_unknown_fields=True):
    name: Annotated[str, Meta(min_length=1)]
    prefill_units: _Units
    decode_units: _Units
    predicted: Predicted | None = None


class PlanFile(Struct, frozen=True, forbid_unknown_fields=True):
    """A plan file. Empty texts mean that the file is not about one device, model, SLO."""

    version: int
    units: Annotated[int, Meta(ge=1)]
    plans: Annotated[list[FilePlan], Meta(min_length=1)]
    granularity: Annotated[int, Meta(ge=1)] = 1
    best_static: str = ""  # the plan to fall back to; empty: the device's default split
    device: str = ""
    model: str = ""
    prediction: Literal["measured", "roofline", "none"] = "none"  # the kind of profile behind the predicted values
    slo: str = ""
    load: Load | None = None


def load_plan_file(path: Path) -> PlanFile:
    """Read and check a plan file by itself. Raises ConfigError with the key's path and the remedy."""
    try:
        file = msgspec.yaml.decode(path.read_bytes(), type=PlanFile)
    except OSError as error:
        raise ConfigError(str(path), f"cannot read the plan file: {error.strerror}", "check --plans") from None
    except msgspec.ValidationError as error:
        problem, key = _problem_and_key(str(error))
        raise ConfigError(f"{path}: {key}" if key else str(path), problem, "see configs/plans for one") from None
    except (msgspec.DecodeError, yaml.YAMLError) as error:
        raise ConfigError(str(path), f"is not YAML: {' '.join(str(error).split())}", "see configs/plans") from None
    if file.version != PLAN_FILE_VERSION:
        problem = f"plan file version {file.version}, this program reads {PLAN_FILE_VERSION}"
        raise ConfigError(f"{path}: version", problem, "make it again with `colocate plan --out`")
    check_plans(str(path), file)
    return file


def check_plans(where: str, file: PlanFile) -> None:
    """What no device can have. Raises ConfigError at the first plan that is wrong."""
    seen: dict[str, int] = {}
    for index, plan in enumerate(file.plans):
        _check_plan(f"{where}: plans[{index}]", plan, file)
        if plan.name in seen:
            problem = f"{plan.name!r} is the name of plans[{seen[plan.name]}] already"
            raise ConfigError(f"{where}: plans[{index}].name", problem, "keep one of the two")
        seen[plan.name] = index
    if file.best_static and file.best_static not in seen:
        problem = f"{file.best_static!r} is none of the plans"
        raise ConfigError(f"{where}: best_static", problem, f"name one of: {', '.join(seen)}")


def _check_plan(where: str, plan: FilePlan, file: PlanFile) -> None:
    shares = {"prefill_units": plan.prefill_units, "decode_units": plan.decode_units}
    for key, units in shares.items():
        if units == 0:
            remedy = "give each phase units; all-prefill and all-decode are lent by the policy and need no entry"
            raise ConfigError(f"{where}.{key}", f"{plan.name!r} gives this phase nothing", remedy)
    if plan.name == SHARED_PLAN:
        for key, units in shares.items():
            if units != file.units:
                problem = f"{SHARED_PLAN!r} means the whole device for both phases, not {units} of {file.units} units"
                raise ConfigError(f"{where}.{key}", problem, f"give {file.units}, or another name")
        return
    total = plan.prefill_units + plan.decode_units
    if total > file.units:
        problem = f"{plan.prefill_units} + {plan.decode_units} = {total} units, the device has {file.units}"
        raise ConfigError(
            where, f"{plan.name!r} oversubscribes: {problem}", f"take {total - file.units} away from one phase"
        )
    _check_granularity(where, plan, file)


def _check_granularity(where: str, plan: FilePlan, file: PlanFile) -> None:
    """Shares are cut in steps; the prefill share of a split may take the device's odd rest as well."""
    step, rest = file.granularity, file.units % file.granularity
    for key, units, odd in (("decode_units", plan.decode_units, 0), ("prefill_units", plan.prefill_units, rest)):
        if units % step not in {0, odd}:
            low = units // step * step
            below = [low] if low else []
            wanted = " or ".join(str(share) for share in (*below, low + step))
            problem = f"{plan.name!r}: {units} is not a multiple of the granularity {step}"
            raise ConfigError(f"{where}.{key}", problem, f"give {wanted}")


def _problem_and_key(text: str) -> tuple[str, str]:
    """msgspec says "Expected `int`, got `str` - at `$.plans[0].decode_units`"."""
    found = re.fullmatch(r"(.*?) - at `\$\.?(.*)`", text)
    return (found[1], found[2]) if found else (text, "")


def plan_file_text(file: PlanFile, comments: Sequence[str] = ()) -> str:
    """The file as YAML, figures rounded to four digits, with `# ` lines before it."""
    document = {key: value for key, value in msgspec.to_builtins(file).items() if value not in ("", None)}
    order = ["version", "device", "model", "units", "granularity", "prediction", "slo", "load", "best_static", "plans"]
    ordered = {key: _rounded(document[key]) for key in order if key in document}
    head = "".join(f"# {line}\n" for line in comments)
    return head + yaml.safe_dump(ordered, sort_keys=False, default_flow_style=None, width=160, allow_unicode=True)


def _rounded(value: object) -> object:
    if isinstance(value, dict):
        return {key: _rounded(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_rounded(each) for each in value]
    if isinstance(value, float) and value and math.isfinite(value):
        return round(value, 3 - math.floor(math.log10(abs(value))))
    return value
