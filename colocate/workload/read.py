"""Workload files: our JSONL, Mooncake JSONL, and CSV with arrivals or with lengths alone. Told apart by their fields.

| format | one row | time |
|---|---|---|
| ours, JSONL | `{"arrival_s": 0.5, "prompt_tokens": 100, "output_tokens": 20, ...}`, see `WorkloadRow` | seconds |
| Mooncake (FAST 2025), JSONL | `{"timestamp": 500, "input_length": 9, "output_length": 9, "hash_ids": []}` | ms |
| Azure LLM 2023, reduced, CSV | `arrival_s,prompt_tokens,output_tokens` | seconds |
| lengths, CSV | `prompt_tokens,output_tokens` | none: give a rate |
"""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from pathlib import Path

import msgspec
from msgspec import Struct

from colocate.errors import ConfigError
from colocate.workload.lengths import LengthPair
from colocate.workload.rows import DEFAULT_BLOCK_TOKENS, Workload, WorkloadRow, check_rows, make_workload

ARRIVAL_COLUMNS = ["arrival_s", "prompt_tokens", "output_tokens"]
LENGTH_COLUMNS = ["prompt_tokens", "output_tokens"]
_FORMATS = "JSON lines with arrival_s or timestamp, or CSV headed " + ",".join(ARRIVAL_COLUMNS)


class _MooncakeRow(Struct, frozen=True):
    timestamp: float  # milliseconds
    input_length: int
    output_length: int
    hash_ids: tuple[int, ...] = ()


def read_workload(path: Path, *, block_tokens: int = DEFAULT_BLOCK_TOKENS) -> Workload:
    """A file of any format above that has arrivals. `block_tokens` is what one Mooncake hash id stands for.

    Raises ConfigError with the line, what is wrong and what would be right.
    """
    lines = _lines(path)
    if lines[0].lstrip().startswith("{"):
        rows = _json_rows(path, lines, block_tokens)
        first_line = 1
    else:
        table = _table(path, lines, ARRIVAL_COLUMNS)
        rows = [WorkloadRow(arrival_s, int(prompt), int(output)) for arrival_s, prompt, output in table]
        first_line = 2
    check_rows(str(path), rows, first_line)
    return make_workload(path.name, rows)


def read_lengths(path: Path) -> list[LengthPair]:
    """The (prompt, output) lengths of a lengths file or of any workload. Raises ConfigError."""
    lines = _lines(path)
    if lines[0].strip().split(",") != LENGTH_COLUMNS:
        return [(row.prompt_tokens, row.output_tokens) for row in read_workload(path).rows]
    pairs = [(int(prompt), int(output)) for prompt, output in _table(path, lines, LENGTH_COLUMNS)]
    check_rows(str(path), [WorkloadRow(0.0, prompt, output) for prompt, output in pairs], 2)
    return pairs


def _lines(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise ConfigError(str(path), f"cannot read the workload: {error.strerror}", "check the path") from None
    except UnicodeDecodeError:
        raise ConfigError(str(path), "is not text", f"a workload is {_FORMATS}") from None
    while lines and not lines[-1].strip():
        lines.pop()
    if not lines:
        raise ConfigError(str(path), "is empty", f"a workload is {_FORMATS}")
    return lines


def _json_rows(path: Path, lines: Sequence[str], block_tokens: int) -> list[WorkloadRow]:
    is_mooncake = '"timestamp"' in lines[0]
    ours = msgspec.json.Decoder(WorkloadRow)
    theirs = msgspec.json.Decoder(_MooncakeRow)
    rows: list[WorkloadRow] = []
    for number, line in enumerate(lines, 1):
        try:
            if is_mooncake:
                row = theirs.decode(line)
                _check_blocks(f"{path}: line {number}", row, block_tokens)
                rows.append(
                    WorkloadRow(row.timestamp / 1000, row.input_length, row.output_length, row.hash_ids, block_tokens)
                )
            else:
                rows.append(ours.decode(line))
        except msgspec.MsgspecError as error:
            wanted = "timestamp, input_length and output_length" if is_mooncake else ", ".join(ARRIVAL_COLUMNS)
            raise ConfigError(f"{path}: line {number}", f"not a request: {error}", f"a row has {wanted}") from None
    return rows


def _check_blocks(where: str, row: _MooncakeRow, block_tokens: int) -> None:
    """Ids that stand for blocks of another length would share the wrong tokens."""
    if row.hash_ids and len(row.hash_ids) != -(-row.input_length // block_tokens):
        problem = f"{len(row.hash_ids)} hash ids for {row.input_length} tokens are not blocks of {block_tokens}"
        raise ConfigError(where, problem, "give the trace's own block length with --block-tokens")


def _table(path: Path, lines: Sequence[str], columns: list[str]) -> list[list[float]]:
    table = csv.reader(lines)
    header = next(table)
    if header == LENGTH_COLUMNS and columns == ARRIVAL_COLUMNS:
        raise ConfigError(str(path), "has lengths and no arrival times", "give it as --lengths with a --rate")
    if header != columns:
        raise ConfigError(f"{path}: line 1", f"unknown columns {','.join(header)}", f"a workload is {_FORMATS}")
    rows: list[list[float]] = []
    for number, fields in enumerate(table, 2):
        try:
            row = [float(field) for field in fields]
        except ValueError:
            row = []
        if (
            len(row) != len(columns)
            or not all(math.isfinite(value) for value in row)
            or row[-2:] != [*map(int, row[-2:])]
        ):
            problem = f"{','.join(fields)!r} is not {','.join(columns)}"
            raise ConfigError(f"{path}: line {number}", problem, "a time in seconds, then whole numbers of tokens")
        rows.append(row)
    return rows
