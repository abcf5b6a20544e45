"""Workload files: our JSONL, Mooncake JSONL, traces as CSV, and datasets for their lengths. Told apart by their fields.

| format | one row | time |
|---|---|---|
| ours, JSONL | `{"arrival_s": 0.5, "prompt_tokens": 100, "output_tokens": 20, ...}`, see `WorkloadRow` | seconds |
| Mooncake (FAST 2025), JSONL | `{"timestamp": 500, "input_length": 9, "output_length": 9, "hash_ids": []}` | ms |
| Azure LLM, BurstGPT, lengths, CSV | see `tables` | |
| ShareGPT and the like, JSON | see `datasets` | none: give a rate |

Read line by line, so that the first hour of a trace of a week needs no more memory than that hour.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import msgspec
from msgspec import Struct

from colocate.errors import ConfigError
from colocate.workload.datasets import Count, dataset_lengths, is_dataset
from colocate.workload.lengths import LengthPair
from colocate.workload.rows import DEFAULT_BLOCK_TOKENS, Workload, WorkloadRow, check_rows, make_workload
from colocate.workload.tables import ARRIVAL_COLUMNS, FORMATS_HELP, table_format, table_rows

_FORMATS = "JSON lines with arrival_s or timestamp, or " + FORMATS_HELP


class _MooncakeRow(Struct, frozen=True):
    timestamp: float  # milliseconds
    input_length: int
    output_length: int
    hash_ids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """How to read a trace."""

    block_tokens: int = DEFAULT_BLOCK_TOKENS  # what one Mooncake hash id stands for
    until_s: float = math.inf  # what arrives later is not read
    most_rows: int | None = None  # what follows so many is not read
    skip_empty: bool = False  # leave out requests without tokens, as traces record failures
    sort: bool = False  # bring rows into order of arrival


@dataclass(frozen=True, slots=True)
class ReadTrace:
    """What came of it."""

    workload: Workload
    format: str
    num_skipped: int


def read_workload(path: Path, *, block_tokens: int = DEFAULT_BLOCK_TOKENS, until_s: float = math.inf) -> Workload:
    """A file of any format above that has arrivals. Raises ConfigError with the line, what is wrong and what would
    be right."""
    return read_trace(path, Reading(block_tokens=block_tokens, until_s=until_s)).workload


def read_trace(path: Path, reading: Reading) -> ReadTrace:
    """The same, with what a conversion may want to mend. Raises ConfigError."""
    lines = _lines(path)
    first = next(lines)
    name, numbered, has_times, may_fail = _numbered_rows(path, first, lines, reading.block_tokens)
    if not has_times:
        raise ConfigError(str(path), "has lengths and no arrival times", "give it as --lengths with a --rate")
    rows: list[WorkloadRow] = []
    places: list[int] = []
    num_skipped = 0
    end_s: float | None = None  # where the trace was cut
    for line, row in numbered:
        if len(rows) == reading.most_rows:
            end_s = row.arrival_s or None
            break
        if row.arrival_s >= reading.until_s:
            end_s = reading.until_s
            if reading.sort:
                continue
            break
        if min(row.prompt_tokens, row.output_tokens) != 0 or not (may_fail or reading.skip_empty):
            rows.append(row)
            places.append(line)
        elif reading.skip_empty:
            num_skipped += 1
        else:
            problem = f"has {row.prompt_tokens} prompt and {row.output_tokens} output tokens: a request that failed"
            remedy = "leave such rows out with `colocate workload convert --skip-empty`"
            raise ConfigError(f"{path}: line {line}", problem, remedy)
    if reading.sort:
        rows = _sorted(rows)
        places = []
    _check(path, rows, places, reading, num_skipped)
    return ReadTrace(make_workload(path.name, rows, end_s), name, num_skipped)


def read_lengths(path: Path, count: Count | None = None) -> list[LengthPair]:
    """The (prompt, output) lengths of a lengths file, of any workload or of a dataset. `count` counts the tokens of
    its texts. Raises ConfigError."""
    lines = _lines(path)
    first = next(lines)
    if is_dataset(first):
        return dataset_lengths(str(path), [first, *lines], count)[0]
    _, numbered, has_times, _ = _numbered_rows(path, first, lines, DEFAULT_BLOCK_TOKENS)
    if has_times:
        return [(row.prompt_tokens, row.output_tokens) for row in read_workload(path).rows]
    rows, places = [], []
    for line, row in numbered:
        rows.append(row)
        places.append(line)
    check_rows(str(path), rows, lines=places)
    return [(row.prompt_tokens, row.output_tokens) for row in rows]


def read_dataset(path: Path, count: Count | None) -> tuple[list[LengthPair], int] | None:
    """Lengths of a dataset, and how many of its entries have no answer; None of any other file. Raises ConfigError."""
    lines = _lines(path)
    first = next(lines)
    return dataset_lengths(str(path), [first, *lines], count) if is_dataset(first) else None


def _check(path: Path, rows: Sequence[WorkloadRow], places: Sequence[int], reading: Reading, num_skipped: int) -> None:
    if not rows and num_skipped:
        raise ConfigError(str(path), f"all {num_skipped} requests are without tokens", "take another trace")
    if not rows and reading.until_s < math.inf:
        raise ConfigError("duration", f"nothing of {path.name} arrives before {reading.until_s:g} s", "take longer")
    check_rows(str(path), rows, lines=places)


def _sorted(rows: Sequence[WorkloadRow]) -> list[WorkloadRow]:
    """By time, the earliest at its own time or 0, whichever is later."""
    ordered = sorted(rows, key=lambda row: row.arrival_s)
    shift_s = -min(0.0, ordered[0].arrival_s) if ordered else 0.0
    return [msgspec.structs.replace(row, arrival_s=row.arrival_s + shift_s) for row in ordered] if shift_s else ordered


def _lines(path: Path) -> Iterator[str]:
    """At least one, none of them read before it is asked for."""
    remedy = f"a workload is {_FORMATS}"
    not_text = ConfigError(str(path), "is not text in UTF-8", f"unpack it or save it as UTF-8; {remedy}")
    try:
        with path.open("rb") as file:
            # Packed files and UTF-16 hold NUL bytes, and may decode as something all the same.
            if b"\0" in file.read(4096):
                raise not_text
        with path.open(encoding="utf-8-sig", newline="") as lines:
            first = next((line for line in lines if line.strip()), None)
            if first is None:
                raise ConfigError(str(path), "is empty", remedy)
            yield first
            yield from lines
    except OSError as error:
        raise ConfigError(str(path), f"cannot read the workload: {error.strerror}", "check the path") from None
    except UnicodeDecodeError:
        raise not_text from None


def _numbered_rows(
    path: Path, first: str, rest: Iterator[str], block_tokens: int
) -> tuple[str, Iterator[tuple[int, WorkloadRow]], bool, bool]:
    """Its format, line numbers and rows, whether it has times, and whether failures stand among its rows."""
    if first.lstrip().startswith(("{", "[")):
        if is_dataset(first):
            return "dataset", iter(()), False, False
        is_mooncake = _is_mooncake(first)
        rows = _json_rows(path, chain([first], rest), block_tokens, is_mooncake)
        return ("Mooncake" if is_mooncake else "ours"), rows, True, False
    known, places = table_format(str(path), first)
    return known.name, table_rows(str(path), known, places, rest), bool(known.time), known.may_fail


def _is_mooncake(line: str) -> bool:
    """By any field of theirs: one that lacks another is to be told so in their words."""
    try:
        fields = msgspec.json.decode(line)
    except msgspec.DecodeError:
        return '"timestamp"' in line
    return isinstance(fields, dict) and not fields.keys().isdisjoint(_MooncakeRow.__struct_fields__)


def _json_rows(
    path: Path, lines: Iterator[str], block_tokens: int, is_mooncake: bool
) -> Iterator[tuple[int, WorkloadRow]]:
    ours = msgspec.json.Decoder(WorkloadRow)
    theirs = msgspec.json.Decoder(_MooncakeRow)
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            if is_mooncake:
                row = theirs.decode(line)
                _check_blocks(f"{path}: line {number}", row, block_tokens)
                at_s = row.timestamp / 1000
                yield number, WorkloadRow(at_s, row.input_length, row.output_length, row.hash_ids, block_tokens)
            else:
                yield number, ours.decode(line)
        except msgspec.MsgspecError as error:
            wanted = "timestamp, input_length and output_length" if is_mooncake else ", ".join(ARRIVAL_COLUMNS)
            raise ConfigError(f"{path}: line {number}", f"not a request: {error}", f"a row has {wanted}") from None


def _check_blocks(where: str, row: _MooncakeRow, block_tokens: int) -> None:
    """Ids that stand for blocks of another length would share the wrong tokens."""
    if row.hash_ids and len(row.hash_ids) != -(-row.input_length // block_tokens):
        problem = f"{len(row.hash_ids)} hash ids for {row.input_length} tokens are not blocks of {block_tokens}"
        raise ConfigError(where, problem, "give the trace's own block length with --block-tokens")
