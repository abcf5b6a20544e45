"""One simulated daemon: the real engine, its workers on a simulated device, and the messages between them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from msgspec import Struct

from colocate.core.engine import Engine, Event
from colocate.core.outbox import Command, SetPlanWord
from colocate.core.settings import EngineSettings
from colocate.messages.client import OutputItem, Outputs, Rejected, Submit
from colocate.messages.control import PlanApplied, Tick, WorkerHello
from colocate.messages.decode import StepReport
from colocate.sim.boundary import SimBoard, SimBoundary
from colocate.sim.clock import VirtualClock
from colocate.sim.decode_worker import SimDecodeWorker
from colocate.sim.hybrid_worker import SimHybridWorker
from colocate.sim.load import Load
from colocate.sim.prefill_worker import SimPrefillWorker
from colocate.sim.settings import SimSettings
from colocate.sim.standing_rows import StandingRows
from colocate.sim.station import Station
from colocate.sim.truth import DeviceTruth
from colocate.telemetry.event_log import EventLogWriter
from colocate.types import Role

TICK_NS = 100_000_000  # the live driver's


class Clients(Protocol):
    """Whoever sent the requests. `now_ns` is when the engine speaks."""

    num_open: int  # requests that have not ended, or not even arrived

    def heard(self, item: OutputItem, now_ns: int) -> None:
        """A first token, or an end."""
        ...

    def refused(self, message: Rejected) -> None: ...


class Replica:
    """Everything behind one engine. Shares its clock with whoever sends requests."""

    def __init__(
        self,
        clock: VirtualClock,
        settings: SimSettings,
        core: EngineSettings,
        number: int,
        load: Load,
        clients: Clients,
        log: EventLogWriter | None,
    ) -> None:
        """`number` tells this replica's device from the others'."""
        self.engine = Engine(core)
        self._clock = clock
        self._clients = clients
        self._log = log
        self._message_ns = int(settings.message_s * 1e9)
        self._board = SimBoard(core.total_units)
        self._receivers: dict[str, Callable[[Struct], None]] = {}
        self._bells: list[Callable[[None], None]] = []
        truth = DeviceTruth(
            settings.profile,
            settings.noise or settings.profile.noise,
            settings.truth_error,
            f"{settings.seed}/{number}",
        )
        self.rows = rows = StandingRows(core.block_size, load.token_of, tokens_vary=load.tokens_vary)
        roles = self._hybrid(settings, truth, rows, load) if core.mode == "chunked" else None
        roles = roles or self._two_workers(settings, truth, rows, load)
        self._carry_out(self.engine.first_commands(), True)
        for role in roles:
            self._handle(WorkerHello(role, 1, 1, 1))
        self._tick(None)

    def submit(self, message: Submit) -> None:
        """A client sends this now; the engine has it one message later."""
        self._clock.at(self._clock.now_ns + self._message_ns, self._handle, message)

    # -- workers ---------------------------------------------------------------------------------------------------

    def _two_workers(
        self, settings: SimSettings, truth: DeviceTruth, rows: StandingRows, load: Load
    ) -> tuple[Role, ...]:
        prefill, decode = (self._station(role, settings, truth) for role in (Role.PREFILL, Role.DECODE))
        SimPrefillWorker(prefill, load.token_of, lambda: decode.busy_units, settings.max_slice_ms / 1e3)
        SimDecodeWorker(decode, rows, lambda: prefill.busy_units, self._report)
        self._receivers = {"prefill": prefill.receive, "decode": decode.receive}
        return Role.PREFILL, Role.DECODE

    def _hybrid(self, settings: SimSettings, truth: DeviceTruth, rows: StandingRows, load: Load) -> tuple[Role, ...]:
        station = self._station(Role.HYBRID, settings, truth)
        SimHybridWorker(station, rows, load.token_of, self._report)
        self._receivers = {"prefill": station.receive, "decode": station.receive}
        return (Role.HYBRID,)

    def _station(self, role: Role, settings: SimSettings, truth: DeviceTruth) -> Station:
        boundary = SimBoundary(role, self._board, self._ring)
        turn_ns, switch_ns = int(settings.turn_s * 1e9), int(settings.switch_s * 1e9)
        station = Station(self._clock, truth, boundary, self._send, turn_ns, switch_ns)
        self._bells.append(station.ring)
        return station

    def _ring(self) -> None:
        """Wake workers that rest; one that works looks at the board at its next boundary anyway."""
        for bell in self._bells:
            self._clock.at(self._clock.now_ns + self._message_ns, bell, None)

    # -- messages --------------------------------------------------------------------------------------------------

    def _send(self, event: Event) -> None:
        """From a worker to the engine."""
        self._clock.at(self._clock.now_ns + self._message_ns, self._handle, event)

    def _report(self, report: StepReport, has_ended: bool) -> None:
        handle = self._handle if has_ended else self._handle_quietly
        self._clock.at(self._clock.now_ns + self._message_ns, handle, report)

    def _handle(self, event: Event) -> None:
        if isinstance(event, PlanApplied) and event.role is Role.HYBRID:  # one worker, both phases
            for role in (Role.PREFILL, Role.DECODE):
                self._handle(PlanApplied(role, event.seq, event.applied_ns))
            return
        now_ns = self._clock.now_ns
        commands = self.engine.handle(event, now_ns)
        if self._log is not None:
            self._log.record(now_ns, event, commands)
        self._carry_out(commands, True)

    def _handle_quietly(self, event: StepReport) -> None:
        """A step in which nobody ended: what the engine tells the clients is tokens alone, and nobody counts those."""
        now_ns = self._clock.now_ns
        commands = self.engine.handle(event, now_ns)
        if self._log is not None:
            self._log.record(now_ns, event, commands)
        self._carry_out(commands, False)

    def _carry_out(self, commands: list[Command], is_news: bool) -> None:
        for command in commands:
            message = command.message
            receiver = self._receivers.get(command.to)
            if receiver is not None:
                self._clock.at(self._clock.now_ns + self._message_ns, receiver, message)
            elif isinstance(message, SetPlanWord):
                self._board.seq, self._board.plan = message.seq, self.engine.table.plans[message.index]
                self._ring()
            elif is_news:
                self._tell(message)

    def _tell(self, message: Struct) -> None:
        if isinstance(message, Outputs):
            now_ns = self._clock.now_ns
            for item in message.items:
                if item.times is not None:
                    self._clients.heard(item, now_ns)
        elif isinstance(message, Rejected):
            self._clients.refused(message)

    def _tick(self, _: None) -> None:
        if self._clients.num_open:
            self._clock.at(self._clock.now_ns + TICK_NS, self._tick, None)
            self._handle(Tick())
