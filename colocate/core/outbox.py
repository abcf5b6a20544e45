"""Commands of one event, gathered and put in order: the plan word, then workers, then the frontend."""

from __future__ import annotations

from typing import Literal, TypeAlias

from msgspec import Struct

from colocate.messages.client import EngineState, OutputItem, Outputs, Rejected
from colocate.messages.control import PoisonFailed
from colocate.messages.decode import DecodeRow, DecodeUpdate
from colocate.messages.prefill import PrefillBatch, PrefillCancel
from colocate.types import BlockId, Incarnation, RequestId

Destination: TypeAlias = Literal["board", "prefill", "decode", "frontend", "supervisor"]


class SetPlanWord(Struct, frozen=True, tag=True):
    """Store the plan word on the board, one native 8-byte store, and ring both workers' bells."""

    seq: int
    index: int


CommandMessage: TypeAlias = (
    SetPlanWord | PrefillBatch | PrefillCancel | DecodeUpdate | Outputs | Rejected | EngineState | PoisonFailed
)


class Command(Struct, frozen=True, array_like=True):
    """One thing the driver must do: hand `message` to `to`. Commands are carried out in order."""

    to: Destination
    message: CommandMessage


class Outbox:
    """Filled while one event is handled, emptied by `take`."""

    __slots__ = ("_cancels", "_grows", "_joins", "_leaves", "_others", "_plan", "outputs")

    def __init__(self) -> None:
        self.outputs: list[OutputItem] = []
        self._joins: list[DecodeRow] = []
        self._leaves: list[tuple[RequestId, Incarnation]] = []
        self._grows: list[tuple[RequestId, Incarnation, list[BlockId]]] = []
        self._cancels: list[tuple[RequestId, Incarnation]] = []
        self._others: list[Command] = []
        self._plan: SetPlanWord | None = None

    def set_plan(self, seq: int, index: int) -> None:
        self._plan = SetPlanWord(seq, index)

    def join(self, row: DecodeRow) -> None:
        self._joins.append(row)

    def take_back_join(self, request_id: RequestId) -> bool:
        """True if the row's join was still here: the worker will never hear of it."""
        for index, row in enumerate(self._joins):
            if row.request_id == request_id:
                del self._joins[index]
                return True
        return False

    def leave(self, request_id: RequestId, incarnation: Incarnation) -> None:
        self._leaves.append((request_id, incarnation))

    def grow(self, request_id: RequestId, incarnation: Incarnation, blocks: list[BlockId]) -> None:
        self._grows.append((request_id, incarnation, blocks))

    def cancel_prefill(self, request_id: RequestId, incarnation: Incarnation) -> None:
        self._cancels.append((request_id, incarnation))

    def send(self, to: Destination, message: CommandMessage) -> None:
        self._others.append(Command(to, message))

    def drop_worker(self, to: Destination) -> None:
        """The worker is gone: what was meant for it is void."""
        self._others = [command for command in self._others if command.to != to]

    def take(self) -> list[Command]:
        commands: list[Command] = []
        if self._plan is not None:
            commands.append(Command("board", self._plan))
            self._plan = None
        if self._joins or self._leaves or self._grows:
            commands.append(Command("decode", DecodeUpdate(self._joins, self._leaves, self._grows)))
            self._joins, self._leaves, self._grows = [], [], []
        if self._cancels:
            commands.append(Command("prefill", PrefillCancel(self._cancels)))
            self._cancels = []
        if self._others:
            commands += self._others
            self._others = []
        if self.outputs:
            commands.append(Command("frontend", Outputs(self.outputs)))
            self.outputs = []
        return commands
