"""A peer: another server of OpenAI's API that the same client drives.

Not being installed is a normal outcome. A peer's processes live in a group of their own and are gone, all of them, when
the block ends.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import BinaryIO, Protocol

STOP_S = 30.0
_TAIL_BYTES = 6000


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerJob:
    """What every system is asked to serve. `chunk_tokens`: of one forward, prompts and decode together."""

    model_dir: Path
    name: str = "bench"
    max_num_seqs: int = 256
    chunk_tokens: int = 8192
    max_model_len: int = 16384
    memory_utilization: float = 0.9
    prefix_caching: bool = False
    eager: bool = False


class PeerSystem(Protocol):
    """Implementations: `vllm.py`, `sglang.py`. Stateless."""

    @property
    def package(self) -> str:
        """What has to be installed."""
        ...

    @property
    def stream_options(self) -> Mapping[str, bool]:
        """Asked for with every streamed request, so that each chunk says how many tokens it carries."""
        ...

    def command(self, job: PeerJob, port: int) -> list[str]: ...

    def environment(self) -> Mapping[str, str]:
        """Added to this process's own."""
        ...


@dataclass(frozen=True, slots=True)
class RunningPeer:
    port: int
    pid: int
    command: list[str]
    version: str
    start_s: float  # from its start until it was ready


def installed_version(system: PeerSystem) -> str | None:
    """None where it is not installed."""
    if importlib.util.find_spec(system.package) is None:
        return None
    try:
        return version(system.package)
    except PackageNotFoundError:
        return "unknown"


@contextlib.contextmanager
def running_peer(system: PeerSystem, job: PeerJob, ready_timeout_s: float = 300.0) -> Iterator[RunningPeer]:
    """Raises RuntimeError with the end of its output where it does not become ready."""
    found = installed_version(system)
    if found is None:
        raise RuntimeError(f"{system.package} is not installed")
    port = _free_port()
    command = system.command(job, port)
    started_s = time.monotonic()
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, **system.environment()},
        )
        try:
            _wait_ready(process, port, started_s + ready_timeout_s, output)
            yield RunningPeer(port, process.pid, command, found, time.monotonic() - started_s)
        finally:
            stop_group(process)


def stop_group(process: subprocess.Popen[bytes], patience_s: float = STOP_S) -> None:
    """SIGTERM to the first process, SIGKILL to whatever of its group is left."""
    if process.poll() is None:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(patience_s)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _wait_ready(process: subprocess.Popen[bytes], port: int, deadline_s: float, output: BinaryIO) -> None:
    while time.monotonic() < deadline_s and process.poll() is None:
        if _is_healthy(port):
            return
        time.sleep(0.2)
    output.seek(0, os.SEEK_END)
    output.seek(max(0, output.tell() - _TAIL_BYTES))
    tail = output.read().decode(errors="replace")
    ended = "did not become ready" if process.poll() is None else f"ended with {process.returncode}"
    raise RuntimeError(f"{' '.join(process.args)} {ended}:\n{tail}")  # type: ignore[arg-type]


def _is_healthy(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2) as reply:
            return bool(reply.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def python() -> str:
    return sys.executable
