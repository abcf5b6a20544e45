"""`colocate export`: what bench and sweep wrote, as tables for a notebook or a spreadsheet."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from colocate.bench.export import TABLES, Format, Table, export_runs, table_of, write_table
from colocate.bench.figures import run_figures
from colocate.bench.read import Run, Sweep, read_results
from colocate.errors import ConfigError

FORMATS: tuple[Format, ...] = get_args(Format)


@dataclass(frozen=True, slots=True)
class ExportAsk:
    """The command line."""

    results: tuple[Path, ...]
    out: Path
    format: str | None = None
    table: str | None = None


def run_export(ask: ExportAsk) -> int:
    """Write one file, or all tables into a folder. Exit code 1 where a run of a sweep cannot be read. Raises
    ConfigError."""
    runs, num_unreadable = _read(ask.results)
    ending = ask.out.suffix.removeprefix(".")
    format = _format(ask.format or (ending if ending in FORMATS else "csv"))
    if ending in FORMATS:
        if ask.format is not None and ask.format != ending:
            raise ConfigError("--format", f"{ask.format} is not what {ask.out} ends in", "give one of them")
        write_table(ask.out, table_of(runs, [run_figures(run) for run in runs], _table(ask.table)), format)
        written = [ask.out]
    else:
        if ask.table is not None:
            raise ConfigError("--table", "a folder gets every table", f"name a file: -o {ask.table}.{format}")
        _make_folder(ask.out)
        written = export_runs(ask.out, runs, [run_figures(run) for run in runs], format)
    for path in written:
        print(f"wrote {path}")
    return 1 if num_unreadable else 0


def _read(results: Sequence[Path]) -> tuple[list[Run], int]:
    runs: list[Run] = []
    num_unreadable = 0
    for folder in results:
        found = read_results(folder)
        runs += found.runs if isinstance(found, Sweep) else (found,)
        for missing in found.unreadable if isinstance(found, Sweep) else ():
            num_unreadable += 1
            print(f"left out: {missing.folder}: {missing.problem}", file=sys.stderr)
    if not runs:
        raise ConfigError(", ".join(map(str, results)), "no run can be read there", "name folders of bench or sweep")
    return runs, num_unreadable


def _format(name: str) -> Format:
    for known in FORMATS:
        if name == known:
            return known
    raise ConfigError("--format", f"no format is named {name!r}", f"choose one of: {', '.join(FORMATS)}")


def _table(name: str | None) -> Table:
    for known in TABLES:
        if name in (None, known):
            return known
    raise ConfigError("--table", f"no table is named {name!r}", f"choose one of: {', '.join(TABLES)}")


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(str(folder), f"cannot be made: {error.strerror}", "name a folder, or FILE.csv") from None
