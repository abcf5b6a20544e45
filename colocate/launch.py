"""Entry of every child process: `python -m colocate.launch ROLE PARENT_PID`, its spec on standard input.

The composition root: the only place that knows which function each role runs. Each role imports only its own part, so
the keeper and the engine stay small and start fast.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable
from typing import TypeAlias

from msgspec import msgpack

from colocate.device.cuda.device_lost import is_device_lost
from colocate.errors import ChannelClosed, ConfigError, MeasuringFailed
from colocate.messages.control import ChildFailed
from colocate.messages.spec import ProcessSpec
from colocate.transport.board import Board
from colocate.transport.control import ControlChannel
from colocate.transport.parent import die_with_parent
from colocate.types import Role

Entry: TypeAlias = Callable[[ProcessSpec, ControlChannel, Board], None]


def main(arguments: list[str]) -> int:
    """Exit codes: 0 told to leave, 1 an error, 2 an error that the operator can mend."""
    role, parent_pid = Role(arguments[0]), int(arguments[1])
    die_with_parent(parent_pid)
    # Ctrl-C in a terminal reaches the whole process group; only the supervisor decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _leave)
    spec = msgpack.decode(sys.stdin.buffer.read(), type=ProcessSpec)
    _name_process(role)
    control = ControlChannel(spec.control_fd)
    board = Board.attach(spec.board_fd, spec.bell_fds)
    try:
        _entry(spec)(spec, control, board)
    except ConfigError as error:
        _report(control, ChildFailed(True, error.where, error.problem, error.remedy))
        return 2
    except ModuleNotFoundError as error:
        problem, remedy = f"the module {error.name} is not installed", "install this package with its requirements"
        _report(control, ChildFailed(True, role.value, problem, remedy))
        return 2
    except (ChannelClosed, MeasuringFailed) as error:
        _report(control, ChildFailed(False, role.value, str(error), ""))
        return 1
    except Exception as error:
        traceback.print_exc()
        gpu_fault = is_device_lost(error)
        _report(control, ChildFailed(False, role.value, f"{type(error).__name__}: {error}", "", gpu_fault))
        if gpu_fault:  # what frees device memory on the way out would raise, hang or abort
            os._exit(1)
        return 1
    return 0


def _entry(spec: ProcessSpec) -> Entry:
    if spec.role is Role.KEEPER:
        from colocate.worker.keeper import run_keeper

        return run_keeper
    if spec.role is Role.ENGINE:
        if spec.profiling is not None:
            from colocate.runtime.profiling.profiler import run_profiler

            return run_profiler
        from colocate.runtime.engine_process import run_engine

        return run_engine
    if spec.role is Role.FRONTEND:
        if spec.prompt is not None:
            from colocate.frontend.oneshot import run_oneshot

            return run_oneshot
        from colocate.frontend.main import run_frontend

        return run_frontend
    if spec.role is Role.OWNER:
        from colocate.worker.owner import run_owner

        return run_owner
    from colocate.worker.main import run_worker

    return run_worker


def _leave(signum: int, frame: object) -> None:
    sys.exit(0)


def _name_process(role: Role) -> None:
    """What `ps` and `top` show."""
    import setproctitle

    setproctitle.setproctitle(f"colocate:{role.value}")


def _report(control: ControlChannel, message: ChildFailed) -> None:
    try:
        control.send(message)
    except ChannelClosed:
        pass  # the supervisor is gone; so will we be


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
