"""`colocate export`: runs and sweeps to tables, one or both."""

from __future__ import annotations

import csv
from pathlib import Path

import msgspec
import pytest
from typer.testing import CliRunner, Result

from colocate.bench.read import RUNS_FOLDER, SWEEP_FILE
from colocate.bench.records import SCHEMA_VERSION, ServerSample, SweepManifest
from colocate.cli.app import app
from colocate.errors import ConfigError
from tests.bench_rows import row, run, write_run


def export(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["export", *map(str, arguments)])


def lines_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    one = run([row(0, 2.0, (2.1, 2.12)), row(1, 3.0, (3.9,))], run_id="one", arm="a")
    other = run([row(0, 2.0, (2.1,))], [ServerSample(2.0, kv_usage=0.5)], run_id="other", arm="b", seed=3)
    return [write_run(tmp_path / made.manifest.run_id, made) for made in (one, other)]


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    facts = SweepManifest(SCHEMA_VERSION, "2026-01-01T00:00:00Z", (), (), (1.0,), (0,), {}, (), 100, None, {}, {})
    (tmp_path / "sweep" / RUNS_FOLDER).mkdir(parents=True)
    (tmp_path / "sweep" / SWEEP_FILE).write_bytes(msgspec.json.encode(facts))
    return tmp_path / "sweep"


def test_runs_become_both_tables_in_a_folder_that_is_made(tmp_path: Path, runs: list[Path]) -> None:
    out = tmp_path / "new" / "tables"
    result = export(*runs, "-o", out)
    assert result.exit_code == 0, result.output
    assert [line["run_id"] for line in lines_of(out / "figures.csv")] == ["one", "other"]
    requests = lines_of(out / "requests.csv")
    assert [(line["run_id"], line["arm"], line["seed"]) for line in requests] == [
        ("one", "a", "0"),
        ("one", "a", "0"),
        ("other", "b", "3"),
    ]
    assert float(requests[1]["ttft_s"]) == pytest.approx(0.9)


@pytest.mark.parametrize(
    ("flags", "num_lines", "column"),
    [((), 3, "ttft_s"), (("--table", "figures"), 2, "ttft_s.p50"), (("--table", "server"), 1, "kv_usage")],
)
def test_a_file_gets_one_table(
    tmp_path: Path, runs: list[Path], flags: tuple[str, ...], num_lines: int, column: str
) -> None:
    out = tmp_path / "table.csv"
    assert export(*runs, "-o", out, *flags).exit_code == 0
    lines = lines_of(out)
    assert len(lines) == num_lines and column in lines[0]


def test_options_that_contradict_and_a_sweep_without_runs_are_refused(
    tmp_path: Path, runs: list[Path], sweep: Path
) -> None:
    refused = {
        ("-o", tmp_path / "a.csv", "--format", "parquet"): "give one of them",
        ("-o", tmp_path / "out", "--format", "xlsx"): "csv, parquet",
        ("-o", tmp_path / "out", "--table", "figures"): "-o figures.csv",
        ("-o", tmp_path / "a.csv", "--table", "rows"): "requests, figures",
        ("-o", runs[0] / "manifest.json" / "below"): "cannot be made",
    }
    for flags, said in refused.items():
        error = export(runs[0], *flags).exception
        assert isinstance(error, ConfigError) and said in str(error)
    for folder in (tmp_path / "nothing", sweep):
        assert isinstance(export(folder, "-o", tmp_path / "out").exception, ConfigError)


def test_a_sweep_is_written_without_what_cannot_be_read(tmp_path: Path, runs: list[Path], sweep: Path) -> None:
    for folder in runs:
        folder.rename(sweep / RUNS_FOLDER / folder.name)
    (sweep / RUNS_FOLDER / "broken").mkdir()
    result = export(sweep, "-o", tmp_path / "all.csv")
    assert result.exit_code == 1 and "broken" in result.output
    assert len(lines_of(tmp_path / "all.csv")) == 3
