"""The processes of one run: who is alive, under which incarnation, and who may start again when.

The crew knows how to start each role and whom to tell; `supervisor.py` decides when.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from dataclasses import dataclass

from colocate.config.roles import WORKER_PROCESSES, processes_of, workers_in
from colocate.config.serve import ServeConfig
from colocate.messages.control import (
    EngineAt,
    FrontendGone,
    FrontendStarting,
    ProcessInfo,
    WorkerGone,
    WorkerStarting,
)
from colocate.messages.spec import OneShot, ProcessSpec, ProfilingJob, RuntimeFacts
from colocate.runtime.child import Child, ChildState, Exit
from colocate.runtime.gpu_guard import GpuGuard
from colocate.runtime.restart import RestartBudget
from colocate.transport.board import Board
from colocate.transport.channel import frontend_address, keeper_address, worker_address
from colocate.transport.control import ControlChannel, ControlMessage
from colocate.types import WORKER_ROLES, Role

# The order in which simultaneous deaths are handled: causes before consequences.
LOSS_ORDER = (Role.KEEPER, Role.ENGINE, *WORKER_PROCESSES, Role.FRONTEND)
# Who cannot go on when a role is lost and is killed with it.
_DEPENDENTS: dict[Role, tuple[Role, ...]] = {Role.KEEPER: (Role.ENGINE, *WORKER_PROCESSES)}


_EVERYBODY_S = "the GPU's fault is everybody's"


@dataclass(slots=True)
class Slot:
    """The place of one role. `start_at_s` is when the next incarnation is due; None: not waiting to start."""

    role: Role
    budget: RestartBudget
    child: Child | None = None
    next_incarnation: int = 1
    num_restarts: int = 0
    start_at_s: float | None = None

    @property
    def is_ready(self) -> bool:
        return self.child is not None and self.child.state is ChildState.READY


@dataclass(frozen=True, slots=True)
class Burial:
    """A child that was reaped, and the workers that went with it because the GPU failed all of them."""

    ended: Exit
    companions: tuple[Child, ...] = ()


class Crew:
    """Owned by the supervisor's main thread."""

    def __init__(
        self,
        config: ServeConfig,
        facts: RuntimeFacts,
        run_id: str,
        gpu: GpuGuard,
        listener: socket.socket | None,
        prompt: OneShot | None,
        profiling: ProfilingJob | None = None,
    ) -> None:
        self._config = config
        self._facts = facts
        self._run_id = run_id
        self._listener = listener
        self._prompt = prompt
        self._profiling = profiling
        self._gpu = gpu
        self._keeper_is_client = facts.device_kind == "cuda" and config.memory.memory_transport == "ipc"
        self._epoch = -1
        self._engine_expects = 0  # the incarnation of the frontend that the engine's socket is for
        self.board = Board.create()
        supervision = config.supervisor
        self.slots = {
            role: Slot(role, RestartBudget(supervision.max_restarts, supervision.restart_window_s))
            for role in start_order(config)
            if profiling is None or role is not Role.FRONTEND
        }

    @property
    def children(self) -> list[Child]:
        return [slot.child for slot in self.slots.values() if slot.child is not None]

    @property
    def is_ready(self) -> bool:
        return all(slot.is_ready for slot in self.slots.values())

    @property
    def missing(self) -> list[str]:
        return [slot.role.value for slot in self.slots.values() if not slot.is_ready]

    @property
    def is_one_shot(self) -> bool:
        return self.client is not None

    @property
    def client(self) -> Role | None:
        """Whose end is the end of the run: the client of `generate`, the profiler of `profile`. None of a daemon."""
        if self._profiling is not None:
            return Role.ENGINE
        return Role.FRONTEND if self._prompt is not None else None

    def slot_of(self, role: Role) -> Slot:
        """Of the process that runs this worker, or is this role."""
        return next(slot for process, slot in self.slots.items() if role in (process, *workers_in(process)))

    def tell(self, role: Role, message: ControlMessage) -> None:
        child = self._child_of(role)
        if child is not None:
            child.tell(message)

    def start(self, role: Role, is_cut: Callable[[], bool]) -> Child:
        """Spawn the next incarnation and introduce it to those who must know. Raises ConfigError where the GPU takes
        no worker, StartCut where `is_cut` said so while that was waited for."""
        slot = self.slots[role]
        if role in WORKER_PROCESSES and self._gpu.ensure(is_cut):
            for other in self._workers():
                self.kill(other, "its MPS daemon was replaced")
        slot.start_at_s = None
        incarnation = slot.next_incarnation
        if role is Role.ENGINE:
            self._epoch += 1
        self._announce(role, incarnation)
        self._clear(role)
        ours, theirs = ControlChannel.pair()
        listens = role is Role.FRONTEND and self._listener is not None
        listen_fd = self._listener.fileno() if listens and self._listener is not None else -1
        spec = ProcessSpec(
            role=role,
            incarnation=incarnation,
            epoch=max(0, self._epoch),
            run_id=self._run_id,
            config=self._config,
            facts=self._facts,
            control_fd=theirs.fileno(),
            board_fd=self.board.fd,
            bell_fds=self.board.bell_fds,
            engine_address=self._engine_address(role, incarnation),
            keeper_address=keeper_address(self._run_id, self._incarnation_of(Role.KEEPER)),
            listen_fd=listen_fd,
            prompt=self._prompt if role is Role.FRONTEND else None,
            profiling=self._profiling if role is Role.ENGINE else None,
        )
        slot.next_incarnation += 1
        slot.child = Child(spec, ours, theirs, [listen_fd] if listens else [], self._gpu.environment(role))
        if role is Role.ENGINE:
            self._introduce_engine()
        return slot.child

    def _incarnation_of(self, role: Role) -> int:
        """Of the process that runs, or of the one that starts next."""
        slot = self.slots.get(role)
        if slot is None:
            return 0
        return slot.next_incarnation if slot.child is None else slot.child.incarnation

    def _child_of(self, role: Role) -> Child | None:
        """None also for a role that this run goes without."""
        slot = self.slots.get(role)
        return None if slot is None else slot.child

    def _engine_address(self, role: Role, incarnation: int) -> str:
        epoch = max(0, self._epoch)
        if role in WORKER_PROCESSES:
            return worker_address(self._run_id, epoch, role, incarnation)
        if role is Role.FRONTEND:
            return frontend_address(self._run_id, epoch, incarnation)
        return frontend_address(self._run_id, epoch, self._incarnation_of(Role.FRONTEND))

    def _announce(self, role: Role, incarnation: int) -> None:
        """Before the newcomer exists: the engine binds where it will connect."""
        if role in WORKER_PROCESSES:
            for worker in workers_in(role):
                address = self._engine_address(worker, incarnation)
                self.tell(Role.ENGINE, WorkerStarting(worker, incarnation, address))
        elif role is Role.FRONTEND and self._engine_expects != incarnation:
            self._engine_expects = incarnation
            self.tell(Role.ENGINE, FrontendStarting(incarnation, self._engine_address(role, incarnation)))
        elif role is Role.ENGINE:
            self._engine_expects = self._incarnation_of(Role.FRONTEND)

    def _introduce_engine(self) -> None:
        """A new engine learns of the processes that are there, and they of it."""
        for role, slot in self.slots.items():
            child = slot.child
            if child is None or not (role in WORKER_PROCESSES or role is Role.FRONTEND):
                continue
            if role in WORKER_PROCESSES:
                self._announce(role, child.incarnation)
            if self._epoch > 0:
                child.tell(EngineAt(self._epoch, self._engine_address(role, child.incarnation)))

    def kill(self, child: Child, because: str) -> None:
        """A worker's work on the GPU is ended first, once."""
        if child.role in WORKER_PROCESSES and child.doomed_because is None and not child.wait(0):
            self._gpu.before_kill(child.pid)
        child.kill(because)

    def bury(self, child: Child, forget: Callable[[Child], None], *, gpu_fault: bool = False) -> Burial:
        """Reap a dead child, forget its place on the board, and only then tell the engine: until now it might have
        written to its blocks.

        After a GPU fault every worker is killed and reaped before the engine hears of any: while one of them lives the
        GPU takes no new one, and the engine must give neither of them work in between. So it is where the GPU does not
        let go of a dead worker. `forget` is called for each that goes with it, before it is reaped.
        """
        gone = [(child, *self._reap(child))]
        kv_trusted = not gpu_fault and gone[0][2]
        companions = [] if kv_trusted or child.role not in WORKER_PROCESSES else self._workers()
        for other in companions:
            other.kill(_EVERYBODY_S)
        keeper = self.slots[Role.KEEPER].child
        if not kv_trusted and child.role in WORKER_ROLES and keeper is not None and self._keeper_is_client:
            keeper.kill(_EVERYBODY_S)  # noticed, and everything replaced with it, as after any other death of a keeper
        for other in companions:
            forget(other)
            gone.append((other, *self._reap(other)))
        for each, ended, _ in sorted(gone, key=lambda loss: LOSS_ORDER.index(loss[0].role)):
            self._tell_of_loss(each, ended.cause, kv_trusted)
        return Burial(gone[0][1], tuple(companions))

    def _reap(self, child: Child) -> tuple[Exit, bool]:
        """How it ended, and whether nothing of it can write any more."""
        ended = child.reap()
        is_gone = child.role not in WORKER_PROCESSES or self._gpu.after_reap(child.pid)
        self.slots[child.role].child = None
        self._clear(child.role)
        return ended, is_gone

    def _tell_of_loss(self, child: Child, cause: str, kv_trusted: bool) -> None:
        if child.role in WORKER_PROCESSES:
            self.tell(Role.ENGINE, WorkerGone(child.role, child.incarnation, cause, kv_trusted))
        elif child.role is Role.FRONTEND:
            self.tell(Role.ENGINE, FrontendGone(child.incarnation))

    def _clear(self, role: Role) -> None:
        for each in {role, *workers_in(role)}:
            self.board.clear(each)

    def _workers(self) -> list[Child]:
        return [child for child in self.children if child.role in WORKER_PROCESSES]

    def kill_lost(self) -> None:
        """Kill the workers whose GPU went away under them."""
        problem = self._gpu.problem()
        if problem is not None:
            for child in self._workers():
                self.kill(child, problem)

    def dependents_of(self, role: Role) -> tuple[Role, ...]:
        """Who cannot go on without it, of the roles of this run."""
        return tuple(other for other in _DEPENDENTS.get(role, ()) if other in self.slots)

    def bury_dependents(self, role: Role, forget: Callable[[Child], None]) -> list[Child]:
        """Kill and reap those who cannot outlive `role`. `forget` is called for each before it is reaped."""
        children = [child for other in self.dependents_of(role) if (child := self.slots[other].child) is not None]
        for child in children:
            self.kill(child, f"its memory went with the {role.value}")
        for child in children:
            forget(child)
            self.bury(child, forget)
        return children

    def close(self) -> None:
        """After the last child."""
        self._gpu.close()
        self.board.close()

    def table(self) -> list[ProcessInfo]:
        now_s = time.monotonic()
        return [_info(slot, now_s) for slot in self.slots.values()]


def start_order(config: ServeConfig) -> tuple[Role, ...]:
    """The processes of a run. Everything runs at the same time, so the order only decides who imports first."""
    workers = processes_of(config.scheduler.mode, config.device.single_process)
    return (*workers, Role.KEEPER, Role.ENGINE, Role.FRONTEND)


def _info(slot: Slot, now_s: float) -> ProcessInfo:
    child = slot.child
    if child is None:
        return ProcessInfo(slot.role, 0, ChildState.LOST.value, slot.next_incarnation - 1, slot.num_restarts, 0.0)
    uptime_s = now_s - child.started_s
    return ProcessInfo(slot.role, child.pid, child.state.value, child.incarnation, slot.num_restarts, uptime_s)
