"""Requests and figures as tables."""

from __future__ import annotations

import csv
import importlib.util
from pathlib import Path

import pytest

from colocate.bench.export import export_runs, figure_lines, request_lines, write_table
from colocate.bench.figures import run_figures
from colocate.bench.records import ServerSample, Stages
from colocate.errors import ConfigError
from tests.bench_rows import row, run

HAS_PYARROW = importlib.util.find_spec("pyarrow") is not None
MADE = run(
    [
        row(0, 2.0, (2.1, 2.12), stages=Stages(queue_s=0.05), token_ids=(7, 8)),
        row(1, 3.0, (3.9,), error='a "quoted", broken\nline'),
        row(2, 0.5, (0.6,), phase="warmup"),
        row(3, 4.0, outcome="rejected", status=429),
    ]
)


def test_requests_as_csv(tmp_path: Path) -> None:
    path = tmp_path / "requests.csv"
    write_table(path, request_lines(MADE), "csv")
    with path.open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert [line["good"] for line in lines] == ["True", "False", "", "False"]
    assert [float(at) for at in lines[0]["token_s"].split()] == [2.1, 2.12]
    assert float(lines[0]["ttft_s"]) == pytest.approx(0.1) and float(lines[0]["queue_s"]) == 0.05
    assert lines[0]["token_ids"] == "7 8" and lines[1]["token_ids"] == ""
    assert lines[1]["error"] == 'a "quoted", broken\nline'
    assert lines[3]["ttft_s"] == "" and lines[3]["status"] == "429"


def test_figures_as_csv(tmp_path: Path) -> None:
    path = tmp_path / "figures.csv"
    figures = [run_figures(MADE), run_figures(run([], run_id="empty"))]
    write_table(path, figure_lines(figures), "csv")
    with path.open(newline="") as file:
        first, second = csv.DictReader(file)
    assert first["run_id"] == "r" and second["run_id"] == "empty"
    assert float(first["ttft_s.p50"]) == figures[0].ttft_s.p50 and second["ttft_s.p50"] == ""
    assert float(first["attainment.value"]) == pytest.approx(1 / 3)
    assert float(first["stages.queue_s.mean"]) == 0.05 and second["stages.queue_s.mean"] == ""
    assert first["attainment_by_definition.muxwise-8b.is_met"] == "True"


def test_a_sweep_as_tables(tmp_path: Path) -> None:
    samples = (ServerSample(1.0, kv_usage=0.25, plan="elastic"), ServerSample(2.0, waiting=3))
    other = run([row(0, 2.0, (2.1,))], samples, run_id="s", arm="b", seed=3)
    paths = export_runs(tmp_path, [MADE, other], [run_figures(MADE), run_figures(other)], "csv")
    assert [path.name for path in paths] == ["requests.csv", "figures.csv", "server.csv"]
    with paths[2].open(newline="") as file:
        looks = list(csv.DictReader(file))
    assert [(look["run_id"], look["at_s"], look["plan"], look["kv_usage"], look["waiting"]) for look in looks] == [
        ("s", "1.0", "elastic", "0.25", ""),
        ("s", "2.0", "", "", "3"),
    ]
    with paths[0].open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert [line["run_id"] for line in lines] == ["r"] * 4 + ["s"]
    assert (lines[-1]["arm"], lines[-1]["seed"], lines[-1]["good"]) == ("b", "3", "True")


def test_a_server_that_told_nothing_has_no_table(tmp_path: Path) -> None:
    assert [path.name for path in export_runs(tmp_path, [MADE], [run_figures(MADE)], "csv")] == [
        "requests.csv",
        "figures.csv",
    ]


def test_a_table_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be written"):
        write_table(tmp_path / "nowhere" / "t.csv", request_lines(MADE), "csv")
    (tmp_path / "taken").mkdir()
    with pytest.raises(ConfigError, match="cannot be written"):
        write_table(tmp_path / "taken", request_lines(MADE), "csv")
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


@pytest.mark.skipif(HAS_PYARROW, reason="pyarrow is installed")
def test_parquet_without_pyarrow_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="pip install pyarrow"):
        write_table(tmp_path / "t.parquet", request_lines(MADE), "parquet")
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not HAS_PYARROW, reason="pyarrow is not installed")
def test_parquet_holds_the_same(tmp_path: Path) -> None:
    from pyarrow import parquet

    lines = request_lines(MADE)
    write_table(tmp_path / "t.parquet", lines, "parquet")
    assert parquet.read_table(tmp_path / "t.parquet").to_pylist() == lines
    figures = figure_lines([run_figures(MADE)])
    write_table(tmp_path / "f.parquet", figures, "parquet")
    assert parquet.read_table(tmp_path / "f.parquet").to_pylist() == figures
