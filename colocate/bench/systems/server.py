"""A running server of any system: started, waited for, measured, and gone when the block ends."""

from __future__ import annotations

import contextlib
import http.client
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import psutil

from colocate.bench.systems.system import Launch, System
from colocate.errors import ColocateError
from colocate.family import descendants

_TAIL_BYTES = 4000
_POLL_S = 0.1
_ANSWER_S = 5.0
_GRACE_S = 15.0  # of the guard, beyond what it waits itself


class ServerFailed(ColocateError):
    """A server that did not become ready: its point failed, the sweep goes on. The text ends with its last output."""


@dataclass(frozen=True, slots=True)
class Server:
    """A server that is ready. Valid inside the block of `running`."""

    launch: Launch
    pid: int
    start_s: float  # from its start until it was ready
    _guard: subprocess.Popen[str]

    @property
    def url(self) -> str:
        return self.launch.url

    @property
    def exit_code(self) -> int | None:
        """None while it runs. 128 + N where signal N ended it."""
        return self._guard.poll()

    def resident_bytes(self) -> int:
        """Memory of the server and everything it has started. Pages that several of its processes map count once, where
        the kernel tells (proportional set size)."""
        return sum(_memory_of(pid) for pid in descendants(self._guard.pid))


@contextlib.contextmanager
def running(system: System, flags: tuple[str, ...], log: Path) -> Iterator[Server]:
    """Start it on a free port and wait until it is ready; stopped when the block ends. `log` gets its output. Raises
    ServerFailed."""
    launch = system.launch(flags, free_port())
    started_s = time.monotonic()
    guard = subprocess.Popen(
        [sys.executable, "-m", "colocate.bench.systems.guard", str(log), str(launch.stop_s), *launch.command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, **launch.environ},
    )
    try:
        pid = _pid_from(guard)
        _wait_ready(launch, guard, started_s + launch.ready_timeout_s, log)
        yield Server(launch, pid, time.monotonic() - started_s, guard)
    finally:
        _end(guard, launch.stop_s)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _pid_from(guard: subprocess.Popen[str]) -> int:
    assert guard.stdout is not None
    said = guard.stdout.readline().strip()
    if not said.isdigit():
        raise ServerFailed(f"cannot be started: {said or 'its guard ended'}")
    return int(said)


def _wait_ready(launch: Launch, guard: subprocess.Popen[str], deadline_s: float, log: Path) -> None:
    while guard.poll() is None:
        if is_ready(launch):
            return
        if time.monotonic() > deadline_s:
            raise ServerFailed(f"not ready after {launch.ready_timeout_s:g} s{_tail(log)}")
        time.sleep(_POLL_S)
    raise ServerFailed(f"ended with code {guard.returncode} before it was ready{_tail(log)}")


def is_ready(launch: Launch) -> bool:
    """Whether its ready path answers 200 now."""
    place = urlsplit(launch.url)
    connection = http.client.HTTPConnection(place.hostname or "127.0.0.1", place.port, timeout=_ANSWER_S)
    try:
        connection.request("GET", launch.ready_path or "/v1/models")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _end(guard: subprocess.Popen[str], stop_s: float) -> None:
    """The guard does the work. One that hangs is killed, and its server with it."""
    assert guard.stdin is not None and guard.stdout is not None
    guard.stdin.close()
    try:
        guard.wait(stop_s + _GRACE_S)
    except subprocess.TimeoutExpired:
        guard.kill()
        guard.wait()
    guard.stdout.close()


def _tail(log: Path) -> str:
    try:
        with log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
            text = file.read().decode(errors="replace").strip()
    except OSError:
        return ""
    return f":\n{text}" if text else ""


def _memory_of(pid: int) -> int:
    try:
        process = psutil.Process(pid)
        try:
            return int(process.memory_full_info().pss)
        except (psutil.AccessDenied, AttributeError):
            return int(process.memory_info().rss)
    except psutil.Error:
        return 0  # it has just ended
