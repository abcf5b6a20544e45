"""`colocate bench` as a process: what is kept when it is cut, and its exit codes."""

from __future__ import annotations

import contextlib
import json
import os
import re
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.bench_runs import NEVER_LATE_S, manifest_in, rows_in
from tests.daemon import eventually
from tests.golden_server import (
    GoldenProcess,
    Script,
    golden_process,
)

HERE = Path(__file__).parents[2]


def _command(golden: GoldenProcess, out: Path, *more: str) -> list[str]:
    load = ["--lengths", "5/40", "--arrivals", "constant", "--warmup", "0", "--lateness-bound", str(NEVER_LATE_S)]
    return [sys.executable, "-m", "colocate", "bench", golden.url, "--out", str(out), *load, *more]


def test_a_disk_that_fills_up_keeps_whole_rows_and_says_so(tmp_path: Path) -> None:
    out, limit = tmp_path / "run", 20_000
    with golden_process() as golden:
        done = subprocess.run(
            _command(golden, out, "--rate", "100", "--duration", "2"),
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
            capture_output=True,
            text=True,
            cwd=HERE,
        )
    assert done.returncode == 2
    assert "disk is full" in done.stderr
    rows = rows_in(out)
    assert 0 < len(rows) < 200
    assert (out / "requests.jsonl").stat().st_size <= limit
    assert manifest_in(out).status == "partial"
    assert "disk is full" in manifest_in(out).reasons[0]


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_a_run_that_is_ended_keeps_what_was_measured(tmp_path: Path, how: signal.Signals) -> None:
    out = tmp_path / "run"
    # What a shell puts in the background ignores SIGINT, and is ended by SIGTERM.
    ignored = signal.SIG_IGN if how == signal.SIGTERM else signal.default_int_handler
    with golden_process(Script(delays_s=(0.01,))) as golden:
        command = _command(golden, out, "--rate", "50", "--duration", "600")
        with subprocess.Popen(
            command,
            stderr=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=HERE,
            preexec_fn=lambda: signal.signal(signal.SIGINT, ignored),
        ) as process:
            eventually(lambda: out.exists() and len(rows_in(out)) >= 5)
            os.kill(process.pid, how)
            printed, complained = process.communicate()
    assert process.returncode == 130, complained
    manifest, rows = manifest_in(out), rows_in(out)
    assert (manifest.status, manifest.reasons) == ("partial", ("interrupted",))
    assert [row.index for row in rows] == list(range(30_000))
    outcomes = {row.outcome for row in rows}
    assert {"finished", "not_sent"} <= outcomes <= {"finished", "cut_off", "not_sent"}
    assert str(out) in printed


def test_a_killed_client_leaves_a_folder_that_says_partial(tmp_path: Path) -> None:
    out = tmp_path / "run"
    with golden_process() as golden:
        command = _command(golden, out, "--rate", "50", "--duration", "600", "--quiet")
        with subprocess.Popen(command, stderr=subprocess.DEVNULL, cwd=HERE) as process:
            eventually(lambda: out.exists() and len(rows_in(out)) >= 5)
            process.kill()
    assert manifest_in(out).status == "partial"
    assert len(rows_in(out)) >= 5


def test_a_terminal_shows_the_load_while_it_goes(tmp_path: Path) -> None:
    leader, follower = os.openpty()
    with golden_process(Script(delays_s=(0.01,), faults={"0": "500", "1": "429"})) as golden:
        command = _command(golden, tmp_path / "run", "--rate", "20", "--duration", "2")
        environment = {**os.environ, "TERM": "xterm", "COLUMNS": "120"}
        with subprocess.Popen(
            command, stderr=follower, stdout=subprocess.DEVNULL, cwd=HERE, env=environment
        ) as process:
            os.close(follower)
            seen = b""
            with contextlib.suppress(OSError):  # a terminal that everybody has left
                while part := os.read(leader, 1 << 16):
                    seen += part
    os.close(leader)
    assert process.returncode == 0
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", seen.decode())
    for heading in ("sent", "per s", "in flight", "TTFT p50", "ITL p50", "rejected", "failed"):
        assert heading in shown, heading
    # the last line drawn: time, sent, rate, in flight, two latencies, one rejected, one failed
    last = re.findall(r"(\d+)/2 s +(\d+)/40 +(\S+) +(\d+) +(\S+) ms +(\S+) ms +(\d+) +(\d+)", shown)[-1]
    assert last[-2:] == ("1", "1")
    assert float(last[2]) > 0 and float(last[4]) >= 10 and float(last[5]) > 0


def test_exit_codes(tmp_path: Path) -> None:
    def run(golden: GoldenProcess, name: str, *more: str) -> subprocess.CompletedProcess[str]:
        command = _command(golden, tmp_path / name, "--num-prompts", "5", "--rate", "100", *more)
        return subprocess.run(command, capture_output=True, text=True, cwd=HERE)

    with golden_process() as golden:
        good = run(golden, "a", "--json", "--slo", "ttft 60 s, tpot 60 s", "--header", "x-a=b", "--extra-body", "{}")
        late = run(golden, "b", "--lateness-bound", "1e-9")
        wrong = run(golden, "c", "--model", "nobody")
        headers = golden.runs()[0].headers
    assert (good.returncode, late.returncode, wrong.returncode) == (0, 1, 2)
    figures = json.loads(good.stdout)
    assert (figures["num_offered"], figures["attainment"]["good"]) == (5, 5)
    assert headers["x-a"] == "b"
    assert headers["x-colocate-stages"] == "1"
    assert "b" not in manifest_in(tmp_path / "a").command
    assert "nobody" in wrong.stderr
    assert "to mend it" in wrong.stderr
