"""A probe worker: `python -m colocate.device.cuda.proof.worker LINE_FD PEER_FD PARENT_PID`.

Reads one command at a time, answers it, and ends when the line does. What a command cannot do is answered with
`Refused`; after a fatal fault of the GPU the process ends, as a worker of a run does: nothing works in it any more.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from typing import TYPE_CHECKING

from colocate.device.cuda.driver import CudaError
from colocate.device.cuda.proof.commands import Answer, Command, Refused
from colocate.device.cuda.proof.line import Line, LineClosed
from colocate.errors import ColocateError, ConfigError

if TYPE_CHECKING:
    from colocate.device.cuda.proof.subject import Subject

_PR_SET_PDEATHSIG = 1
_EXIT_FAULT = 3


def main(line_fd: int, peer_fd: int, parent_pid: int) -> int:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent_pid:
        return 1
    from colocate.device.cuda.proof.subject import Subject  # after the death signal is set: this takes a while

    line: Line[Command] = Line(line_fd, Command)
    subject = Subject(peer_fd)
    while True:
        try:
            command, fds = line.receive()
            answer, sent = answer_to(subject, command, fds)
            line.send(answer, sent)
        except LineClosed:
            return 0
        for fd in sent:
            os.close(fd)
        if isinstance(answer, Refused) and answer.is_fatal:
            return _EXIT_FAULT
        subject.go_on()


def answer_to(subject: Subject, command: Command, fds: list[int]) -> tuple[Answer, tuple[int, ...]]:
    """The answer and the descriptors that go with it, to be closed after they were sent."""
    try:
        return subject.do(command, fds)
    except CudaError as error:
        return Refused(str(error), code=error.code, is_fatal=error.is_fatal), ()
    except ConfigError as error:
        return Refused(f"{error.where}: {error.problem}", error.remedy), ()
    except (ColocateError, ImportError, OSError, RuntimeError, ValueError, ArithmeticError) as error:
        # torch raises its CUDA errors as RuntimeError subclasses; the parent decides what a refusal means.
        return Refused(f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"), ()
    finally:
        for fd in fds:
            os.close(fd)


if __name__ == "__main__":
    sys.exit(main(*(int(argument) for argument in sys.argv[1:4])))
