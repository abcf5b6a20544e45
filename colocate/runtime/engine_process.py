"""The engine process: a driver loop around the pure core.

The driver owns sockets, the clock and the event log; the core owns every decision. Messages that meet a full channel
wait here in order, and while the frontend's do, nothing more is read from the workers: back-pressure reaches the decode
worker, which pauses. Nothing is dropped.
"""

from __future__ import annotations

import gc
import logging
import os
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

from msgspec import Struct

from colocate import __version__
from colocate.config.roles import process_of, roles_of, workers_in
from colocate.core.engine import Engine, Event
from colocate.core.outbox import Command, SetPlanWord
from colocate.core.settings import EngineSettings
from colocate.errors import ChannelClosed, ConfigError, FrameTooLarge
from colocate.messages.client import Abort, OutputItem, Outputs, UsePlans
from colocate.messages.control import (
    ChannelBroken,
    ChildReady,
    Drain,
    FrontendGone,
    FrontendStarting,
    PoisonFailed,
    ReloadPlans,
    Shutdown,
    Tick,
    WorkerGone,
    WorkerStarting,
)
from colocate.messages.decode import DecodeUpdate
from colocate.messages.prefill import BatchFailed, PrefillBatch
from colocate.messages.spec import ProcessSpec
from colocate.runtime.core_settings import core_settings
from colocate.runtime.model_source import model_label
from colocate.runtime.plan_source import PlanChoice, PlanSource, PlanWatch
from colocate.telemetry.event_log import LOG_VERSION, EventLogWriter, LogHeader
from colocate.transport.board import Board
from colocate.transport.channel import Channel
from colocate.transport.control import ControlChannel
from colocate.transport.waiting import Waiter, wait
from colocate.transport.zmq_channel import bind_for_frontend, bind_for_worker
from colocate.types import FinishReason, Role

_log = logging.getLogger(__name__)

TICK_S = 0.1
RETRY_S = 0.002  # while a channel is full
# How long a dead peer's last messages may take from the kernel's buffer to ours.
LAST_WORDS_S = 0.005
MAX_EVENTS_PER_TURN = 64
NOBODY_ASKS = 0  # the frontend's queries count from 1: the answer to this one is dropped there


class EngineDriver:
    """Carries events to the core and commands to their channels."""

    def __init__(self, spec: ProcessSpec, control: ControlChannel, board: Board) -> None:
        self._control = control
        self._board = board
        self._mode = spec.config.scheduler.mode
        self._channels: dict[Role, Channel] = {}
        self._backlog: dict[Role, deque[Struct]] = {}
        settings = core_settings(spec.config, spec.facts, board.plan().seq)
        self._engine = Engine(settings)
        self._log = _open_log(spec, settings)
        self._plan_watch = _watch_plans(spec, settings)
        self._running = True
        self._undelivered: deque[Event] = deque()
        self._next_tick_ns = 0
        self._open_channel(Role.FRONTEND, spec.engine_address)
        self._carry_out(self._engine.first_commands())

    def run(self) -> None:
        """Until Shutdown, or until the supervisor is gone."""
        try:
            while self._running:
                self.turn()
        finally:
            self._record(EventLogWriter.close)
            for channel in self._channels.values():
                channel.close()

    def turn(self) -> None:
        """Wait for anything to happen, then handle what has."""
        timeout_s = max(self._next_tick_ns - time.monotonic_ns(), 0) / 1e9
        if self._backlog.get(Role.FRONTEND):  # the workers wait: what they have said must not wake us
            self._frontend_waiter.wait(min(timeout_s, RETRY_S))
        else:
            self._waiter.wait(RETRY_S if any(self._backlog.values()) else timeout_s)
        self._flush_backlog()
        self._read_control()
        while self._undelivered:
            self._handle(self._undelivered.popleft())
        for role in list(self._channels):
            if role is Role.FRONTEND or not self._backlog.get(Role.FRONTEND):
                self._read_channel(role)
        now_ns = time.monotonic_ns()
        if now_ns >= self._next_tick_ns:
            self._next_tick_ns = now_ns + int(TICK_S * 1e9)
            self._board.beat(Role.ENGINE, now_ns)
            self._handle(Tick())
            self._reload_plans()
            self._record(EventLogWriter.flush)

    # -- events in -------------------------------------------------------------------------------------------------

    def _handle(self, event: Event) -> None:
        now_ns = time.monotonic_ns()
        commands = self._engine.handle(event, now_ns)
        self._record(lambda log: log.record(now_ns, event, commands))
        self._carry_out(commands)

    def _reload_plans(self, *, force: bool = False) -> None:
        if self._plan_watch is None:
            return
        choice = self._plan_watch.poll(time.monotonic(), force=force)
        if choice is not None:
            self._handle(UsePlans(NOBODY_ASKS, list(choice.candidates), choice.best_static))

    def _record(self, write: Callable[[EventLogWriter], None]) -> None:
        """A disk that is full ends the log, not the service."""
        if self._log is None:
            return
        try:
            write(self._log)
        except OSError as error:
            _log.error("the event log ends here: %s", error)
            self._log = None

    def _read_channel(self, role: Role) -> None:
        channel = self._channels.get(role)
        if channel is None:
            return
        try:
            for _ in range(MAX_EVENTS_PER_TURN):
                message = channel.recv()
                if message is None:
                    return
                self._handle(message)  # type: ignore[arg-type]  # the channel decodes this peer's messages only
        except ChannelClosed as error:
            self._close_channel(role)
            self._control.send(ChannelBroken(role, str(error)))

    def _read_control(self) -> None:
        while True:
            try:
                message = self._control.recv()
            except ChannelClosed:
                self._running = False
                return
            if message is None:
                return
            self._obey(message)

    def _obey(self, message: Struct) -> None:
        if isinstance(message, WorkerStarting):
            self._close_channel(message.role)
            self._open_channel(message.role, message.address)
        elif isinstance(message, FrontendStarting):
            self._close_channel(Role.FRONTEND)
            self._open_channel(Role.FRONTEND, message.address)
        elif isinstance(message, WorkerGone):
            for worker in workers_in(message.role):
                self._hear_last_words(worker)
                self._close_channel(worker)
            self._handle(message)
        elif isinstance(message, FrontendGone):
            self._close_channel(Role.FRONTEND)
            self._handle(message)
        elif isinstance(message, Drain):
            self._handle(message)
        elif isinstance(message, ReloadPlans):
            self._reload_plans(force=True)
        elif isinstance(message, Shutdown):
            self._running = False

    def _hear_last_words(self, role: Role) -> None:
        """What a worker said before it died still counts."""
        channel = self._channels.get(role)
        if channel is None:
            return
        wait([channel], LAST_WORDS_S)
        self._read_channel(role)

    # -- commands out ----------------------------------------------------------------------------------------------

    def _carry_out(self, commands: list[Command]) -> None:
        for command in commands:
            message = command.message
            if isinstance(message, SetPlanWord):
                self._board.set_plan(message.seq, message.index)
                for role in roles_of(self._mode):
                    self._board.ring(role)
            elif isinstance(message, PoisonFailed):
                self._control.send(message)
            else:
                self._send(process_of(Role(command.to), self._mode), message)

    def _send(self, role: Role, message: Struct) -> None:
        """A role without a channel has no process: its loss is an event that makes up for what it misses."""
        channel = self._channels.get(role)
        if channel is None:
            return
        backlog = self._backlog.get(role)
        try:
            if backlog or not channel.send(message):
                self._backlog.setdefault(role, deque()).append(message)
        except FrameTooLarge as error:
            self._undeliverable(message, error)

    def _undeliverable(self, message: Struct, error: FrameTooLarge) -> None:
        """The core cuts messages to size, so one request alone made this one too large: it fails, nobody else does."""
        _log.error("a %s was not sent", type(message).__name__, exc_info=error)
        if isinstance(message, PrefillBatch):
            rows = [(row.request_id, row.incarnation) for row in message.rows]
            self._undelivered.append(BatchFailed(Role.PREFILL, rows, message.batch_id, str(error)))
        elif isinstance(message, DecodeUpdate):
            rows = [(row.request_id, row.incarnation) for row in message.joins]
            self._undelivered.append(BatchFailed(Role.DECODE, rows, -1, str(error)))
        elif isinstance(message, Outputs):
            failed = [OutputItem(item.request_id, [], FinishReason.ERROR, error=str(error)) for item in message.items]
            self._send(Role.FRONTEND, Outputs(failed))
            self._undelivered.append(Abort([item.request_id for item in message.items]))

    def _flush_backlog(self) -> None:
        for role, backlog in self._backlog.items():
            channel = self._channels.get(role)
            while backlog and channel is not None:
                try:
                    if not channel.send(backlog[0]):
                        break
                except FrameTooLarge as error:
                    self._undeliverable(backlog.popleft(), error)
                    break  # what it left behind goes at the next turn
                backlog.popleft()

    def _open_channel(self, role: Role, address: str) -> None:
        is_frontend = role is Role.FRONTEND
        self._channels[role] = bind_for_frontend(address) if is_frontend else bind_for_worker(address, role)
        self._watch()

    def _watch(self) -> None:
        self._waiter = Waiter([self._control, *self._channels.values()])
        frontend = [self._channels[Role.FRONTEND]] if Role.FRONTEND in self._channels else []
        self._frontend_waiter = Waiter([self._control, *frontend])

    def _close_channel(self, role: Role) -> None:
        self._backlog.pop(role, None)
        channel = self._channels.pop(role, None)
        if channel is not None:
            channel.close()
            self._watch()


def _watch_plans(spec: ProcessSpec, settings: EngineSettings) -> PlanWatch | None:
    path = spec.config.scheduler.plans
    if path is None:
        return None
    label = model_label(spec.config.model.model)
    source = PlanSource(Path(path), settings.plan_table(), spec.facts.device_name, label)
    return PlanWatch(source, PlanChoice(settings.candidates, settings.best_static))


def _open_log(spec: ProcessSpec, settings: EngineSettings) -> EventLogWriter | None:
    directory = spec.config.telemetry.event_log
    if directory is None:
        return None
    path = Path(directory)
    header = LogHeader(LOG_VERSION, __version__, spec.run_id, spec.epoch, settings)
    try:
        path.mkdir(parents=True, exist_ok=True)
        return EventLogWriter(path / f"engine-{spec.run_id}-{spec.epoch}.log", header)
    except OSError as error:
        raise ConfigError(
            "event-log", f"cannot write to {path}: {error.strerror}", "name a writable directory"
        ) from error


def run_engine(spec: ProcessSpec, control: ControlChannel, board: Board) -> None:
    """Entry of the engine process. `spec.engine_address` is where the frontend connects."""
    started = time.monotonic()
    driver = EngineDriver(spec, control, board)
    # Everything alive now stays alive; cyclic collections of it would only add pauses.
    gc.collect()
    gc.freeze()
    board.beat(Role.ENGINE, time.monotonic_ns())
    control.send(ChildReady(Role.ENGINE, os.getpid(), time.monotonic() - started))
    driver.run()
