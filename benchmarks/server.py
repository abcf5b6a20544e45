"""Start `colocate serve` as a user would, wait until it is ready, stop it, and read its state."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Server:
    port: int
    pid: int
    command: list[str]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def state(self) -> dict:
        with urllib.request.urlopen(f"{self.url}/state", timeout=10) as reply:
            return json.load(reply)


@contextlib.contextmanager
def running_server(*arguments: str, ready_timeout_s: float = 180.0) -> Iterator[Server]:
    """`colocate serve ARGUMENTS` on a free port; stopped by SIGTERM at the end. Raises RuntimeError with its output
    where it does not become ready."""
    port = _free_port()
    command = [sys.executable, "-m", "colocate", "serve", *arguments, "--port", str(port)]
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        try:
            server = Server(port, process.pid, command)
            _wait_ready(server, process, ready_timeout_s, output)
            yield server
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(40)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_ready(server: Server, process: subprocess.Popen, timeout_s: float, output) -> None:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        try:
            with urllib.request.urlopen(f"{server.url}/ready", timeout=2) as reply:
                if reply.status == 200:
                    return
        except (urllib.error.URLError, OSError):
            pass
        time.sleep(0.1)
    output.seek(0)
    raise RuntimeError(f"{' '.join(server.command)} did not become ready:\n{output.read().decode()[-4000:]}")
