"""Supervisor <-> every child, over one socket pair per child; and the events a worker's life makes for the engine."""

from __future__ import annotations

from msgspec import Struct

from colocate.types import Role


class StartupPhase(Struct, frozen=True, tag=True):
    """Child -> supervisor: what the child is doing now. Shown on the console and by `/ready`."""

    phase: str
    detail: str = ""


class ChildReady(Struct, frozen=True, tag=True):
    """Child -> supervisor: the hand-shake. `facts` are values found at start (number of blocks, resident bytes ...)."""

    role: Role
    pid: int
    seconds: float
    facts: dict[str, int | float | str] = {}


class ChildFailed(Struct, frozen=True, tag=True):
    """Child -> supervisor, then exit: a start that cannot succeed. `operator` errors end `serve` with code 2.

    `gpu_fault`: the GPU is lost to this process, and so to every worker that shares it."""

    operator: bool
    where: str
    problem: str
    remedy: str
    gpu_fault: bool = False


class PoisonFailed(Struct, frozen=True, tag=True):
    """Engine -> supervisor: this worker's last death is charged to a request that ran alone, not to a crash loop."""

    role: Role
    request_id: int


class ChannelBroken(Struct, frozen=True, tag=True):
    """Engine, frontend -> supervisor: messages of this peer are missing; nothing it says can be trusted: replace it."""

    role: Role
    reason: str


class EngineAt(Struct, frozen=True, tag=True):
    """Supervisor -> worker, frontend: the engine of this epoch listens at `address`. Drop rows of an older epoch and
    say Hello there (worker); resubmit what is in flight (frontend)."""

    epoch: int
    address: str


class WorkerStarting(Struct, frozen=True, tag=True):
    """Supervisor -> engine: a worker of this incarnation is being started and will connect at `address`: bind it."""

    role: Role
    incarnation: int
    address: str


class FrontendStarting(Struct, frozen=True, tag=True):
    """Supervisor -> engine: a new frontend will connect at `address`: bind it."""

    incarnation: int
    address: str


class WorkerGone(Struct, frozen=True, tag=True):
    """Supervisor -> engine: this worker is dead AND reaped, so nothing writes to its blocks any more.

    `kv_trusted` is False after a GPU memory fault: the pool may hold garbage and everything is recomputed.
    """

    role: Role
    incarnation: int
    cause: str
    kv_trusted: bool = True


class FrontendGone(Struct, frozen=True, tag=True):
    """Supervisor -> engine: the sockets of its clients are closed; abort every request."""

    incarnation: int


class Drain(Struct, frozen=True, tag=True):
    """Supervisor -> frontend, engine: admit nothing new; finish what runs before the deadline."""

    deadline_s: float


class Drained(Struct, frozen=True, tag=True):
    """Frontend -> supervisor: no request is in flight any more."""


class ReloadPlans(Struct, frozen=True, tag=True):
    """Supervisor -> engine, on SIGHUP: read the plan file again."""


class Shutdown(Struct, frozen=True, tag=True):
    """Supervisor -> child: leave now, cleanly."""


class ProcessInfo(Struct, frozen=True):
    role: Role
    pid: int
    state: str  # starting, ready, lost
    incarnation: int
    restarts: int
    uptime_s: float


class ProcessTable(Struct, frozen=True, tag=True):
    """Supervisor -> frontend, whenever a process changes state and once a second."""

    phase: str  # what `/ready` answers while not ready; "ready" when serving
    processes: list[ProcessInfo]
    startup_s: dict[str, float]  # seconds per start-up phase, for `/server_info`
    gpu_memory: dict[str, int] = {}  # bytes planned and measured, by name; empty without a GPU


class WorkerHello(Struct, frozen=True, tag=True):
    """Worker -> engine, first message on a channel: this worker holds no row of an older epoch. It is also the answer
    to a reset."""

    role: Role
    incarnation: int
    epoch: int
    pid: int


class PlanApplied(Struct, frozen=True, tag=True):
    """Worker -> engine: this plan is in force here since `applied_ns` (monotonic)."""

    role: Role
    seq: int
    applied_ns: int


class Tick(Struct, frozen=True, tag=True):
    """Driver -> core: time has passed (residency, retry hints). Sent at least every 100 ms."""
