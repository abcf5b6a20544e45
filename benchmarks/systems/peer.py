"""A peer: another server of OpenAI's API that the same client drives.

Not being installed is a normal outcome. A peer's processes live in a group of their own and are gone, all of them, when
the block ends.

Two ways to run one: `running_peer`, and `PeerServer`, with which `colocate.bench.systems.server.running` starts it (and
tells its memory), as it does for `colocate sweep`.
"""

from __future__ import annotations

import contextlib
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
from pathlib import Path
from typing import BinaryIO, Protocol

from colocate.bench.systems.system import Launch

STOP_S = 30.0
_TAIL_BYTES = 6000
_VERSION_S = 60.0
_ASK_VERSION = """
import importlib.metadata, importlib.util, sys
package, *distributions = sys.argv[1:]
if importlib.util.find_spec(package) is not None:
    for name in distributions:
        try:
            print(importlib.metadata.version(name))
            break
        except importlib.metadata.PackageNotFoundError:
            pass
    else:
        print("unknown")
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerJob:
    """What every system is asked to serve. `chunk_tokens`: of one forward, prompts and decode together; None: what the
    system does by itself. `kv_tokens`: room in its KV cache, where it is told in tokens; `kv_gib`, where in bytes."""

    model_dir: Path
    name: str = "bench"
    max_num_seqs: int = 256
    chunk_tokens: int | None = 8192
    max_model_len: int = 16384
    memory_utilization: float = 0.9
    prefix_caching: bool = False
    eager: bool = False
    dtype: str = "bfloat16"
    dummy_weights: bool = True
    kv_tokens: int = 32768
    kv_gib: int = 1
    threads: int = 2  # of a CPU, where the system asks for a number


class PeerSystem(Protocol):
    """Implementations: `vllm.py`, `sglang.py`, `llama_cpp.py`, `transformers_serve.py`. Stateless."""

    @property
    def package(self) -> str:
        """What has to be installed."""
        ...

    @property
    def stream_options(self) -> Mapping[str, bool]:
        """Asked for with every streamed request, so that each chunk says how many tokens it carries."""
        ...

    def version(self) -> str | None:
        """None where it is not installed. May start an interpreter."""
        ...

    def command(self, job: PeerJob, port: int | str) -> list[str]:
        """A path in `job` and `port` may be holes, `{model}` and `{port}`: then the command is an entry of `peers`."""
        ...

    def chunk_flags(self, tokens: int) -> list[str]:
        """Of `chunk_tokens`; at the end of a command they win over what stands before."""
        ...

    def served_name(self, job: PeerJob) -> str:
        """What requests call the model."""
        ...

    def environment(self, job: PeerJob) -> Mapping[str, str]:
        """Added to this process's own."""
        ...


@dataclass(frozen=True, slots=True)
class PeerServer:
    """Implements `colocate.bench.systems.System`. An arm's flags come after the system's own."""

    system: PeerSystem
    job: PeerJob
    ready_timeout_s: float = 600.0

    @property
    def name(self) -> str:
        return self.system.package

    def launch(self, flags: tuple[str, ...], port: int) -> Launch:
        return Launch(
            command=(*self.system.command(self.job, port), *flags),
            url=f"http://127.0.0.1:{port}",
            ready_path="/health",
            environ=self.system.environment(self.job),
            model=self.system.served_name(self.job),
            ready_timeout_s=self.ready_timeout_s,
            stop_s=STOP_S,
        )

    def version(self) -> str:
        return self.system.version() or ""


@dataclass(frozen=True, slots=True)
class RunningPeer:
    port: int
    pid: int
    command: list[str]
    version: str
    start_s: float  # from its start until it was ready


def installed_version(system: PeerSystem) -> str | None:
    """None where it is not installed."""
    return system.version()


def package_version(interpreter: Path, package: str, *distributions: str) -> str | None:
    """Of a package that this interpreter can import, by the first of its distributions that is there (default: the
    package's own name). None where it cannot, or where there is no such interpreter."""
    command = [str(interpreter), "-c", _ASK_VERSION, package, *(distributions or (package,))]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_VERSION_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None


def interpreter(variable: str) -> Path:
    """The Python that an environment variable names; without it, the one that runs this."""
    return Path(os.environ.get(variable) or sys.executable)


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
            env={**os.environ, **system.environment(job)},
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
