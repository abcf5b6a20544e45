"""A probe worker seen from the doctor: started, asked with a time limit, killed and reaped on every path."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

import msgspec

from colocate.device.cuda.proof.commands import Answer, Command, Refused
from colocate.device.cuda.proof.line import Line, LineClosed

WORKER_MODULE = "colocate.device.cuda.proof.worker"
_TAIL_BYTES = 2000
_REAP_S = 5.0

Wanted = TypeVar("Wanted", bound=msgspec.Struct)


class ProbeLost(Exception):
    """The worker died, hung or spoke nonsense. It is killed and reaped by now."""


class ProbeRefused(Exception):
    """The worker could not do what it was asked; it is still there unless the code is fatal: then it is reaped."""

    def __init__(self, name: str, refusal: Refused) -> None:
        self.refusal = refusal
        super().__init__(f"{name}: {refusal.problem}")


@dataclass(frozen=True, slots=True)
class Inheritance:
    """What a worker gets at birth beside its line: `peer_fd` is its end of the bell between both workers, or -1."""

    environment: Mapping[str, str]
    peer_fd: int = -1


class ProbeProcess:
    """Owned by the doctor's main thread, which is also the one that starts it: the worker's death signal goes by it."""

    def __init__(self, name: str, inheritance: Inheritance, module: str = WORKER_MODULE) -> None:
        self.name = name
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._line: Line[Answer] = Line(ours.detach(), Answer)
        self._errors = os.memfd_create(f"colocate-doctor-{name}", os.MFD_CLOEXEC)
        inherited = [fd for fd in (theirs.fileno(), inheritance.peer_fd) if fd >= 0]
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-m", module, str(theirs.fileno()), str(inheritance.peer_fd), str(os.getpid())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=self._errors,
                pass_fds=inherited,
                env=dict(inheritance.environment),
                process_group=0,  # a terminal's Ctrl-C is for the doctor, which then ends this process
            )
        except BaseException:
            self._line.close()
            os.close(self._errors)
            raise
        finally:
            theirs.close()
        self.is_alive = True

    @property
    def pid(self) -> int:
        return self._process.pid

    def begin(self, command: Command, fds: tuple[int, ...] = ()) -> None:
        """Send it without waiting. Raises ProbeLost."""
        if not self.is_alive:
            raise ProbeLost(f"the {self.name} worker is gone")
        try:
            self._line.send(command, fds)
        except LineClosed:
            raise self._lost("died") from None

    def finish(self, wanted: type[Wanted], limit_s: float) -> Wanted:
        """The answer to what was begun. Raises ProbeLost, ProbeRefused."""
        answer, fds = self._receive(wanted, limit_s)
        for fd in fds:
            os.close(fd)
        return answer

    def finish_with_fd(self, wanted: type[Wanted], limit_s: float) -> tuple[Wanted, int]:
        """As `finish`, with the one descriptor that comes along, which is the caller's."""
        answer, fds = self._receive(wanted, limit_s)
        if len(fds) != 1:
            for fd in fds:
                os.close(fd)
            raise self._lost(f"sent {len(fds)} descriptors in place of one")
        return answer, fds[0]

    def ask(self, command: Command, wanted: type[Wanted], limit_s: float, fds: tuple[int, ...] = ()) -> Wanted:
        self.begin(command, fds)
        return self.finish(wanted, limit_s)

    def kill(self) -> None:
        """SIGKILL and reap. Idempotent; nothing of the process is left afterwards."""
        if not self.is_alive:
            return
        self._process.kill()
        self._reap()

    def leave(self) -> None:
        """Let it end by itself: a client that leaves by itself never disturbs the MPS server. Killed if it does not."""
        if not self.is_alive:
            return
        self._line.close()
        try:
            self._process.wait(_REAP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
        self._reap()

    def _receive(self, wanted: type[Wanted], limit_s: float) -> tuple[Wanted, list[int]]:
        try:
            answer, fds = self._line.receive(limit_s)
        except TimeoutError:
            raise self._lost(f"did not answer within {limit_s:g} s") from None
        except LineClosed:
            raise self._lost("died") from None
        if isinstance(answer, Refused):
            if answer.is_fatal:
                self.kill()  # it is ending: nothing works in it any more
            raise ProbeRefused(self.name, answer)
        if not isinstance(answer, wanted):
            raise self._lost(f"answered {type(answer).__name__} in place of {wanted.__name__}")
        return answer, fds

    def _lost(self, what: str) -> ProbeLost:
        self.kill()
        code = self._process.returncode
        end = "" if what != "died" else f" ({_describe(code)})"
        return ProbeLost(f"the {self.name} worker {what}{end}{self._last_words()}")

    def _reap(self) -> None:
        self.is_alive = False
        self._process.wait()
        self._words = os.pread(self._errors, _TAIL_BYTES, max(0, os.fstat(self._errors).st_size - _TAIL_BYTES))
        os.close(self._errors)
        self._line.close()

    def _last_words(self) -> str:
        lines = self._words.decode(errors="replace").strip().splitlines()
        return f": {lines[-1]}" if lines else ""


def _describe(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"
