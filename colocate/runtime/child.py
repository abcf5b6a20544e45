"""One child process from birth to reaping."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from enum import Enum
from typing import NamedTuple

import msgspec

from colocate.config.roles import WORKER_PROCESSES
from colocate.device.cpu.torch_facts import PASSIVE_OPENMP
from colocate.errors import ChannelClosed, ConfigError, InvariantError
from colocate.messages.spec import ProcessSpec
from colocate.transport.control import ControlChannel, ControlMessage
from colocate.types import Role


class ChildState(Enum):
    STARTING = "starting"
    READY = "ready"
    LOST = "lost"  # dead or condemned; not reaped yet
    REAPED = "reaped"


TRANSITIONS: dict[ChildState, tuple[ChildState, ...]] = {
    ChildState.STARTING: (ChildState.READY, ChildState.LOST),
    ChildState.READY: (ChildState.LOST,),
    ChildState.LOST: (ChildState.REAPED,),
    ChildState.REAPED: (),
}

# Nothing is restarted before its predecessor is gone, so this is also how long the supervisor hears nobody.
_REAP_S = 30.0

# Workers compute; everybody else must not grow thread pools that only cost memory.
_COMMON_ENVIRONMENT = {"MALLOC_ARENA_MAX": "2", "PYTHONUNBUFFERED": "1"}
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}


class Exit(NamedTuple):
    """How a process ended: `code` as in subprocess, negative for a signal."""

    code: int
    cause: str


class Child:
    """Owned by the supervisor; used from its main thread, which is also the one that spawns: the kernel's death signal
    goes by the thread that made the child."""

    def __init__(
        self,
        spec: ProcessSpec,
        control: ControlChannel,
        child_end: ControlChannel,
        fds: list[int],
        environment: Mapping[str, str | None],
    ) -> None:
        """`environment` goes on top of ours; None: the child goes without that variable."""
        self.role = spec.role
        self.incarnation = spec.incarnation
        self.control = control
        self.state = ChildState.STARTING
        self.started_s = time.monotonic()
        self.ready_s = 0.0
        self.doomed_because: str | None = None
        self._story: list[str] = []
        self.process = subprocess.Popen(
            [sys.executable, "-m", "colocate.launch", spec.role.value, str(os.getpid())],
            stdin=subprocess.PIPE,
            pass_fds=[child_end.fileno(), spec.board_fd, *spec.bell_fds, *fds],
            env=_environment(spec.role, environment),
            process_group=0,  # a terminal's Ctrl-C is for the supervisor alone
        )
        child_end.close()
        self.pidfd = os.pidfd_open(self.process.pid)
        assert self.process.stdin is not None
        try:
            with self.process.stdin as pipe:
                pipe.write(msgspec.msgpack.encode(spec))
        except BrokenPipeError:
            pass  # it died at once; its pidfd says so

    @property
    def pid(self) -> int:
        return self.process.pid

    def move(self, to: ChildState) -> None:
        if to not in TRANSITIONS[self.state]:
            raise InvariantError(f"{self.role.value} {self.incarnation}: {self.state} -> {to}", tuple(self._story))
        self._story.append(f"{time.monotonic() - self.started_s:.3f} s: {self.state.value} -> {to.value}")
        self.state = to
        if to is ChildState.READY:
            self.ready_s = time.monotonic()

    def tell(self, message: ControlMessage) -> bool:
        """False where it does not listen any more: it is dead or hung, and something else will notice."""
        try:
            return self.control.send(message)
        except ChannelClosed:
            return False

    def messages(self) -> list[ControlMessage]:
        """Everything it has said, up to the end of the stream."""
        received: list[ControlMessage] = []
        try:
            while (message := self.control.recv()) is not None:
                received.append(message)
        except ChannelClosed:
            pass
        return received

    def kill(self, because: str) -> None:
        """SIGKILL, also for a stopped process. Its death is noticed and reaped as any other."""
        if self.doomed_because is None:
            self.doomed_because = because
        try:
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
        except ProcessLookupError:
            pass

    def wait(self, timeout_s: float) -> bool:
        """True once it has ended. By the pidfd: `Popen.wait` would poll."""
        poller = select.poll()
        poller.register(self.pidfd, select.POLLIN)
        return bool(poller.poll(max(0, timeout_s) * 1000))

    def reap(self, limit_s: float = _REAP_S) -> Exit:
        """Collect a process that ended or was killed, and release what we hold of it. After this nothing of it runs
        any more. Raises ConfigError where the kernel does not let go of it: a call into a driver that hangs."""
        try:
            code = self.process.wait(limit_s)
        except subprocess.TimeoutExpired:
            problem = f"process {self.pid} was killed {limit_s:g} s ago and is still there: a driver call holds it"
            raise ConfigError(
                self.role.value, problem, "see the kernel's log; the GPU may need its administrator"
            ) from None
        if self.state is not ChildState.LOST:
            self.move(ChildState.LOST)
        self.move(ChildState.REAPED)
        os.close(self.pidfd)
        self.control.close()
        return Exit(code, self.doomed_because or _describe(code))


def _environment(role: Role, on_top: Mapping[str, str | None]) -> dict[str, str]:
    threads = PASSIVE_OPENMP if role in WORKER_PROCESSES else _ONE_THREAD
    environment = {**os.environ, **_COMMON_ENVIRONMENT, **threads, **on_top}
    return {name: value for name, value in environment.items() if value is not None}


def _describe(code: int) -> str:
    if code >= 0:
        return f"exited with code {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"
