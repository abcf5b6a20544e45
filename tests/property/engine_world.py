"""A world for the engine under test: two workers that follow the message protocol, with nothing behind them.

Commands wait in each worker's inbox until the test lets the worker act, so any interleaving can be produced. Tokens are
a pure function of (request, output position), which is what makes "no token lost, doubled or changed" checkable. Every
write is checked against the pool: a worker may only write to a block that its request still holds.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from msgspec import Struct

from colocate.core.engine import Engine
from colocate.core.invariants import check_invariants
from colocate.core.outbox import Command
from colocate.core.settings import EngineSettings
from colocate.core.stop import finish_after
from colocate.messages.client import Abort, Outputs, Rejected, Submit
from colocate.messages.control import PoisonFailed, WorkerGone, WorkerHello
from colocate.messages.decode import DecodeRow, DecodeUpdate, StepReport, StepRow
from colocate.messages.prefill import (
    BatchFailed,
    PrefillBatch,
    PrefillCancel,
    PrefillCancelled,
    PrefillDone,
    PrefillRowDone,
)
from colocate.messages.sampling import SamplingParams
from colocate.types import FinishReason, Role


def token_of(request_id: int, position: int) -> int:
    return (request_id * 7919 + position * 104729) % 1000


@dataclass
class Row:
    join: DecodeRow
    block_table: list[int]
    context_len: int
    position: int


@dataclass
class Client:
    """What the frontend knows of one request."""

    submit: Submit
    tokens: list[int] = field(default_factory=list)
    finish: FinishReason | None = None
    rejected: bool = False
    aborted: bool = False


class World:
    def __init__(self, settings: EngineSettings) -> None:
        self.engine = Engine(settings)
        self.block_size = settings.block_size
        self.now_ns = 1_000
        self.clients: dict[int, Client] = {}
        self.convicted: list[int] = []
        self.prefill_inbox: deque[Struct] = deque()
        self.decode_inbox: deque[Struct] = deque()
        self.prefill_batches: deque[PrefillBatch] = deque()
        self.cancelled: set[tuple[int, int]] = set()
        self.rows: dict[tuple[int, int], Row] = {}
        self.online = {Role.PREFILL: False, Role.DECODE: False}
        self.incarnation = {Role.PREFILL: 0, Role.DECODE: 0}
        self.step = 0
        self.poison: set[int] = set()
        self.carry_out(self.engine.first_commands())

    # -- engine side -----------------------------------------------------------------------------------------------

    def handle(self, event: object) -> None:
        self.now_ns += 1_000
        commands = self.engine.handle(event, self.now_ns)  # type: ignore[arg-type]
        check_invariants(self.engine)
        self.carry_out(commands)

    def carry_out(self, commands: list[Command]) -> None:
        for command in commands:
            message = command.message
            if command.to == "prefill" and self.online[Role.PREFILL]:
                self.prefill_inbox.append(message)
            elif command.to == "decode" and self.online[Role.DECODE]:
                self.decode_inbox.append(message)
            elif isinstance(message, Outputs):
                self._outputs(message)
            elif isinstance(message, Rejected):
                self.clients[message.request_id].rejected = True
            elif isinstance(message, PoisonFailed):
                self.convicted.append(message.request_id)

    def _outputs(self, message: Outputs) -> None:
        for item in message.items:
            client = self.clients[item.request_id]
            assert client.finish is None, f"request {item.request_id} spoke after its end"
            assert not client.aborted, f"request {item.request_id} spoke after its abort"
            client.tokens += item.token_ids
            client.finish = item.finish
            assert item.finish is None or (item.times is not None and item.times.finished_ns > 0)

    # -- client side -----------------------------------------------------------------------------------------------

    def submit(self, num_prompt_tokens: int, max_tokens: int, already: int = 0) -> int:
        request_id = len(self.clients) + 1
        submit = Submit(
            request_id=request_id,
            prompt_token_ids=[token_of(request_id, -1 - index) for index in range(num_prompt_tokens)],
            params=SamplingParams(max_tokens=max_tokens),
            arrival_ns=self.now_ns,
            output_token_ids=[token_of(request_id, position) for position in range(already)],
            resubmitted=already > 0,
        )
        self.clients[request_id] = Client(submit, list(submit.output_token_ids))
        self.handle(submit)
        return request_id

    def abort(self, request_id: int) -> None:
        client = self.clients[request_id]
        if client.finish is None and not client.rejected:
            client.aborted = True
        self.handle(Abort([request_id]))

    # -- workers ---------------------------------------------------------------------------------------------------

    def start(self, role: Role) -> None:
        if not self.online[role]:
            self.online[role] = True
            self.incarnation[role] += 1
            self.handle(WorkerHello(role, self.incarnation[role], 1, 1))

    def kill(self, role: Role, kv_trusted: bool = True) -> None:
        if not self.online[role]:
            return
        self.online[role] = False
        if role is Role.PREFILL:
            self.prefill_inbox.clear()
            self.prefill_batches.clear()
            self.cancelled.clear()
        else:
            self.decode_inbox.clear()
            self.rows.clear()
        self.handle(WorkerGone(role, self.incarnation[role], "killed by the test", kv_trusted))

    def check_write(self, request_id: int, block_table: list[int], position: int) -> None:
        block = block_table[position // self.block_size]
        request = self.engine.books.requests.get(request_id)
        assert request is not None, f"a worker writes for request {request_id}, which ended"
        assert block in request.block_table, f"a worker writes to block {block}, not held by request {request_id}"

    def prefill_read(self) -> None:
        """The prefill worker reads one message."""
        if not self.prefill_inbox:
            return
        message = self.prefill_inbox.popleft()
        if isinstance(message, PrefillBatch):
            self.prefill_batches.append(message)
        elif isinstance(message, PrefillCancel):
            self.cancelled |= set(message.rows)
            self.handle(PrefillCancelled(message.rows))

    def prefill_run(self) -> None:
        """The prefill worker completes its oldest batch, or dies on a poisoned one."""
        if not self.prefill_batches:
            return
        batch = self.prefill_batches[0]
        rows = [row for row in batch.rows if (row.request_id, row.incarnation) not in self.cancelled]
        for row in rows:
            for position in range(row.start, row.start + len(row.token_ids)):
                self.check_write(row.request_id, row.block_table, position)
        if any(row.request_id in self.poison for row in rows):
            self.kill(Role.PREFILL)
            return
        self.prefill_batches.popleft()
        done = [
            PrefillRowDone(
                row.request_id,
                row.incarnation,
                token_of(row.request_id, row.sample.position) if row.sample is not None else None,
            )
            for row in rows
        ]
        self.handle(PrefillDone(batch.batch_id, done, self.now_ns, self.now_ns, 0))

    def prefill_fail(self) -> None:
        """The oldest batch raises; the worker lives."""
        if self.prefill_batches:
            batch = self.prefill_batches.popleft()
            rows = [(row.request_id, row.incarnation) for row in batch.rows]
            self.handle(BatchFailed(Role.PREFILL, rows, batch.batch_id, "boom"))

    def decode_turn(self) -> None:
        """The decode worker applies its inbox, runs one step and reports."""
        left: list[tuple[int, int]] = []
        while self.decode_inbox:
            message = self.decode_inbox.popleft()
            if isinstance(message, DecodeUpdate):
                self._apply(message, left)
        rows: list[StepRow] = []
        masked: list[tuple[int, int]] = []
        if any(request_id in self.poison for request_id, _ in self.rows):
            self.kill(Role.DECODE)
            return
        for key, row in list(self.rows.items()):
            if row.context_len >= len(row.block_table) * self.block_size:
                masked.append(key)
                continue
            self.check_write(key[0], row.block_table, row.context_len)
            token = token_of(key[0], row.position)
            finish = finish_after(row.join.sample.params, row.position, token)
            rows.append(StepRow(*key, token, finish))
            row.context_len += 1
            row.position += 1
            if finish is not None:
                del self.rows[key]
        if rows or left or masked:
            self.step += 1
            self.handle(StepReport(self.step, rows, left, masked))

    def decode_fail(self) -> None:
        """A step raises: its rows are dropped and named."""
        if self.rows:
            named = list(self.rows)
            self.rows.clear()
            self.handle(BatchFailed(Role.DECODE, named, -1, "boom"))

    def _apply(self, message: DecodeUpdate, left: list[tuple[int, int]]) -> None:
        for request_id, incarnation, blocks in message.grows:
            row = self.rows.get((request_id, incarnation))
            if row is not None:
                row.block_table += blocks
        for key in message.leaves:
            self.rows.pop(tuple(key), None)
            left.append(key)
        for join in message.joins:
            assert not any(request_id == join.request_id for request_id, _ in self.rows), "joined twice"
            self.rows[(join.request_id, join.incarnation)] = Row(
                join, list(join.block_table), join.context_len, join.sample.position
            )

    # -- the end ---------------------------------------------------------------------------------------------------

    def run_until_quiet(self, max_turns: int = 20_000) -> None:
        """Everything healthy from here on: all requests must end."""
        for role in (Role.PREFILL, Role.DECODE):
            self.start(role)
        for _ in range(max_turns):
            if not self.engine.books.requests:
                return
            for role in (Role.PREFILL, Role.DECODE):
                self.start(role)
            self.prefill_read()
            self.prefill_run()
            self.decode_turn()
        raise AssertionError(f"requests never ended: {list(self.engine.books.requests.values())[:3]}")

    def check_end(self) -> None:
        pool = self.engine.books.pool
        assert pool.num_free == pool.num_blocks
        assert pool.num_draining == 0
        for request_id, client in self.clients.items():
            expected = [token_of(request_id, position) for position in range(len(client.tokens))]
            assert client.tokens == expected, f"request {request_id}: tokens lost, doubled or changed"
            if not (client.aborted or client.rejected or client.finish is FinishReason.ERROR):
                assert client.finish is FinishReason.LENGTH, f"request {request_id} never ended"
                assert len(client.tokens) == client.submit.params.max_tokens
