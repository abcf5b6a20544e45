"""The doctor's proof on the fake device: real processes and a real (fake) MPS daemon, each promise kept and broken."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import psutil
import pytest

from colocate.device.cuda.proof.check import Check, Status
from colocate.device.cuda.proof.crew import DECODE, PREFILL, Limits
from colocate.device.cuda.proof.run import CATALOGUE, ProofRequest, prove
from tests.limits import LIMIT_S

SABOTEUR = "tests.probe_saboteur"
NO_MPS = {"COLOCATE_FAKE_CUDA_MPS": "0"}
PARTITION_CHECKS = ("graph", "switch", "atoms", "disjoint", "hand_over")


@pytest.fixture(autouse=True)
def fake_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(("CUDA_", "COLOCATE_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("COLOCATE_FAKE_CUDA", "1")


@pytest.fixture(autouse=True)
def nothing_is_left() -> object:
    """No process of the proof, no daemon and no directory of one, whatever the test did."""
    yield
    left = [child.cmdline() for child in psutil.Process().children(recursive=True)]
    assert not [line for line in left if any("colocate" in word or "saboteur" in word for word in line)]


def proven(**request: object) -> dict[str, Check]:
    return {check.name: check for check in prove(ProofRequest(is_fake=True, **request))}  # type: ignore[arg-type]


def broken(*names: str, **variables: str) -> dict[str, Mapping[str, str]]:
    """The same variables for each of these workers."""
    return dict.fromkeys(names, variables)


def failed(checks: Mapping[str, Check]) -> set[str]:
    assert all(check.remedy for check in checks.values() if check.status is Status.FAIL)
    return {name for name, check in checks.items() if check.status is Status.FAIL}


def test_every_promise_is_kept_under_mps() -> None:
    checks = proven()
    assert list(checks) == [spec.name for spec in CATALOGUE]
    assert failed(checks) == set()
    left_out = {name for name, check in checks.items() if check.status is Status.UNTESTABLE}
    assert left_out == {"gpu_mode", "drill_read_only", "drill_fault", "drill_hang"}


def test_the_drill_ends_workers_and_new_ones_run() -> None:
    checks = proven(drill=True, only=("drill_read_only", "drill_fault", "drill_hang"))
    assert {checks[name].status for name in ("drill_read_only", "drill_fault", "drill_hang")} == {Status.PASS}
    assert checks["drill_fault"].data["wrong_words"] == 0


def test_without_mps_two_processes_take_turns_and_one_process_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLOCATE_FAKE_MPS", "refuse")
    checks = proven(only=("mps_clients", "threads_concurrent", "disjoint", "concurrent"))
    assert failed(checks) == {"mps_daemon", "mps_clients", "concurrent"}
    assert checks["threads_concurrent"].status is Status.PASS
    assert checks["disjoint"].status is Status.PASS
    assert "MPS" in checks["concurrent"].remedy


def test_one_worker_that_runs_without_mps_in_silence_is_found_out() -> None:
    assert failed(proven(only=("mps_clients",), extra=broken(DECODE, **NO_MPS))) == {"mps_clients"}


@pytest.mark.parametrize(
    ("promise", "workers", "expected"),
    [
        ("atom-order", (DECODE,), {"atoms", "disjoint"}),
        ("overlap", (DECODE,), {"atoms", "disjoint"}),
        ("lost-sm", (PREFILL, DECODE), {"armed"}),
        ("graph-escapes", (DECODE,), {"graph"}),
        ("private-memory", (PREFILL,), {"worker_killed"}),
        ("no-import", (PREFILL,), {"worker_killed"}),
    ],
)
def test_a_broken_promise_fails_its_check(promise: str, workers: tuple[str, ...], expected: set[str]) -> None:
    extra = broken(*workers, COLOCATE_FAKE_CUDA_BREAK=promise)
    assert failed(proven(only=(*PARTITION_CHECKS, *expected), extra=extra)) == expected


def test_a_gpu_of_one_atom_cannot_be_divided(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLOCATE_FAKE_CUDA_SMS", "12")
    checks = proven(quick=True)
    assert failed(checks) == {"device"}
    assert checks["armed"].status is Status.UNTESTABLE


def test_a_gpu_that_is_not_there_is_named() -> None:
    checks = proven(index=3, quick=True)
    assert failed(checks) == {"device"}
    assert "CUDA_ERROR_INVALID_DEVICE" in checks["device"].detail


def test_a_missing_library_is_named_with_its_remedy(tmp_path: Path) -> None:
    (tmp_path / "cuda").mkdir()
    (tmp_path / "cuda" / "__init__.py").write_text("raise ImportError('no cuda-python here')\n")
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    checks = proven(quick=True, extra=broken(DECODE, PYTHONPATH=path))
    assert failed(checks) == {"device"}
    assert "cuda-python" in checks["device"].detail and "install" in checks["device"].remedy


@pytest.mark.parametrize(
    ("mode", "says"),
    [
        ("hang", "did not answer within"),
        ("die", "exit code 7): last words"),
        ("kill", "SIGKILL"),
        ("junk", "died"),
        ("other", "in place of Opened"),
    ],
)
def test_a_worker_that_misbehaves_is_a_clear_outcome(mode: str, says: str) -> None:
    limits = Limits(open_s=3.0) if mode == "hang" else Limits()
    extra = broken(DECODE, PROBE_SABOTEUR=mode)
    checks = proven(quick=True, module=SABOTEUR, extra=extra, limits=limits)
    assert failed(checks) == {"device"}
    assert says in checks["device"].detail


def _doctor(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "colocate", "doctor", *arguments],
        capture_output=True,
        text=True,
        timeout=100,
        env={**os.environ, "COLUMNS": "120", **environment},
    )


def test_the_command_proves_and_writes_what_scripts_read(tmp_path: Path) -> None:
    done = _doctor("--device", "cuda", "--quick", "--json", "--out", str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    document = json.loads(done.stdout)
    assert json.loads((tmp_path / "doctor.json").read_text()) == document
    assert document["schema"] == 1 and document["colocation"]["one_process"] is True
    assert document["colocation"]["two_processes"] is None, "not proven, which is not refuted"
    assert [check["name"] for check in document["checks"]] == [spec.name for spec in CATALOGUE]
    for check in document["checks"]:
        assert set(check) == {
            "name", "title", "group", "necessary", "status", "detail", "remedy", "data", "seconds"
        }  # fmt: skip


def test_the_command_exits_with_1_and_remedies_where_a_promise_is_broken() -> None:
    done = _doctor("--device", "cuda", "--quick", COLOCATE_FAKE_CUDA_SMS="12")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "FAIL" in done.stdout and "remedy:" in done.stdout and "cannot be co-located" in done.stdout


def test_a_check_that_does_not_exist_is_refused() -> None:
    done = _doctor("--only", "atom")
    assert done.returncode == 2 and "choose among" in done.stderr


def test_auto_lists_the_one_reason_why_nothing_is_testable() -> None:
    plain = _doctor()
    assert plain.returncode == 0, plain.stdout + plain.stderr
    assert f"{len(CATALOGUE)} checks, none testable here: the fake GPU is taken only where it is asked" in plain.stdout


def test_killed_in_the_middle_it_leaves_no_process() -> None:
    doctor = subprocess.Popen(
        [sys.executable, "-m", "colocate", "doctor", "--device", "cuda"], stdout=subprocess.PIPE, text=True
    )
    try:
        assert doctor.stdout is not None
        while "both processes are MPS clients" not in doctor.stdout.readline():
            assert doctor.poll() is None
        family = psutil.Process(doctor.pid).children(recursive=True)
        assert len(family) >= 3, "two workers and the guard of the daemon"
    finally:
        doctor.send_signal(signal.SIGKILL)
        doctor.wait()
    deadline_s = time.monotonic() + LIMIT_S
    while any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in family):
        assert time.monotonic() < deadline_s
        time.sleep(0.02)
