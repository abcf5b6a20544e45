"""`gpu_suite.py` as a user runs it, on the fake backend: sections to their end, and what becomes of one that fails."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from colocate.device.gpu_probe import probe_gpu

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from gpu.sections import GROUPS, SECTIONS
from gpu.sheet import GroupFile, read_group

SUITE = Path(__file__).parents[2] / "benchmarks" / "gpu_suite.py"


def run_suite(out: Path, *words: str, timeout_s: float = 100) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SUITE), "--out", str(out), *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False)


def groups_in(out: Path) -> dict[str, GroupFile]:
    return {group: read_group(out / f"{group}.json") for group in GROUPS if (out / f"{group}.json").exists()}


def test_sections_of_kernels_and_steps_run_to_their_end(tmp_path: Path) -> None:
    names = ("environment", "ceilings", "decode", "prefill", "switching")

    done = run_suite(tmp_path, "--smoke", "--only", ",".join(names))

    assert done.returncode == 0, done.stdout + done.stderr
    found = groups_in(tmp_path)
    assert set(found) == {"first", "partition"}
    results = {name: result for group in found.values() for name, result in group.sections.items()}
    assert {name: result.outcome for name, result in results.items()} == dict.fromkeys(names, "done")
    assert not any(group.is_real for group in found.values())
    points = results["decode"].data["points"]
    assert [point for point in points if "seconds" not in point] == []
    assert all(point["seconds"] > 0 and point["floor_s"] > 0 for point in points)
    assert results["switching"].data["host_s"]["num"] == 20
    assert "decode-bandwidth" in done.stdout
    assert (tmp_path / "first.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
@pytest.mark.skipif(os.environ.get("COLOCATE_SLOW") != "1", reason="many minutes; COLOCATE_SLOW=1 runs it")
@pytest.mark.timeout(900)
@pytest.mark.parametrize("group", GROUPS)
def test_every_group_runs_to_its_end(tmp_path: Path, group: str) -> None:
    done = run_suite(tmp_path, "--smoke", "--only", group, timeout_s=800)

    found = groups_in(tmp_path)[group]
    outcomes = {name: result.outcome for name, result in found.sections.items()}
    assert outcomes == {section.name: "done" for section in SECTIONS if section.group == group}, done.stdout
    assert done.returncode == 0


def test_a_section_that_fails_is_recorded_and_the_next_one_runs(tmp_path: Path) -> None:
    done = run_suite(tmp_path, "--smoke", "--only", "hand-over,environment", "--serve=--no-such-flag")

    assert done.returncode == 1
    found = groups_in(tmp_path)
    failed = found["live"].sections["hand-over"]
    assert failed.outcome == "failed"
    assert "Traceback" in failed.error
    assert "no-such-flag" in failed.error
    assert found["first"].sections["environment"].outcome == "done"


def test_time_that_is_over_is_an_outcome(tmp_path: Path) -> None:
    done = run_suite(tmp_path, "--smoke", "--only", "environment", "--limit", "0")

    assert done.returncode == 1
    assert groups_in(tmp_path)["first"].sections["environment"].outcome == "skipped"


def test_a_killed_suite_keeps_its_figures_and_leaves_no_process(tmp_path: Path) -> None:
    command = [sys.executable, str(SUITE), "--smoke", "--only", "attention", "--out", str(tmp_path)]
    own = {**os.environ, "TMPDIR": str(tmp_path)}  # a process that is killed cannot take its folder along
    suite = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=own)
    path = tmp_path / "kernels.json"
    try:
        deadline_s = time.monotonic() + 60
        while not _timings(path):
            assert suite.poll() is None and time.monotonic() < deadline_s, "no figure came"
            time.sleep(0.02)
        started = [psutil.Process(suite.pid), *psutil.Process(suite.pid).children(recursive=True)]
        os.kill(suite.pid, signal.SIGKILL)
    finally:
        suite.kill()
        suite.wait()

    assert len(started) == 2
    _, alive = psutil.wait_procs(started, timeout=30)
    assert alive == []
    assert _timings(path)


def _timings(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    section = json.loads(path.read_text())["sections"].get("attention", {})
    found: list[dict[str, Any]] = section.get("data", {}).get("timings", [])
    return found


def test_without_a_gpu_nothing_is_measured_in_silence(tmp_path: Path) -> None:
    if probe_gpu().names:
        pytest.skip("there is a GPU here")
    done = run_suite(tmp_path / "out", "--only", "environment")

    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "no GPU" in done.stderr
    assert not (tmp_path / "out").exists()


def test_an_unknown_section_is_named(tmp_path: Path) -> None:
    done = run_suite(tmp_path, "--smoke", "--only", "decoding")
    assert done.returncode == 2
    assert "'decoding' is no section" in done.stderr
