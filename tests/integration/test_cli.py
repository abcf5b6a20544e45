"""The `colocate` command beside `serve`: generate, doctor, replay, version, and how mistakes are answered."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from importlib.resources import files
from pathlib import Path

import pytest

import colocate
from colocate.frontend.tokenizer import load_tokenizer
from colocate.model.config import load_model_config
from tests.daemon import start_daemon
from tests.limits import LIMIT_S, START_LIMIT_S

DEMO = Path(str(files("colocate.model") / "demo"))


def _colocate(*arguments: str, stdin: str | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "colocate", *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=100,
        env={**os.environ, "COLUMNS": "120", **environment},
    )


def test_version() -> None:
    assert _colocate("version").stdout.strip() == colocate.__version__


def test_help_names_every_topic_and_needs_no_torch() -> None:
    done = _colocate("serve", "--help")
    assert done.returncode == 0
    for word in (
        "--kv-memory",
        "Device and partition",
        "Memory and scheduling",
        "HTTP",
        "(default 8000)",
        "COLOCATE_NATIVE=0",
    ):
        assert word in done.stdout
    assert "[MODEL]" in done.stdout and "[[MODEL]]" not in done.stdout
    probe = "import sys, colocate.cli, colocate.runtime.daemon; print('torch' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", probe], text=True).strip() == "False"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("serve", "--prot", "1"), "--port"),
        (("serve", "--port", "x"), "--port: 'x' is not a whole number"),
        (("serve", "--config", "nowhere.yaml"), "nowhere.yaml: cannot be read"),
        (("replay", "nowhere.log"), "nowhere.log"),
        (("generate", "--device", "emulated", ""), "prompt: is empty"),
        (("generate", "--device", "emulated", "--raw", "word " * 9000), "max_model_len is"),
    ],
)
def test_a_mistake_is_answered_with_code_2_and_no_traceback(arguments: tuple[str, ...], says: str) -> None:
    done = _colocate(*arguments)
    assert done.returncode == 2, done.stderr
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def test_generate_prints_the_text_alone_and_the_same_each_time() -> None:
    arguments = ("generate", "--device", "emulated", "--max-tokens", "12", "--temperature", "1", "--sampling-seed", "7")
    first, second = (_colocate(*arguments, "hello") for _ in range(2))
    assert first.returncode == 0 and first.stderr == ""
    assert first.stdout.strip() and first.stdout == second.stdout
    assert _colocate(*arguments, "-", stdin="hello").stdout == first.stdout


def test_variables_that_are_no_settings_are_left_alone(tmp_path: Path) -> None:
    environment = {"COLOCATE_NATIVE": "0", "COLOCATE_CACHE_DIR": str(tmp_path)}
    done = _colocate("generate", "--device", "emulated", "--max-tokens", "2", "hello", **environment)
    assert done.returncode == 0, done.stderr
    mistaken = _colocate("generate", "--device", "emulated", "hello", COLOCATE_NATIV="0")
    assert mistaken.returncode == 2
    assert "did you mean 'COLOCATE_NATIVE'?" in mistaken.stderr


def test_generate_says_why_a_request_failed_on_the_way() -> None:
    """Each prefill of the prompt raises, so the engine gives the request up after it was accepted."""
    tokenizer, _ = load_tokenizer(DEMO, load_model_config(DEMO).vocab_size)
    (token_id, *_) = tokenizer.encode(["hello"], add_special_tokens=False)[0]
    fault = ("--fault", f"prefill:raise@token={token_id}")
    done = _colocate("generate", "--device", "emulated", *fault, "--raw", "hello")
    assert done.returncode == 1, done.stderr
    assert done.stderr.splitlines()[-1].startswith("colocate: InjectedFault: injected by a fault"), done.stderr


def test_generate_says_why_the_engine_did_not_take_the_prompt() -> None:
    done = _colocate("generate", "--device", "emulated", "hello", COLOCATE_MAX_QUEUE="0")
    assert done.returncode == 1, done.stderr
    assert done.stderr == "colocate: the queue is full (0 requests wait)\n"


def test_generate_runs_the_real_model() -> None:
    done = _colocate("generate", "--kv-memory", "16MiB", "--max-tokens", "40", "What is a partition plan?")
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.split()) >= 5


def test_doctor_measures_and_explains() -> None:
    done = _colocate("doctor", "--device", "cpu", "--json")
    document = json.loads(done.stdout)
    assert done.returncode == document["exit_code"] == (1 if document["problems"] else 0)
    facts = document["facts"]
    assert facts["cores"]["usable"] and facts["memory"]["available_bytes"] > 0
    assert facts["torch"]["gflops"]["float32"] > 0 and facts["torch"]["gflops"]["bfloat16"] > 0
    assert bool(facts["gpu"]["usable"]) != bool(facts["gpu"]["why_not"]), "a GPU, or the reason why not"
    assert "shared" in facts["plans"]["names"]


def test_an_event_log_of_a_live_run_replays_equal(tmp_path: Path) -> None:
    with start_daemon("--event-log", str(tmp_path / "log")) as daemon:
        for _ in range(3):
            assert daemon.complete().status_code == 200
        daemon.wait_replaced("decode", daemon.kill("decode"))
        assert daemon.complete().status_code == 200
    done = _colocate("replay", str(tmp_path / "log"))
    assert done.returncode == 0, done.stdout
    assert re.search(r": equal \(\d\d+ events", done.stdout)


def test_the_printed_curl_line_works_when_pasted() -> None:
    with start_daemon("--api-key", "secret") as daemon:
        (line,) = [line.strip() for line in daemon.output.splitlines() if line.strip().startswith("curl ")]
        assert "secret" not in daemon.output, "a key does not belong into a log"
        assert "export KEY=<your key> first" in daemon.output
        done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, env={**os.environ, "KEY": "secret"})
        assert json.loads(done.stdout)["choices"][0]["message"]["role"] == "assistant"


def test_ctrl_c_in_a_terminal_stops_cleanly() -> None:
    """Through a pseudo-terminal, where Ctrl-C is a byte and the terminal signals the foreground group."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.execv(sys.executable, [sys.executable, "-m", "colocate", "serve", "--device", "emulated", "--port", "0"])
    try:
        _read_until(terminal, b"curl ")
        os.write(terminal, b"\x03")
        output = _read_until(terminal, b"draining")
        assert b"Traceback" not in output
        assert os.waitstatus_to_exitcode(_wait(pid)) == 0
    finally:
        os.close(terminal)


def _read_until(terminal: int, word: bytes) -> bytes:
    seen, deadline_s = b"", time.monotonic() + START_LIMIT_S
    while word not in seen:
        assert time.monotonic() < deadline_s, seen
        seen += os.read(terminal, 4096)
    return seen


def _wait(pid: int) -> int:
    deadline_s = time.monotonic() + LIMIT_S
    while time.monotonic() < deadline_s:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return status
        time.sleep(0.02)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    raise AssertionError("still running after Ctrl-C")
