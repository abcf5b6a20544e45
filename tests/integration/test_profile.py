"""`colocate profile` with real processes on the emulated device: a run, an interruption, a loss, refusals."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from colocate.config.profile import Coefficients, DeviceProfile, ShareProfile, load_profile
from colocate.core.latency import LatencyModel
from colocate.runtime.profiling.journal import read_journal
from tests.daemon import eventually
from tests.profiling_world import TRUTH


def _quicker(k: Coefficients) -> Coefficients:
    return Coefficients(k.a / 5, k.b / 5, k.c / 5)


# So that a few seconds pay for every point.
FAST = msgspec.structs.replace(
    TRUTH, shares=[ShareProfile(s.units, _quicker(s.prefill), _quicker(s.decode)) for s in TRUTH.shares]
)


class ProfileRun:
    """One `colocate profile` in a directory of its own, found by a mark in the environment of all its processes."""

    def __init__(self, directory: Path, *arguments: str) -> None:
        self.directory = directory
        self._mark = f"PROFILE_RUN_{os.getpid()}_{id(self)}"
        truth = directory / "truth.json"
        truth.write_bytes(msgspec.json.encode(FAST))
        command = [sys.executable, "-m", "colocate", "profile", "--device", "emulated", "--profile", str(truth)]
        sizes = ["--max-num-seqs", "4", "--max-num-batched-tokens", "32", "--max-model-len", "512"]
        self.process = subprocess.Popen(
            [*command, *sizes, "--out", "out.json", *arguments],
            cwd=directory,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, self._mark: "1", "SPT_NOENV": "1", "TMPDIR": str(directory)},
        )

    @property
    def journal(self) -> Path:
        return self.directory / "out.partial.jsonl"

    def kill(self) -> None:
        for pid in self.pids().values():
            os.kill(pid, signal.SIGKILL)
        self.process.wait()

    def finish(self) -> tuple[int, str]:
        """Its exit code and all it said, once nothing of it is left."""
        output, _ = self.process.communicate(timeout=100)
        eventually(lambda: not self.pids(), 10.0, "all processes gone")
        assert not [path for path in Path("/dev/shm").iterdir() if "colocate" in path.name]
        return self.process.returncode, output

    def wait_visits(self, count: int) -> None:
        eventually(lambda: self.journal.exists() and self.journal.read_bytes().count(b"\n") > count, 60.0, "visits")

    def pids(self) -> dict[str, int]:
        """Role (or `supervisor`) to pid."""
        found = {}
        for entry in Path("/proc").iterdir():
            try:
                if entry.name.isdigit() and f"{self._mark}=1".encode() in (entry / "environ").read_bytes():
                    words = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode().split()
                    named = re.search(r"colocate:(\w+)|colocate\.launch (\w+)", " ".join(words))
                    found[(named[1] or named[2]) if named else "supervisor"] = int(entry.name)
            except OSError:  # gone, or a zombie
                continue
        return found


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., ProfileRun]]:
    """Starts runs in one directory; none outlives the test."""
    runs: list[ProfileRun] = []

    def start(*arguments: str) -> ProfileRun:
        runs.append(ProfileRun(tmp_path, *arguments))
        return runs[-1]

    yield start
    for run in runs:
        run.kill()


def test_a_run_writes_a_profile_that_serve_and_show_read(start: Callable[..., ProfileRun], tmp_path: Path) -> None:
    code, output = start("--budget", "5s", "--plot", "curves.svg").finish()
    assert code == 0, output
    profile = load_profile(tmp_path / "out.json")
    assert profile.is_measured and (profile.name, profile.model) == (TRUTH.name, "demo")
    assert [share.units for share in profile.shares] == [2, 4]
    assert [(pair.prefill_units, pair.decode_units) for pair in profile.contention] == [(2, 2), (4, 4)]
    assert {(error.phase, error.contended) for error in profile.errors} == {
        (phase, contended) for phase in ("prefill", "decode") for contended in (False, True)
    }
    assert profile.created and profile.versions["colocate"] and profile.kv_tokens
    assert not (tmp_path / "out.partial.jsonl").exists()
    assert "contention" in output and "target: 90%" in output
    assert (tmp_path / "curves.svg").read_text().startswith("<?xml")
    assert_nothing_is_faster_than_the_device(profile)

    shown = subprocess.run(
        [sys.executable, "-m", "colocate", "profile", "--show", "out.json"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert shown.returncode == 0 and shown.stdout in output


def assert_nothing_is_faster_than_the_device(profile: DeviceProfile) -> None:
    """A busy machine makes the emulated device late, never early."""
    truth, found = LatencyModel(FAST), LatencyModel(profile)
    for units in (2, 4):
        assert found.prefill_s(units, 16, 16 * 8) > 0.9 * truth.prefill_s(units, 16, 16 * 8)
        assert found.decode_s(units, 400, 2) > 0.9 * truth.decode_s(units, 400, 2)


def test_an_interrupted_run_keeps_what_it_has_and_the_next_goes_on(
    start: Callable[..., ProfileRun], tmp_path: Path
) -> None:
    run = start("--budget", "60s")
    run.wait_visits(3)
    run.process.send_signal(signal.SIGINT)
    code, output = run.finish()
    assert code == 130 and "the same command goes on" in output
    kept = read_journal(run.journal)[1]
    assert len(kept) >= 3 and not (tmp_path / "out.json").exists()

    other = start("--budget", "60s", "--block-size", "8")
    code, output = other.finish()
    assert code == 2 and "block_size 16, this one has 8" in output and "--no-resume" in output

    again = start("--budget", "60s")
    again.wait_visits(len(kept) + 2)
    again.process.send_signal(signal.SIGTERM)
    assert again.finish()[0] == 143
    assert read_journal(again.journal)[1][: len(kept)] == kept

    anew = start("--budget", "60s", "--no-resume")
    eventually(lambda: "engine" in anew.pids(), 60.0, "a profiler")
    anew.wait_visits(1)
    anew.process.send_signal(signal.SIGINT)
    anew.finish()
    assert read_journal(anew.journal)[1][0] != kept[0]


@pytest.mark.parametrize("role", ["decode", "keeper", "engine"])
def test_a_lost_process_ends_the_run_with_its_name(start: Callable[..., ProfileRun], role: str) -> None:
    run = start("--budget", "60s")
    run.wait_visits(2)
    os.kill(run.pids()[role], signal.SIGKILL)
    code, output = run.finish()
    assert code == 1, output
    assert ("the client killed by SIGKILL" if role == "engine" else f"{role} (was killed by SIGKILL) died") in output
    assert len(read_journal(run.journal)[1]) >= 2


def test_a_forward_that_fails_ends_the_run_with_its_reason(start: Callable[..., ProfileRun]) -> None:
    run = start("--budget", "60s", "--fault", "prefill:raise@batch=40")
    code, output = run.finish()
    assert code == 1 and "the prefill worker failed at a forward" in output


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("--budget", "soon"), "'soon' is not a time"),
        (("--out", "profile.txt"), "does not end in .json"),
        (("--out", "/proc/nowhere/x.json"), "cannot be written"),
        (("--plot", "curves.doc"), "is no picture's name"),
        (("--show", "nowhere.json"), "cannot read the device profile"),
        (("--budget", "0.2s"), "larger --budget"),
    ],
)
def test_refusals(start: Callable[..., ProfileRun], arguments: tuple[str, ...], problem: str) -> None:
    code, output = start(*arguments).finish()
    assert code == 2 and problem in output and "Traceback" not in output
