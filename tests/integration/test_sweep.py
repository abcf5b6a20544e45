"""`colocate sweep` on the emulated device: real servers, a kill in the middle, and the same command again."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import uuid
from pathlib import Path

import msgspec
import pytest

from colocate.bench.read import read_run, read_sweep
from tests.daemon import eventually
from tests.limits import START_LIMIT_S

RECOMPUTE = Path(__file__).parents[2] / "benchmarks" / "recompute.py"
PROFILE = Path(__file__).parents[1] / "data" / "slow_profile.yaml"
_MARK = "TEST_SWEEP_MARK"  # inherited by every process of one sweep
WORDS = (
    "demo", "--device", "emulated", "--profile", str(PROFILE), "--units", "16", "--seeds", "1", "--min-requests", "10",
    "--warmup", "0.2", "--lengths", "64/8", "--slo-class", "chat: ttft 60 s, tpot 60 s", "--lateness-bound", "30",
)  # fmt: skip


class Sweep:
    """The command as a process of its own, by which all its servers can be found."""

    def __init__(self, *words: str) -> None:
        self.mark = uuid.uuid4().hex
        self.process = subprocess.Popen(
            [sys.executable, "-m", "colocate", "sweep", *WORDS, *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            # setproctitle would overwrite what we find the processes by
            env={**os.environ, _MARK: self.mark, "SPT_NOENV": "1"},
        )

    def __enter__(self) -> Sweep:
        return self

    def __exit__(self, *_: object) -> None:
        for pid in self.pids():
            os.kill(pid, signal.SIGKILL)
        self.process.wait()

    def finish(self) -> tuple[int, str]:
        output, _ = self.process.communicate(timeout=START_LIMIT_S)
        assert not self.pids()
        return self.process.returncode, output

    def pids(self) -> list[int]:
        found = []
        for entry in Path("/proc").iterdir():
            try:
                if entry.name.isdigit() and f"{_MARK}={self.mark}".encode() in (entry / "environ").read_bytes():
                    found.append(int(entry.name))
            except OSError:  # gone, or a zombie
                continue
        return found


def _status(folder: Path) -> str:
    manifest = folder / "manifest.json"
    return str(msgspec.json.decode(manifest.read_bytes())["status"]) if manifest.exists() else ""


def _statuses(out: Path) -> list[str]:
    return sorted(_status(folder) for folder in (out / "runs").iterdir()) if (out / "runs").exists() else []


def test_a_sweep_that_is_killed_leaves_nothing_running_and_goes_on(tmp_path: Path) -> None:
    out = tmp_path / "s"
    words = ("--arms", "shared,elastic", "--rates", "4", "--out", str(out))
    with Sweep(*words) as sweep:
        eventually(lambda: _statuses(out) == ["partial", "valid"], START_LIMIT_S, "the second run is under way")
        assert len(sweep.pids()) > 5  # the sweep, the guard, and a server
        sweep.process.kill()
        eventually(lambda: not sweep.pids(), what="every server is gone")
    (done,) = [folder for folder in (out / "runs").iterdir() if _status(folder) == "valid"]
    before = {path: path.stat().st_mtime_ns for path in done.iterdir()}

    with Sweep(*words) as sweep:
        code, output = sweep.finish()
    assert code == 0, output
    assert "2 arms, 1 runs" in output
    assert {path: path.stat().st_mtime_ns for path in done.iterdir()} == before
    found = read_sweep(out)
    assert [run.status for run in found.runs] == ["valid", "valid"]
    assert [len(run.rows) for run in found.runs] == [len(found.runs[0].rows)] * 2
    assert len(found.runs[0].rows) >= 10
    assert {run.manifest.workload_sha256 for run in found.runs} == {found.runs[0].manifest.workload_sha256}
    assert {run.manifest.run_id for run in found.runs} == {"shared@4@s0", "elastic@4@s0"}
    (aside,) = (out / "aside").iterdir()
    assert re.fullmatch(r"(shared|elastic)@4@s0\.partial-1", aside.name)
    for run in found.runs:
        assert run.manifest.target.command[:3] == ("colocate", "serve", "demo")
        assert run.manifest.figures["server_resident_bytes"] > 1 << 20  # type: ignore[operator]
        assert not (run.folder / "server.log").exists()
    folders = [str(run.folder) for run in found.runs]
    again = subprocess.run([sys.executable, RECOMPUTE, *folders], capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stdout
    for row in re.findall(r"^ *(?:shared|elastic) .*$", output, re.MULTILINE):
        assert "100%" in row and ">= 4/s" in row

    with Sweep(*words, "--min-requests", "11") as sweep:
        code, output = sweep.finish()
    assert code == 2 and "min_requests are 10, not 11" in output


def test_interrupted_it_says_what_is_kept_and_a_server_that_does_not_start_is_a_failed_point(tmp_path: Path) -> None:
    out = tmp_path / "s"
    words = ("--arms", "static:p99d1,elastic", "--rates", "2", "--out", str(out))
    with Sweep(*words) as sweep:
        eventually(lambda: "partial" in _statuses(out), START_LIMIT_S, "a run is under way")
        sweep.process.send_signal(signal.SIGINT)
        code, output = sweep.finish()
    assert code == 130 and "the same command goes on from there" in output
    cut = read_run(out / "runs" / "elastic@2@s0")
    assert cut.status == "partial" and "interrupted" in cut.reasons

    with Sweep(*words) as sweep:
        code, output = sweep.finish()
    assert code == 1, output
    failed = read_run(out / "runs" / "static-p99d1@2@s0")
    assert failed.status == "failed" and "this device has no plan named 'p99d1'" in failed.reasons[0]
    assert "no plan named" in (failed.folder / "server.log").read_text()
    assert _statuses(out) == ["failed", "valid"]
    assert re.search(r"^ *static:p99d1 +failed", output, re.MULTILINE) and "1 of 2 runs failed" in output


def test_the_device_is_asked_for_its_plans_and_the_estimate_runs_nothing(tmp_path: Path) -> None:
    out = tmp_path / "s"
    with Sweep("--arms", "static", "--rates", "2", "--out", str(out), "--units", "4", "--estimate") as sweep:
        code, output = sweep.finish()
    assert code == 0, output
    assert "static:p3d1, static:p2d2, static:p1d3" in output and "3 runs, about" in output
    assert not out.exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--rates", "2", "--arms", "chunkd"), "no arm is named 'chunkd'"),
        ((), "--rates: is missing"),
        (("--rates", "two"), "are no such numbers"),
        (("--rates", "2", "--search", "1:2"), "is given beside --rates"),
        (("--rates", "2", "--budget", "soon"), "'soon' is not a time"),
        (("--rates", "2", "--lengths", "nonsense"), "nonsense"),
        (("--rates", "2", "--config", "/no/such/file"), "/no/such/file"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_starts(tmp_path: Path, words: tuple[str, ...], said: str) -> None:
    from typer.testing import CliRunner

    from colocate.cli.app import app
    from colocate.errors import ConfigError

    given = [*WORDS, "--arms", "shared", *words] if "--arms" not in words else [*WORDS, *words]
    result = CliRunner().invoke(app, ["sweep", *given, "--out", str(tmp_path / "s")])
    assert isinstance(result.exception, ConfigError) and said in str(result.exception)
    assert not (tmp_path / "s").exists()
