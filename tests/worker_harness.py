"""A worker loop of the emulated device in this process, turned step by step over a memory channel."""

from __future__ import annotations

from dataclasses import dataclass, field

from msgspec import Struct

from colocate.core.plan import PlanTable, build_plan_table
from colocate.device.emulated.faults import FaultInjector, parse_fault, poison_tokens
from colocate.device.emulated.partition import EmulatedPartition
from colocate.device.emulated.timing import PhaseTimer
from colocate.device.emulated.tokens import TokenDraw
from colocate.messages.control import EngineAt, WorkerHello
from colocate.messages.decode import DecodeRow
from colocate.messages.prefill import PrefillRow
from colocate.messages.sampling import SampleState, SamplingParams
from colocate.transport.board import Board
from colocate.transport.control import ControlChannel
from colocate.transport.memory_channel import MemoryChannel, memory_pair
from colocate.transport.vocabulary import ENGINE_TO, FROM_WORKER
from colocate.types import Role
from colocate.worker.at_once import AtOnce
from colocate.worker.boundary import Boundary
from colocate.worker.decode_loop import DecodeLoop
from colocate.worker.emulated_executor import EmulatedDecodeExecutor, EmulatedHybridExecutor, EmulatedPrefillExecutor
from colocate.worker.engine_link import EngineLink
from colocate.worker.executor import DecodeExecutor, PrefillExecutor
from colocate.worker.hybrid_loop import HybridLoop
from colocate.worker.prefill_loop import PrefillLoop
from colocate.worker.progress import Progress
from colocate.worker.slice_pace import SlicePace
from colocate.worker.standing_batch import StandingBatch
from colocate.worker.station import Station, Turn

TOTAL_UNITS = 12
BLOCK_SIZE = 4
VOCAB_SIZE = 4096


class StepClock:
    """Time that moves ten milliseconds at every look, so that orders are read at every turn."""

    def __init__(self) -> None:
        self.now_ns = 1_000_000_000

    def __call__(self) -> int:
        self.now_ns += 10_000_000
        return self.now_ns


@dataclass
class Bench:
    """The far ends of a worker's lines: what the engine and the supervisor hold."""

    role: Role
    faults: tuple[str, ...] = ()
    high_water: int = 1024
    prefill: PrefillExecutor | None = None  # default: the emulated one
    decode: DecodeExecutor | None = None
    max_slice_s: float = 0.0  # one layer per slice
    table: PlanTable = field(default_factory=lambda: build_plan_table(TOTAL_UNITS))

    def __post_init__(self) -> None:
        self.board = Board.create()
        self.clock = StepClock()
        self.supervisor, control = ControlChannel.pair()
        self.control = control
        self.engines: dict[str, MemoryChannel] = {}
        self.link = EngineLink(self.role, 1, control, self.board, self._open)
        self.partition = EmulatedPartition(TOTAL_UNITS)
        parsed = [parse_fault(text) for text in self.faults]
        injector = FaultInjector(parsed, self.role, 1, self.link.inject)
        timer = PhaseTimer(self.role.value, None, lambda: 0)
        draw = TokenDraw(VOCAB_SIZE, reserved=poison_tokens(parsed))
        self.loop: PrefillLoop | DecodeLoop | HybridLoop
        if self.role is Role.PREFILL:
            prefill = self.prefill or EmulatedPrefillExecutor(draw, timer, injector, poison_tokens(parsed))
            self.loop = PrefillLoop(self._station(prefill.units_changed), prefill, SlicePace(self.max_slice_s))
        elif self.role is Role.DECODE:
            decode = EmulatedDecodeExecutor(draw, timer, injector)
            steps = self.decode or AtOnce(decode.step, decode.units_changed)
            self.loop = DecodeLoop(self._station(steps.units_changed), steps, StandingBatch(BLOCK_SIZE))
        else:
            hybrid = EmulatedHybridExecutor(
                EmulatedPrefillExecutor(draw, timer, injector, poison_tokens(parsed)),
                EmulatedDecodeExecutor(draw, timer, injector),
                timer,
            )
            forwards = AtOnce(hybrid.step, hybrid.units_changed)
            self.loop = HybridLoop(self._station(forwards.units_changed), forwards, StandingBatch(BLOCK_SIZE))
        self.link.meet(EngineAt(1, "engine-1"))
        self.set_plan("shared" if self.role is Role.HYBRID else "p8d4")

    def _station(self, units_changed: object) -> Station:
        assert callable(units_changed)
        boundary = Boundary(self.role, self.table, self.board, self.partition, units_changed, self.clock)
        progress = Progress(self.role, self.board, self.clock, factor=20.0, floor_s=10.0)
        return Station(self.link, boundary, progress, self.clock)

    def _open(self, address: str) -> MemoryChannel:
        worker, engine = memory_pair(ENGINE_TO[self.role], FROM_WORKER[self.role], high_water=self.high_water)
        self.engines[address] = engine
        return worker

    def set_plan(self, name: str) -> None:
        self.board.set_plan(self.board.plan().seq + 1, self.table.index_of(name))

    def say(self, message: Struct, engine: str = "engine-1") -> None:
        assert self.engines[engine].send(message)

    def heard(self, engine: str = "engine-1") -> list[Struct]:
        """Everything the worker said since the last call."""
        messages = []
        while (message := self.engines[engine].recv()) is not None:
            messages.append(message)
        return messages

    def turn(self, times: int = 1) -> Turn:
        turn = Turn.WAITING
        for _ in range(times):
            turn = self.loop.turn()
        return turn

    def settle(self, engine: str = "engine-1") -> list[Struct]:
        """Turn until the worker has nothing to do; what it said, without its greeting."""
        for _ in range(10_000):
            turn = self.loop.turn()
            if turn is not Turn.WORKED:
                break
        else:
            raise AssertionError("the worker never came to rest")
        return [message for message in self.heard(engine) if not isinstance(message, WorkerHello)]

    def close(self) -> None:
        self.link.close()
        for engine in self.engines.values():
            engine.close()
        self.supervisor.close()
        self.control.close()
        self.board.close()


def prefill_row(request_id: int, num_tokens: int = 6, *, incarnation: int = 1, **fields: object) -> PrefillRow:
    values: dict[str, object] = {
        "token_ids": list(range(100, 100 + num_tokens)),
        "start": 0,
        "block_table": list(range(-(-num_tokens // BLOCK_SIZE))),
        "sample": SampleState(SamplingParams(max_tokens=8, seed=request_id), 0),
    }
    return PrefillRow(request_id=request_id, incarnation=incarnation, **(values | fields))  # type: ignore[arg-type]


def decode_row(
    request_id: int,
    *,
    incarnation: int = 1,
    max_tokens: int = 1000,
    context_len: int = 6,
    num_blocks: int = 100,
    last_token_id: int = 5,
    **params: object,
) -> DecodeRow:
    settings: dict[str, object] = {"max_tokens": max_tokens, "seed": request_id}
    sample = SampleState(SamplingParams(**(settings | params)), 1)  # type: ignore[arg-type]
    blocks = list(range(num_blocks))
    return DecodeRow(request_id, incarnation, last_token_id, context_len, blocks, sample)
