"""What `colocate workload make` and `convert` do."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from colocate.bench.prompts import open_folder
from colocate.cli.workload import write
from colocate.errors import ConfigError
from colocate.workload.datasets import Count
from colocate.workload.lengths import LengthPair
from colocate.workload.read import Reading, read_dataset, read_trace
from colocate.workload.recipe import Recipe, cook
from colocate.workload.rows import Workload, to_jsonl
from colocate.workload.scale import at_rate, at_speed, with_classes
from colocate.workload.tables import LENGTH_COLUMNS


@dataclass(frozen=True, slots=True)
class Conversion:
    """What changes on the way."""

    reading: Reading
    rate: float | None
    speed: float | None
    classes: Mapping[str, float]
    seed: int
    tokenizer: Path | None


def reading(*, block_tokens: int, seconds: float | None, skip_empty: bool = False, sort: bool = False) -> Reading:
    """Raises ConfigError."""
    if seconds is not None and not seconds > 0:
        raise ConfigError("--seconds", f"cannot be {seconds:g}", "give seconds above 0")
    until_s = math.inf if seconds is None else seconds
    return Reading(block_tokens=block_tokens, until_s=until_s, skip_empty=skip_empty, sort=sort)


def run_make(recipe: Recipe, seed: int, out: Path) -> None:
    """Raises ConfigError."""
    workload = cook(recipe, seed)
    write(out, to_jsonl(workload))
    _say(f"{_in_words(workload)}, seed {seed}, to {out}")


def run_convert(file: Path, out: Path, conversion: Conversion) -> None:
    """Raises ConfigError."""
    count = None if conversion.tokenizer is None else _counter(conversion.tokenizer)
    dataset = read_dataset(file, count)
    if dataset is not None:
        _convert_dataset(file, out, conversion, *dataset)
        return
    trace = read_trace(file, conversion.reading)
    workload = trace.workload
    if conversion.rate is not None:
        workload = at_rate(workload, conversion.rate)
    if conversion.speed is not None:
        workload = at_speed(workload, conversion.speed)
    if conversion.classes:
        workload = with_classes(workload, conversion.classes, conversion.seed)
    write(out, to_jsonl(workload))
    left_out = f"; {trace.num_skipped} requests without tokens are left out" if trace.num_skipped else ""
    _say(f"{trace.format}: {_in_words(workload)}, to {out}{left_out}")


def _convert_dataset(file: Path, out: Path, conversion: Conversion, pairs: list[LengthPair], num_without: int) -> None:
    if out.suffix != ".csv" and str(out) != "-":
        problem = "is a dataset without arrival times: it becomes a CSV of lengths"
        remedy = "write to FILE.csv, then `colocate workload make --lengths FILE.csv --rate X`"
        raise ConfigError(str(file), problem, remedy)
    asked = {"--rate": conversion.rate, "--speed": conversion.speed, "--slo-class": conversion.classes or None}
    given = [flag for flag, value in asked.items() if value is not None]
    if given:
        raise ConfigError(given[0], f"{file} has no arrivals", "give it to `colocate workload make`, with --lengths")
    lines = [",".join(LENGTH_COLUMNS), *(f"{prompt},{output}" for prompt, output in pairs)]
    write(out, ("\n".join(lines) + "\n").encode())
    left_out = f"; {num_without} without an answer are left out" if num_without else ""
    _say(f"dataset: lengths of {len(pairs)} requests, to {out}{left_out}")


def _counter(folder: Path) -> Count:
    """Texts by themselves, without what a server puts before them. Raises ConfigError."""
    tokenizer = open_folder(folder).tokenizer
    return lambda text: len(tokenizer.encode(text, add_special_tokens=False).ids)


def _in_words(workload: Workload) -> str:
    return f"{len(workload.rows)} requests in {workload.duration_s:.5g} s ({workload.rate:.4g}/s)"


def _say(text: str) -> None:
    """On standard error: standard output may be the file."""
    print(text, file=sys.stderr)
