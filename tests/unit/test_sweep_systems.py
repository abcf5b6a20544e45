"""Servers under their guard: started, waited for, measured, and gone in every way a sweep can end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from colocate.bench.systems.command import CommandSystem, PeerEntry
from colocate.bench.systems.guard import NOT_STARTED
from colocate.bench.systems.server import ServerFailed, is_ready, running
from colocate.family import descendants
from tests.daemon import eventually

# A server that has a child of its own in another session, as those have that fork workers. It says both pids.
SERVER = """
import http.server, signal, subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
print("child", child.pid, flush=True)
if "stubborn" in sys.argv:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
if "broken" in sys.argv:
    sys.exit("no such model")
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(503 if "unready" in sys.argv else 200)
        self.end_headers()
    def log_message(self, *_):
        pass
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


def _system(*words: str, stop_s: float = 30.0, ready_timeout_s: float = 60.0) -> CommandSystem:
    command = (sys.executable, "-c", SERVER, "{port}", *words)
    # Braces of the program itself: there are none.
    return CommandSystem("it", PeerEntry(command, ready="/health", stop_s=stop_s, ready_timeout_s=ready_timeout_s), "m")


def _child(log: Path) -> int:
    return eventually(lambda: int(log.read_text().split()[1]) if "child" in log.read_text() else 0)


def _is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize("words", [(), ("stubborn",)])
def test_a_server_is_ready_inside_the_block_and_gone_after_it(tmp_path: Path, words: tuple[str, ...]) -> None:
    log = tmp_path / "log"
    with running(_system(*words, stop_s=0.2 if words else 30.0), (), log) as server:
        assert is_ready(server.launch) and server.exit_code is None
        child = _child(log)
        assert _is_alive(server.pid) and _is_alive(child)
        assert server.resident_bytes() > 4 << 20  # two interpreters
    assert not _is_alive(server.pid) and not _is_alive(child)
    assert not is_ready(server.launch)


def test_a_server_that_ends_early_fails_with_its_last_words_and_takes_its_child_along(tmp_path: Path) -> None:
    log = tmp_path / "log"
    said = r"(?s)ended with code 1 before it was ready.*no such model"
    with pytest.raises(ServerFailed, match=said), running(_system("broken"), (), log):
        raise AssertionError("it is not ready")
    assert not _is_alive(_child(log))


def test_a_server_that_is_never_ready_fails_after_its_time(tmp_path: Path) -> None:
    log = tmp_path / "log"
    system = _system("unready", ready_timeout_s=1.0)
    with pytest.raises(ServerFailed, match="not ready after 1 s"), running(system, (), log):
        raise AssertionError("it is not ready")
    assert not _is_alive(_child(log))


def test_a_command_that_does_not_exist_fails(tmp_path: Path) -> None:
    system = CommandSystem("it", PeerEntry(("/no/such/program", "{port}")), "m")
    with pytest.raises(ServerFailed, match="/no/such/program: No such file"), running(system, (), tmp_path / "log"):
        raise AssertionError("it is not ready")
    assert system.version() == ""


def test_a_server_that_dies_in_the_block_says_how(tmp_path: Path) -> None:
    with running(_system(), (), tmp_path / "log") as server:
        os.kill(server.pid, signal.SIGKILL)
        assert eventually(lambda: server.exit_code) == 128 + signal.SIGKILL


def test_the_version_is_what_its_command_prints_last() -> None:
    entry = PeerEntry(("x", "{port}"), version=(sys.executable, "-c", "print('noise'); print('it 1.2.3')"))
    assert CommandSystem("it", entry, "m").version() == "it 1.2.3"


@pytest.mark.parametrize("victim", ["whoever started it", "the guard", "the guard, politely"])
def test_nothing_is_left_whoever_is_killed(tmp_path: Path, victim: str) -> None:
    """Of a guard that is killed only the server itself: its child is a stranger then."""
    log = tmp_path / "log"
    guard = [sys.executable, "-m", "colocate.bench.systems.guard", str(log), "30", sys.executable, "-c", SERVER, "0"]
    starter = f"import subprocess, time; subprocess.Popen({guard!r}, stdin=subprocess.PIPE); time.sleep(600)"
    parent = subprocess.Popen([sys.executable, "-c", starter], stdout=subprocess.PIPE, text=True)
    child = 0
    try:
        assert parent.stdout is not None
        server = int(parent.stdout.readline())
        child = _child(log)
        guard_pid = descendants(parent.pid)[0]
        if victim == "whoever started it":
            parent.kill()
        else:
            os.kill(guard_pid, signal.SIGTERM if "politely" in victim else signal.SIGKILL)
        eventually(lambda: not _is_alive(server), what="the server is gone")
        if victim != "the guard":
            eventually(
                lambda: not _is_alive(child) and not _is_alive(guard_pid), what="its child is gone, and the guard"
            )
    finally:
        parent.kill()
        parent.wait()
        if child and _is_alive(child):
            os.kill(child, signal.SIGKILL)


def test_the_guard_ends_as_its_server_does(tmp_path: Path) -> None:
    def code(*command: str) -> int:
        words = [sys.executable, "-m", "colocate.bench.systems.guard", str(tmp_path / "log"), "1", *command]
        with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as guard:
            eventually(lambda: guard.poll() is not None)
            return int(guard.returncode)

    assert code(sys.executable, "-c", "raise SystemExit(7)") == 7
    assert code(sys.executable, "-c", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)") == 137
    assert code("/no/such/program") == NOT_STARTED
