"""Requests, figures and looks at the server as CSV (standard library) or Parquet (pyarrow, where it is installed): for
a notebook, or a spreadsheet.

`requests`: one line per row of the run, its raw fields, `good` (empty for what was not offered in the window) and its
latencies. `figures`: one line per run, nested figures as `ttft_s.p99`. `server`: one line per look at the server.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal, TypeAlias, get_args

import msgspec

from colocate.bench.figures import RunFigures, promises_of
from colocate.bench.metrics.attainment import Promises, is_good
from colocate.bench.metrics.latency import STAGES, e2e_s, itl_p99_s, lateness_s, stage_s, tpot_s, ttft_s
from colocate.bench.metrics.window import offered
from colocate.bench.read import Run
from colocate.bench.records import RequestRow, ServerSample
from colocate.errors import ConfigError

Format = Literal["csv", "parquet"]
Table = Literal["requests", "figures", "server"]
TABLES: tuple[Table, ...] = get_args(Table)
Cell: TypeAlias = str | int | float | bool | list[float] | list[int] | None
Line: TypeAlias = dict[str, Cell]

_RAW = (
    "index", "scheduled_s", "phase", "prompt_tokens", "max_tokens", "outcome", "sent_s", "first_byte_s", "end_s",
    "status", "finish_reason", "error", "error_kind", "output_tokens", "token_source", "cached_tokens", "retry_after_s",
    "slo_class", "session",
)  # fmt: skip


def request_lines(run: Run, promises: Promises | None = None) -> list[Line]:
    """Every row of the run, in order of schedule. Raises ConfigError where the run's classes cannot be read."""
    promises = promises or promises_of(run)
    counted = {row.index for row in offered(run)}
    return [_request_line(row, promises, row.index in counted) for row in run.rows]


def _request_line(row: RequestRow, promises: Promises, is_counted: bool) -> Line:
    line: Line = {name: getattr(row, name) for name in _RAW}
    line["good"] = is_good(row, promises.of(row)) if is_counted else None
    line |= {"ttft_s": ttft_s(row), "tpot_s": tpot_s(row), "itl_p99_s": itl_p99_s(row), "e2e_s": e2e_s(row)}
    line["lateness_s"] = lateness_s(row)
    line |= {stage: stage_s(row, stage) for stage in STAGES}
    line["token_s"] = list(row.token_s)
    line["token_ids"] = None if row.token_ids is None else list(row.token_ids)
    return line


def server_lines(run: Run) -> list[Line]:
    """Every look at the server, in order of time."""
    return [{name: getattr(sample, name) for name in ServerSample.__struct_fields__} for sample in run.samples]


def figure_lines(figures: Iterable[RunFigures]) -> list[Line]:
    """One line per run. Lists and tuples that are no numbers are joined by blanks."""
    return [_flat(msgspec.to_builtins(of_run)) for of_run in figures]


def _flat(fields: Mapping[str, object], before: str = "") -> Line:
    line: Line = {}
    for name, value in fields.items():
        if isinstance(value, Mapping):
            line |= _flat(value, f"{before}{name}.")
        elif isinstance(value, list | tuple):
            line[before + name] = " ".join(
                msgspec.json.encode(part).decode() if isinstance(part, Mapping) else str(part) for part in value
            )
        elif value is None or isinstance(value, str | int | float):
            line[before + name] = value
        else:
            raise TypeError(f"{before}{name}: a figure cannot be {value!r}")
    return line


def write_table(path: Path, lines: Sequence[Line], format: Format) -> None:
    """Whole or not at all. Columns are those of all lines, in the order they first appear. In CSV None is empty, times
    and ids of tokens are one cell, separated by blanks. Raises ConfigError: no pyarrow, no space, no such folder."""
    columns = list(dict.fromkeys(name for line in lines for name in line))
    data = _csv(columns, lines) if format == "csv" else _parquet(columns, lines)
    unfinished = path.with_name(path.name + ".part")
    try:
        unfinished.write_bytes(data)
        unfinished.replace(path)
    except OSError as error:
        unfinished.unlink(missing_ok=True)
        problem = f"cannot be written: {error.strerror}"
        raise ConfigError(
            str(path), problem, "name a file in a folder that exists, with space and permission"
        ) from None


def export_runs(folder: Path, runs: Sequence[Run], figures: Sequence[RunFigures], format: Format) -> list[Path]:
    """FOLDER/TABLE.FORMAT of each table; none of a server that told nothing. Raises ConfigError as write_table does,
    and where classes cannot be read."""
    paths: list[Path] = []
    for table in TABLES:
        if table == "server" and not any(run.samples for run in runs):
            continue
        paths.append(folder / f"{table}.{format}")
        write_table(paths[-1], table_of(runs, figures, table), format)
    return paths


def table_of(runs: Sequence[Run], figures: Sequence[RunFigures], table: Table) -> list[Line]:
    """The lines of every run; those of requests and samples are headed by their run's id, arm and seed. Raises
    ConfigError where classes cannot be read."""
    if table == "figures":
        return figure_lines(figures)
    lines: list[Line] = []
    for run in runs:
        facts = run.manifest
        head: Line = {"run_id": facts.run_id, "arm": facts.arm, "seed": facts.seed}
        of_run = request_lines(run) if table == "requests" else server_lines(run)
        lines += [head | line for line in of_run]
    return lines


def _csv(columns: Sequence[str], lines: Sequence[Line]) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    for line in lines:
        writer.writerow({name: _csv_cell(value) for name, value in line.items()})
    return text.getvalue().encode()


def _csv_cell(value: Cell) -> str | int | float | None:
    return " ".join(map(repr, value)) if isinstance(value, list) else value


def _parquet(columns: Sequence[str], lines: Sequence[Line]) -> bytes:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        remedy = "pip install pyarrow, or export CSV"
        raise ConfigError("--format parquet", "needs the package pyarrow, which is not installed", remedy) from None
    table = pyarrow.table({name: [line.get(name) for line in lines] for name in columns})
    sink = pyarrow.BufferOutputStream()
    parquet.write_table(table, sink)
    return bytes(sink.getvalue())
