"""`colocate sweep --recall` on real servers: a sweep of another model is made, and asked once it is done."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import colocate
from colocate.bench.read import read_sweep
from colocate.bench.report.build import ReportRequest, build_report
from tests.limits import START_LIMIT_S


def _sweep(model: Path | str, out: Path, *words: str) -> tuple[int, str]:
    # No question would fit into 100 tokens: this limit is of the sweep's own model.
    given = ("--device", "cpu", "--kv-memory", "64MiB", "--max-model-len", "100", "--arms", "shared,chunked:32")
    load = ("--rates", "4", "--seeds", "1", "--min-requests", "4", "--warmup", "0.2", "--lengths", "32/4")
    rules = ("--slo-class", "chat: ttft 60 s, tpot 60 s", "--lateness-bound", "30", "--out", str(out))
    done = subprocess.run(
        [sys.executable, "-m", "colocate", "sweep", str(model), *given, *load, *rules, *words],
        capture_output=True,
        text=True,
        timeout=4 * START_LIMIT_S,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.timeout(6 * START_LIMIT_S)
def test_a_sweep_that_is_done_is_asked_what_it_recalls(tmp_path: Path) -> None:
    model, out = tmp_path / "other", tmp_path / "s"
    shutil.copytree(Path(colocate.__file__).parent / "model" / "demo", model)
    code, said = _sweep(model, out)
    assert code == 0 and "recall" not in said, said
    assert read_sweep(out).recalls == ()
    runs = {path: path.stat().st_mtime_ns for path in (out / "runs").rglob("*")}

    code, said = _sweep(model, out, "--recall", "8")
    assert code == 0, said
    assert "0 runs, about 0 s, then recall of 2 arms" in said and "recall of chunked:32: 8 of 8 right" in said
    assert {path: path.stat().st_mtime_ns for path in (out / "runs").rglob("*")} == runs
    found = {record.arm: record for record in read_sweep(out).recalls}
    assert {arm: (record.right, record.asked) for arm, record in found.items()} == {
        "shared": (8, 8), "chunked:32": (8, 8),
    }  # fmt: skip
    assert found["chunked:32"].model == "demo"
    assert found["chunked:32"].command[:3] == ("colocate", "serve", "demo")
    assert "--max-num-batched-tokens 32" in " ".join(found["chunked:32"].command)
    assert sorted(path.name for path in (out / "recall").iterdir()) == ["chunked-32.json", "shared.json"]

    written = {path: path.stat().st_mtime_ns for path in (out / "recall").iterdir()}
    code, said = _sweep(model, out, "--recall", "8")
    assert code == 0 and "then recall" not in said, said
    assert {path: path.stat().st_mtime_ns for path in (out / "recall").iterdir()} == written
    tables = [table for section in build_report(ReportRequest((out,))).sections for table in section.tables]
    (recall,) = (table for table in tables if table.id == "recall")
    assert [(cells[0].text, cells[3].value) for cells in recall.rows] == [("shared", 100), ("chunked:32", 100)]


def test_the_emulated_device_is_refused_before_anything_starts(tmp_path: Path) -> None:
    code, said = _sweep("demo", tmp_path / "s", "--device", "emulated", "--recall", "8")
    assert code == 2 and "draws its tokens from a formula" in said and "drop --recall" in said
    assert not (tmp_path / "s").exists()
