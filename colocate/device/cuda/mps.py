"""NVIDIA's Multi-Process Service for one run: two worker processes that run kernels at the same time.

A run uses a daemon of its own and nobody else's: a foreign one may cap the SMs of its clients, may end at any moment,
and shares its clients' faults with ours. The daemon lives under a guard process (`mps_guard.py`), so that it is gone
with the run however the run ends. The compute mode of the GPU is never touched.

Who is a client: prefill and decode, each with every SM (no active thread percentage): green contexts divide them. The
keeper is none where it has no context (transport vmm): a client shares the faults of the others, and its memory must
outlive them. With the ipc transport it has a context, and handles cross only between clients, so there it is one. The
loader is started by the keeper and is what the keeper is; without MPS it is time-sliced with workers that only warm
up then. Everybody who is not a client gets a pipe directory that cannot exist, because without one the driver would
try the default one, where somebody else's daemon may listen.

Unproven without a GPU: that NVIDIA's daemon stays in the foreground with nothing on its standard input, the words of
its states, and how long a server takes to start.
"""

from __future__ import annotations

import os
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from colocate.device.cuda import fake_mps
from colocate.device.cuda.driver import GpuFacts
from colocate.device.cuda.mps_control import MpsControl
from colocate.device.cuda.mps_guard import LOG, MAX_PIPE_PATH, PIPE
from colocate.errors import ConfigError

CONTROL, SERVER = "nvidia-cuda-mps-control", "nvidia-cuda-mps-server"
# Where drivers and container runtimes put them, beside PATH.
_DRIVER_FOLDERS = ("/usr/bin", "/usr/local/nvidia/bin", "/usr/local/bin", "/run/nvidia/driver/usr/bin")
NO_MPS_DIRECTORY = "/dev/null/no-mps"  # below a file: nothing can ever be there
_SINGLE_PROCESS = "or run both phases in one process, which needs no MPS: --single-process"
# Of MPS itself: percentages, limits of memory, priorities, and since CUDA 13.1 a protocol version that replaces the
# shell's commands. A run sets its own.
_SETTINGS = "CUDA_MPS_"

# Hardware queues per process. An MPS client has two unless told otherwise; a worker has a stream per armed share and
# one for copies, and streams that share a queue wait for each other.
_MAX_CONNECTIONS = "8"

_START_S = 20.0
_SERVER_S = 5.0
_QUIT_S = 15.0  # more than all that the guard waits for


@dataclass(frozen=True, slots=True)
class MpsTools:
    """How the daemon's shell is started. `folder` holds the binaries; empty: they are on PATH, or fake."""

    command: tuple[str, ...]
    folder: str = ""


def find_tools(environ: Mapping[str, str]) -> MpsTools:
    """On PATH, else where drivers put them. On the fake driver its own stand-in. Raises ConfigError."""
    if environ.get("COLOCATE_FAKE_CUDA") == "1":
        return MpsTools(fake_mps.COMMAND)
    control, server = find_program(CONTROL, environ), find_program(SERVER, environ)
    if control is None or server is None:
        missing = CONTROL if control is None else SERVER
        problem = f"{missing} is neither on PATH nor in {', '.join(_DRIVER_FOLDERS)}: two processes would take turns"
        raise ConfigError("mps", problem, f"install the driver's MPS binaries, {_SINGLE_PROCESS}")
    return MpsTools((control,), str(Path(server).parent))


def find_program(name: str, environ: Mapping[str, str]) -> str | None:
    folders = [*environ.get("PATH", "").split(os.pathsep), *_DRIVER_FOLDERS]
    return shutil.which(name, path=os.pathsep.join(folders))


def check_environment(environ: Mapping[str, str]) -> None:
    """Raises ConfigError where the environment would bend what a partition means."""
    percentage = environ.get("CUDA_MPS_ACTIVE_THREAD_PERCENTAGE")
    if percentage is not None and _is_below_100(percentage):
        problem = f"is {percentage}: clients would not have every SM, and green contexts come out smaller than asked"
        raise ConfigError("CUDA_MPS_ACTIVE_THREAD_PERCENTAGE", problem, "unset it")
    if "CUDA_MPS_PIPE_DIRECTORY" in environ:
        problem = (
            f"names another daemon, at {environ['CUDA_MPS_PIPE_DIRECTORY']}; a run uses one of its own and no other"
        )
        raise ConfigError("CUDA_MPS_PIPE_DIRECTORY", problem, "unset it")


def _is_below_100(percentage: str) -> bool:
    try:
        return float(percentage) < 100
    except ValueError:
        return True


def assert_mps_client(facts: GpuFacts) -> None:
    """For a worker that runs beside another one: a process that does not reach the daemon runs without MPS, in
    silence, and would be time-sliced. Raises ConfigError."""
    if not facts.is_mps_client:
        problem = f"this worker is no MPS client on {facts.name}: the two workers would take turns, whatever the plan"
        remedy = f"look into the daemon's log, which is printed when it ends, {_SINGLE_PROCESS}"
        raise ConfigError("mps", problem, remedy)


def environment_without_mps() -> dict[str, str | None]:
    """For a child that must not be a client of anybody."""
    return {"CUDA_MPS_PIPE_DIRECTORY": NO_MPS_DIRECTORY}


class StartCut(Exception):
    """Whoever waited for the daemon has something better to do: a signal came."""


def never() -> bool:
    return False


class MpsManager:
    """One daemon at a time. Owned by the supervisor's main thread. `quit` is always called."""

    def __init__(self, tools: MpsTools, environ: Mapping[str, str]) -> None:
        """Raises ConfigError where `environ` speaks against it."""
        check_environment(environ)
        self._tools = tools
        self._environ = {name: value for name, value in environ.items() if not name.startswith(_SETTINGS)}
        self._settings = sorted(environ.keys() - self._environ.keys())
        if tools.folder:  # the daemon looks for its server on PATH
            self._environ["PATH"] = os.pathsep.join([tools.folder, environ.get("PATH", "")])
        self._is_cut: Callable[[], bool] = never
        self._guard: subprocess.Popen[str] | None = None
        self._directory = Path(NO_MPS_DIRECTORY)
        self.control = MpsControl(tools.command, self._environ)

    def start(self, is_cut: Callable[[], bool] = never) -> None:
        """Daemon and server, ready for clients. A server that is still starting refuses them with error 807, so it is
        waited for. Raises ConfigError with the end of the daemon's log, StartCut once `is_cut` is true; nothing is
        left running then."""
        self._is_cut = is_cut
        self._guard = subprocess.Popen(
            [sys.executable, "-m", "colocate.device.cuda.mps_guard", *self._tools.command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            errors="replace",
            env=self._environ,
            start_new_session=True,
        )
        deadline_s = time.monotonic() + _START_S
        try:
            self._directory = Path(self._first_line(deadline_s))
            pipe = str(self._directory / PIPE)
            if len(os.fsencode(pipe)) > MAX_PIPE_PATH:
                raise self._failure(f"{pipe} is too long for a socket's path", "set TMPDIR to a short path")
            names = {"CUDA_MPS_PIPE_DIRECTORY": pipe, "CUDA_MPS_LOG_DIRECTORY": str(self._directory / LOG)}
            self.control = MpsControl(self._tools.command, {**self._environ, **names})
            self._await(lambda: self.control.servers() is not None, "the daemon does not answer", deadline_s)
            self.control.ask(f"start_server -uid {os.getuid()}", _SERVER_S)
            no_server_s = time.monotonic() + _SERVER_S  # then the first client's coming starts it
            self._await(lambda: self.control.servers() or time.monotonic() > no_server_s, "no server", deadline_s)
            self._await(lambda: self.health() is None, "the server does not become ready", deadline_s)
        except BaseException:
            self.quit()
            raise

    def _await(self, is_so: Callable[[], object], otherwise: str, deadline_s: float) -> None:
        while not is_so():
            if self._is_cut():
                raise StartCut
            if not self.is_alive:
                raise self._failure("the daemon ended as it started")
            if time.monotonic() > deadline_s:
                raise self._failure(f"{otherwise} after {_START_S:g} s")
            time.sleep(0.02)

    def _first_line(self, deadline_s: float) -> str:
        assert self._guard is not None and self._guard.stdout is not None
        readable, _, _ = select.select([self._guard.stdout], [], [], max(0.0, deadline_s - time.monotonic()))
        line = self._guard.stdout.readline().strip() if readable else ""
        if not line:
            raise self._failure("its guard process did not start", "see what it printed above")
        return line

    def _failure(self, problem: str, remedy: str = f"mend what its log says, {_SINGLE_PROCESS}") -> ConfigError:
        tail = self.quit()
        return ConfigError("mps", f"{problem}; its log ends: {tail}" if tail else problem, remedy)

    @property
    def is_alive(self) -> bool:
        """Cheap: whether the guard lives, which is as long as the daemon does."""
        return self._guard is not None and self._guard.poll() is None

    def health(self) -> str | None:
        """Why no new client can come in; None where one can. Asks the daemon, for at most some two seconds."""
        if not self.is_alive:
            return "the MPS daemon is gone"
        servers = self.control.servers()
        if servers is None:
            return "the MPS daemon does not answer"
        for server in servers:  # none is no trouble: the next client's coming starts one
            state = self.control.server_state(server)
            if state is not None:
                return f"the MPS server is in state {state}"
        return None

    def environment_of_client(self) -> dict[str, str | None]:
        """What a worker gets on top of ours; None stands for "unset". `CUDA_VISIBLE_DEVICES` is the daemon's: a client
        counts the devices that its server shows, and would apply the list a second time."""
        return {
            **dict.fromkeys(self._settings),
            "CUDA_MPS_PIPE_DIRECTORY": str(self._directory / PIPE),
            "CUDA_MPS_LOG_DIRECTORY": str(self._directory / LOG),
            "CUDA_DEVICE_MAX_CONNECTIONS": _MAX_CONNECTIONS,
            "CUDA_VISIBLE_DEVICES": None,
        }

    def quit(self) -> str:
        """Idempotent. Nothing of the daemon runs after this. The end of its logs."""
        guard, self._guard = self._guard, None
        if guard is None:
            return ""
        try:
            tail, _ = guard.communicate(timeout=_QUIT_S)  # closes its standard input
        except subprocess.TimeoutExpired:
            guard.kill()  # the daemon dies with it
            tail, _ = guard.communicate()
            shutil.rmtree(self._directory, ignore_errors=True)
        return tail.strip()
