"""The processes of one run: who is alive, under which incarnation, and who may start again when.

The crew knows how to start each role and whom to tell; `supervisor.py` decides when.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from dataclasses import dataclass

from colocate.config.roles import ANY_WORKER, roles_of
from colocate.config.serve import Mode, ServeConfig
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
from colocate.runtime.restart import RestartBudget
from colocate.transport.board import Board
from colocate.transport.channel import frontend_address, keeper_address, worker_address
from colocate.transport.control import ControlChannel, ControlMessage
from colocate.types import Role

# The order in which simultaneous deaths are handled: causes before consequences.
LOSS_ORDER = (Role.KEEPER, Role.ENGINE, *ANY_WORKER, Role.FRONTEND)
# Who cannot go on when a role is lost and is killed with it.
_DEPENDENTS: dict[Role, tuple[Role, ...]] = {Role.KEEPER: (Role.ENGINE, *ANY_WORKER)}


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


class Crew:
    """Owned by the supervisor's main thread."""

    def __init__(
        self,
        config: ServeConfig,
        facts: RuntimeFacts,
        run_id: str,
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
        self._epoch = -1
        self._engine_expects = 0  # the incarnation of the frontend that the engine's socket is for
        self.board = Board.create()
        supervision = config.supervisor
        self.slots = {
            role: Slot(role, RestartBudget(supervision.max_restarts, supervision.restart_window_s))
            for role in start_order(config.scheduler.mode)
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

    def tell(self, role: Role, message: ControlMessage) -> None:
        child = self._child_of(role)
        if child is not None:
            child.tell(message)

    def start(self, role: Role) -> Child:
        """Spawn the next incarnation and introduce it to those who must know."""
        slot = self.slots[role]
        slot.start_at_s = None
        incarnation = slot.next_incarnation
        if role is Role.ENGINE:
            self._epoch += 1
        self._announce(role, incarnation)
        self.board.clear(role)
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
        slot.child = Child(spec, ours, theirs, [listen_fd] if listens else [])
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
        if role in ANY_WORKER:
            return worker_address(self._run_id, epoch, role, incarnation)
        if role is Role.FRONTEND:
            return frontend_address(self._run_id, epoch, incarnation)
        return frontend_address(self._run_id, epoch, self._incarnation_of(Role.FRONTEND))

    def _announce(self, role: Role, incarnation: int) -> None:
        """Before the newcomer exists: the engine binds where it will connect."""
        address = self._engine_address(role, incarnation)
        if role in ANY_WORKER:
            self.tell(Role.ENGINE, WorkerStarting(role, incarnation, address))
        elif role is Role.FRONTEND and self._engine_expects != incarnation:
            self._engine_expects = incarnation
            self.tell(Role.ENGINE, FrontendStarting(incarnation, address))
        elif role is Role.ENGINE:
            self._engine_expects = self._incarnation_of(Role.FRONTEND)

    def _introduce_engine(self) -> None:
        """A new engine learns of the processes that are there, and they of it."""
        for role, slot in self.slots.items():
            child = slot.child
            if child is None or not (role in ANY_WORKER or role is Role.FRONTEND):
                continue
            address = self._engine_address(role, child.incarnation)
            if role in ANY_WORKER:
                self.tell(Role.ENGINE, WorkerStarting(role, child.incarnation, address))
            if self._epoch > 0:
                child.tell(EngineAt(self._epoch, address))

    def bury(self, child: Child) -> Exit:
        """Reap a dead child, forget its place on the board, and only then tell the engine: until now it might have
        written to its blocks."""
        ended = child.reap()
        slot = self.slots[child.role]
        slot.child = None
        self.board.clear(child.role)
        if child.role in ANY_WORKER:
            self.tell(Role.ENGINE, WorkerGone(child.role, child.incarnation, ended.cause))
        elif child.role is Role.FRONTEND:
            self.tell(Role.ENGINE, FrontendGone(child.incarnation))
        return ended

    def dependents_of(self, role: Role) -> tuple[Role, ...]:
        """Who cannot go on without it, of the roles of this run."""
        return tuple(other for other in _DEPENDENTS.get(role, ()) if other in self.slots)

    def bury_dependents(self, role: Role, forget: Callable[[Child], None]) -> list[Child]:
        """Kill and reap those who cannot outlive `role`. `forget` is called for each before it is reaped."""
        children = [child for other in self.dependents_of(role) if (child := self.slots[other].child) is not None]
        for child in children:
            child.kill(f"its memory went with the {role.value}")
        for child in children:
            forget(child)
            self.bury(child)
        return children

    def close(self) -> None:
        self.board.close()

    def table(self) -> list[ProcessInfo]:
        now_s = time.monotonic()
        return [_info(slot, now_s) for slot in self.slots.values()]


def start_order(mode: Mode) -> tuple[Role, ...]:
    """The processes of a run. Everything runs at the same time, so the order only decides who imports first."""
    return (*roles_of(mode), Role.KEEPER, Role.ENGINE, Role.FRONTEND)


def _info(slot: Slot, now_s: float) -> ProcessInfo:
    child = slot.child
    if child is None:
        return ProcessInfo(slot.role, 0, ChildState.LOST.value, slot.next_incarnation - 1, slot.num_restarts, 0.0)
    uptime_s = now_s - child.started_s
    return ProcessInfo(slot.role, child.pid, child.state.value, child.incarnation, slot.num_restarts, uptime_s)
