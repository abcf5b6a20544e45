"""A real daemon for tests: its own process tree on a free port, and a check that nothing of it is left.

    with start_daemon("--max-num-seqs", "8") as daemon:
        httpx.get(f"{daemon.base_url}/ready")
        os.kill(daemon.pid_of("decode"), signal.SIGKILL)

The device is the emulated one unless arguments say otherwise. Leaving the block stops the daemon with SIGTERM (unless
it has ended already) and asserts that every KV block is free again and that no process, socket, shared memory or
temporary file stays behind.
"""

from __future__ import annotations

import ctypes
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import httpx

from colocate.frontend.app import STATE_TIMEOUT_S
from tests.limits import LIMIT_S, START_LIMIT_S

T = TypeVar("T")

_MARK = "TEST_DAEMON_MARK"  # inherited by every process of one daemon
_KEEP_ENVIRON = {"SPT_NOENV": "1"}  # setproctitle would overwrite what we find the processes by
ROLES = ("frontend", "keeper", "engine", "prefill", "decode")
# Processes of a run on a GPU that the supervisor does not count among its children.
_HELPERS = {"colocate.device.cuda.mps_guard": "mps-guard", "colocate.device.cuda.fake_mps": "mps"}


def eventually(probe: Callable[[], T | None], timeout_s: float = LIMIT_S, what: str = "") -> T:
    """The first true answer of `probe`, asked every 20 ms. Fails after the time-out."""
    deadline_s = time.monotonic() + timeout_s
    while True:
        answer = probe()
        if answer:
            return answer
        if time.monotonic() > deadline_s:
            raise AssertionError(f"not within {timeout_s} s: {what or probe}")
        time.sleep(0.02)


def _die_with_parent() -> None:
    """In the child: a test run that is killed takes its daemons with it."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG


class Daemon:
    """One `colocate serve`. `output` is everything it has printed so far."""

    def __init__(self, arguments: tuple[str, ...], environment: dict[str, str], module: str = "colocate") -> None:
        self._mark = uuid.uuid4().hex
        self._temporary = tempfile.TemporaryDirectory(prefix="colocate-test-")
        self._lines: list[str] = []
        keys = [key for flag, key in pairwise(arguments) if flag == "--api-key"]
        self._headers = {"authorization": f"Bearer {keys[0]}"} if keys else {}
        self.process = subprocess.Popen(
            [sys.executable, "-m", module, "serve", "--port", "0", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, **environment, _MARK: self._mark, **_KEEP_ENVIRON, "TMPDIR": self._temporary.name},
            preexec_fn=_die_with_parent,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.base_url = ""
        self._is_clean = False  # nothing of it is left, asserted

    def __enter__(self) -> Daemon:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            print(self.output)  # pytest shows it beside the failure
            self._kill_all()
            self._temporary.cleanup()
            return
        if not self._is_clean:
            self.stop()

    @property
    def output(self) -> str:
        return "".join(self._lines)

    def wait_ready(self, timeout_s: float = START_LIMIT_S) -> Daemon:
        """Until it says where it listens and /ready answers 200."""
        match = eventually(lambda: re.search(r"open (http://\S+)", self.output) or self._died(), timeout_s, "the URL")
        self.base_url = match.group(1)
        eventually(self.is_ready, timeout_s, "/ready")
        return self

    def is_ready(self) -> bool:
        try:
            return httpx.get(f"{self.base_url}/ready", timeout=LIMIT_S).status_code == 200
        except httpx.HTTPError:
            return False

    def state(self) -> dict[str, Any]:
        """What the engine says now: not the last word of one that was too busy to answer the frontend in time."""

        def fresh() -> dict[str, Any] | None:
            reply = httpx.get(f"{self.base_url}/state", headers=self._headers, timeout=LIMIT_S)
            answer: dict[str, Any] = reply.json()
            return answer if reply.status_code == 200 and answer["age_s"] < STATE_TIMEOUT_S else None

        return eventually(fresh, what="a fresh /state")

    def complete(self, prompt: str | list[int] = "hello", **fields: Any) -> httpx.Response:
        body = {"model": self.model, "prompt": prompt, "max_tokens": 8, **fields}
        return httpx.post(f"{self.base_url}/v1/completions", json=body, headers=self._headers, timeout=LIMIT_S)

    @property
    def model(self) -> str:
        return str(
            httpx.get(f"{self.base_url}/v1/models", headers=self._headers, timeout=LIMIT_S).json()["data"][0]["id"]
        )

    def pids(self) -> dict[int, str]:
        """Every live process of this daemon and the role (or `supervisor`) it plays."""
        found: dict[int, str] = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and (role := self._role_of(entry)) is not None:
                found[int(entry.name)] = role
        return found

    def pid_of(self, role: str) -> int:
        """The process playing a role now. Fails if there is none."""
        (pid,) = [pid for pid, name in self.pids().items() if name == role] or [0]
        assert pid, f"no {role} is running"
        return pid

    def kill(self, role: str, number: int = signal.SIGKILL) -> int:
        """Send a signal to a role; its pid."""
        pid = self.pid_of(role)
        os.kill(pid, number)
        return pid

    def wait_replaced(self, role: str, old_pid: int, timeout_s: float = LIMIT_S) -> int:
        """Until another process plays the role and the daemon is ready again; the new pid."""

        def replaced() -> int | None:
            pids = [pid for pid, name in self.pids().items() if name == role and pid != old_pid]
            return pids[0] if pids and old_pid not in self.pids() and self.is_ready() else None

        return eventually(replaced, timeout_s, f"a new {role}")

    def wait_pool_whole(self, timeout_s: float = LIMIT_S) -> None:
        """Until every KV block is free, or kept for reuse and held by no request: what ended, was cut or was aborted
        holds none."""
        deadline_s = time.monotonic() + timeout_s
        while (kv := self.state()["kv"])["blocks_free"] + kv["blocks_cached"] != kv["blocks_total"]:
            assert time.monotonic() < deadline_s, f"KV blocks are still held: {self.state()}"
            time.sleep(0.02)

    def stop(self, timeout_s: float = LIMIT_S, *, is_idle: bool = True) -> int:
        """SIGTERM, wait, check that nothing is left. The exit code. A daemon that is ready must have its whole KV pool
        back by then, unless the test stops it at work (`is_idle` false)."""
        if is_idle and self.base_url and self.is_ready():
            self.wait_pool_whole()
        sockets = self._sockets()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        code = self.wait_exit(timeout_s)
        self.assert_nothing_left(sockets)
        return code

    def wait_exit(self, timeout_s: float = LIMIT_S) -> int:
        try:
            code = self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self._kill_all()
            raise AssertionError(f"still running after {timeout_s} s:\n{self.output}") from None
        self._reader.join(LIMIT_S)
        return code

    def assert_nothing_left(self, sockets: set[str] | None = None, timeout_s: float = LIMIT_S) -> None:
        """No process, abstract socket, shared memory or temporary file of this daemon."""
        try:
            eventually(lambda: not self.pids(), timeout_s, f"all processes gone, still there: {self.pids()}")
        finally:
            self._kill_all()
        # the kernel closes the files of a process after it has left the list of processes
        eventually(lambda: not (sockets or set()) & _abstract_names(), timeout_s, "all sockets closed")
        assert not [path for path in Path("/dev/shm").iterdir() if "colocate" in path.name]
        assert not list(Path(self._temporary.name).iterdir())
        self._temporary.cleanup()
        self._is_clean = True

    def _died(self) -> None:
        if self.process.poll() is not None:
            self._reader.join(LIMIT_S)
            raise AssertionError(f"ended with code {self.process.returncode} before it was ready:\n{self.output}")

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.append(line)

    def _role_of(self, entry: Path) -> str | None:
        try:
            if f"{_MARK}={self._mark}".encode() not in (entry / "environ").read_bytes():
                return None
            words = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode().split()
        except OSError:  # gone, or a zombie
            return None
        if not words:
            return None
        for module, role in _HELPERS.items():
            if module in words:
                return role
        if "colocate.launch" in words:
            return words[words.index("colocate.launch") + 1]
        return words[0].removeprefix("colocate:") if words[0].startswith("colocate:") else "supervisor"

    def _sockets(self) -> set[str]:
        """Names of the abstract sockets that processes of this daemon listen on."""
        inodes: set[str] = set()
        for pid in self.pids():
            for fd in Path(f"/proc/{pid}/fd").glob("*"):
                try:
                    target = str(fd.readlink())
                except OSError:
                    continue
                if target.startswith("socket:["):
                    inodes.add(target[8:-1])
        return {name for name, inode in _unix_sockets() if inode in inodes}

    def _kill_all(self) -> None:
        for pid in self.pids():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self.process.wait()


def start_daemon(
    *arguments: str, environment: dict[str, str] | None = None, wait: bool = True, module: str = "colocate"
) -> Daemon:
    """A running daemon, ready unless `wait` is false. Use it as a context manager. `module` has the command line."""
    given = arguments if "--device" in arguments else ("--device", "emulated", *arguments)
    daemon = Daemon(given, environment or {}, module)
    if not wait:
        return daemon
    try:
        return daemon.wait_ready()
    except BaseException:
        daemon.__exit__(RuntimeError, RuntimeError("not ready"), None)
        raise


def _unix_sockets() -> list[tuple[str, str]]:
    rows = [line.split() for line in Path("/proc/net/unix").read_text().splitlines()[1:]]
    return [(row[7], row[6]) for row in rows if len(row) == 8 and row[7].startswith("@")]


def _abstract_names() -> set[str]:
    return {name for name, _ in _unix_sockets()}
