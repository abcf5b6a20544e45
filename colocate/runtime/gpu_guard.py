"""What the supervisor does for a GPU around the life of its workers. Everywhere else there is nothing to do.

| when | what |
|---|---|
| before a worker starts | the MPS daemon takes new clients; it is started, or replaced, where it does not |
| before a worker is killed | its server ends its work: SIGKILL with kernels in flight is documented as undefined |
| after it was reaped | wait until no server lists it: until then its kernels may still write |
| after the last child | the daemon quits |

Killing a worker costs the supervisor's loop at most two seconds here, and only where the daemon is slow; a daemon that
does not recover takes four seconds to be given up and at most fifteen to quit. A start is waited for longer, but a
signal cuts it. Nobody is mistaken for silent because of it: heartbeats are written meanwhile, and read after.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Protocol

from colocate.config.roles import WORKER_PROCESSES, processes_of
from colocate.config.serve import ServeConfig
from colocate.device.cuda.compute_mode import check_compute_mode, compute_mode
from colocate.device.cuda.mps import MpsManager, environment_without_mps, find_tools, never
from colocate.errors import ConfigError
from colocate.types import Role

_STEP_S = 1.0
_RECOVER_S = 2.0  # a server takes clients again once all that a fault hit are gone
_AGAIN_S = 0.05


class GpuGuard(Protocol):
    """Owned by the crew, called from the supervisor's thread. Pids are of workers."""

    def ensure(self, is_cut: Callable[[], bool]) -> bool:
        """Call before a worker starts. True where the daemon had to be replaced: workers that live have lost theirs.
        Raises ConfigError where none can be had, StartCut once `is_cut` is true."""
        ...

    def environment(self, role: Role) -> dict[str, str | None]:
        """What a child of this role gets on top of our environment; None: it goes without. Valid until `ensure`."""
        ...

    def problem(self) -> str | None:
        """Why the workers cannot go on as they are. Costs nothing."""
        ...

    def before_kill(self, pid: int) -> None: ...

    def after_reap(self, pid: int) -> bool:
        """False where the GPU may still work for the dead process: what it writes to cannot be trusted."""
        ...

    def close(self) -> None:
        """After the last child. Idempotent."""
        ...


class NothingToGuard:
    """No GPU, or one process on it, which needs no MPS. `environment` is for every child."""

    def __init__(self, environment: dict[str, str | None]) -> None:
        self._environment = environment

    def ensure(self, is_cut: Callable[[], bool]) -> bool:
        return False

    def environment(self, role: Role) -> dict[str, str | None]:
        return self._environment

    def problem(self) -> str | None:
        return None

    def before_kill(self, pid: int) -> None:
        pass

    def after_reap(self, pid: int) -> bool:
        return True

    def close(self) -> None:
        pass


class MpsGuard:
    """Two workers on one GPU. `keeper_is_client`: it has a context, and shares memory by handles between clients."""

    def __init__(self, manager: MpsManager, *, keeper_is_client: bool, step_s: float = _STEP_S) -> None:
        """`step_s`: how long the daemon has to answer before a kill, and again after it."""
        self._manager = manager
        self._step_s = step_s
        self._clients = (*WORKER_PROCESSES, Role.KEEPER) if keeper_is_client else WORKER_PROCESSES
        self._was_started = False

    def ensure(self, is_cut: Callable[[], bool] = never) -> bool:
        if self._was_started and self._recovers():
            return False
        self._manager.quit()
        self._manager.start(is_cut)
        was_started, self._was_started = self._was_started, True
        return was_started

    def _recovers(self) -> bool:
        deadline_s = time.monotonic() + _RECOVER_S
        while self._manager.health() is not None:
            if not self._manager.is_alive or time.monotonic() > deadline_s:
                return False
            time.sleep(_AGAIN_S)
        return True

    def environment(self, role: Role) -> dict[str, str | None]:
        return self._manager.environment_of_client() if role in self._clients else environment_without_mps()

    def problem(self) -> str | None:
        return "the MPS daemon is gone" if self._was_started and not self._manager.is_alive else None

    def before_kill(self, pid: int) -> None:
        if self._manager.is_alive:
            self._manager.control.terminate_client(pid, self._step_s)

    def after_reap(self, pid: int) -> bool:
        return not self._manager.is_alive or self._manager.control.wait_gone(pid, self._step_s)

    def close(self) -> None:
        self._manager.quit()


def gpu_guard_for(config: ServeConfig, device_kind: str) -> GpuGuard:
    """Raises ConfigError where this run needs MPS and cannot have it, and where both phases cannot share a process."""
    processes = processes_of(config.scheduler.mode, config.device.single_process)
    if device_kind == "cpu" and Role.OWNER in processes:
        problem = "is for a GPU: on a CPU a share is the affinity and the thread count of a whole process"
        raise ConfigError("single_process", problem, "leave it away; CPU workers never need it")
    if device_kind != "cuda":
        return NothingToGuard({})
    is_one_process, keeper_is_client = len(processes) == 1, config.memory.memory_transport == "ipc"
    gpu, all_are_clients = config.device.gpu, keeper_is_client and not is_one_process
    check_compute_mode(gpu, compute_mode(gpu), all_are_clients=all_are_clients)
    if is_one_process:
        return NothingToGuard(environment_without_mps())
    manager = MpsManager(find_tools(os.environ), os.environ)
    return MpsGuard(manager, keeper_is_client=keeper_is_client)
