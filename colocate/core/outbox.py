"""Commands of one event, gathered and put in order: the plan word, then workers, then the frontend."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, TypeAlias, TypeVar

from msgspec import Struct

from colocate.messages.client import ControlReply, EngineState, OutputItem, Outputs, Rejected
from colocate.messages.control import PoisonFailed
from colocate.messages.decode import DecodeRow, DecodeUpdate
from colocate.messages.prefill import PrefillBatch, PrefillCancel
from colocate.types import BlockId, Incarnation, RequestId

T = TypeVar("T")

# A number takes at most 9 bytes in MessagePack, so a piece stays far below the 16 MiB limit of a frame.
MESSAGE_TOKENS = 400_000

Destination: TypeAlias = Literal["board", "prefill", "decode", "frontend", "supervisor"]


class SetPlanWord(Struct, frozen=True, tag=True):
    """Store the plan word on the board, one native 8-byte store, and ring both workers' bells."""

    seq: int
    index: int


CommandMessage: TypeAlias = (
    SetPlanWord
    | PrefillBatch
    | PrefillCancel
    | DecodeUpdate
    | Outputs
    | Rejected
    | EngineState
    | ControlReply
    | PoisonFailed
)


class Command(Struct, frozen=True, array_like=True):
    """One thing the driver must do: hand `message` to `to`. Commands are carried out in order."""

    to: Destination
    message: CommandMessage


def join_tokens(row: DecodeRow) -> int:
    """How many numbers a joining row carries: its block table, and the tokens that penalties read."""
    sample = row.sample
    num_biases = 2 * len(sample.params.logit_bias)
    return len(row.block_table) + len(sample.prompt_token_ids) + len(sample.output_token_ids) + num_biases


def output_tokens(item: OutputItem) -> int:
    """How many numbers an output carries, log-probabilities of a whole prompt among them."""
    if not item.logprobs and not item.prompt_logprobs:
        return 1
    return 1 + sum(2 * len(entry.top) + 1 for entry in (*item.prompt_logprobs, *item.logprobs))


def in_pieces(items: list[T], size_of: Callable[[T], int]) -> list[list[T]]:
    """The items in order, cut so that no piece is over MESSAGE_TOKENS unless one item alone is."""
    pieces: list[list[T]] = []
    room = 0
    for item in items:
        size = size_of(item)
        if not pieces or size > room:
            pieces.append([])
            room = MESSAGE_TOKENS
        pieces[-1].append(item)
        room -= size
    return pieces


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
            first, *more = in_pieces(self._joins, join_tokens) or [[]]
            commands.append(Command("decode", DecodeUpdate(first, self._leaves, self._grows)))
            commands += [Command("decode", DecodeUpdate(joins)) for joins in more]
            self._joins, self._leaves, self._grows = [], [], []
        if self._cancels:
            commands.append(Command("prefill", PrefillCancel(self._cancels)))
            self._cancels = []
        if self._others:
            commands += self._others
            self._others = []
        if self.outputs:
            commands += [Command("frontend", Outputs(items)) for items in in_pieces(self.outputs, output_tokens)]
            self.outputs = []
        return commands
