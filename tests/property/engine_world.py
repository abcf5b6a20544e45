"""A world for the engine under test: two workers that follow the message protocol, with nothing behind them.

Commands wait in each worker's inbox until the test lets the worker act, so any interleaving can be produced. Tokens are
a pure function of (request, output position), which is what makes "no token lost, doubled or changed" checkable. Every
write is checked against the pool: a worker may only write to a block that its request still holds and that nobody else
reads. What is written is remembered as a hash of all tokens up to there, so every read shows whether the KV in a block,
found in the prefix tree or not, is that of the request's own tokens.
"""

from __future__ import annotations

import itertools
from collections import deque
from dataclasses import dataclass, field

from msgspec import Struct

from colocate.core.engine import Engine
from colocate.core.invariants import check_invariants
from colocate.core.outbox import Command, SetPlanWord
from colocate.core.request import Stage
from colocate.core.settings import EngineSettings
from colocate.core.stop import finish_after
from colocate.messages.client import Abort, ControlReply, Outputs, PinPlan, Rejected, Submit
from colocate.messages.control import PlanApplied, PoisonFailed, WorkerGone, WorkerHello
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
        self.is_gpu = settings.one_fate  # a poisoned kernel faults the device: both workers die, and KV is not trusted
        self.kv: dict[tuple[int, int], int] = {}  # (block, offset) -> what is written there
        self.is_hybrid = settings.mode == "chunked"
        self.words: dict[int, int] = {}  # plan words by sequence number
        self.replies: list[ControlReply] = []
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
            elif isinstance(message, SetPlanWord):
                assert message.seq == max(self.words, default=message.seq - 1) + 1, "plan words are numbered in order"
                assert self.engine.table.plans[message.index] is self.engine.plan, "a plan that nobody decided"
                self.words[message.seq] = message.index
            elif isinstance(message, ControlReply):
                self.replies.append(message)
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

    def submit(
        self,
        num_prompt_tokens: int,
        max_tokens: int,
        already: int = 0,
        *,
        after: int | None = None,
        slo_class: str = "",
        salt: str = "",
        priority: int = 0,
    ) -> int:
        """A request of its own tokens, or the next turn of a conversation: `after` is the request it goes on from."""
        request_id = len(self.clients) + 1
        head = self.sequence(after) if after in self.clients else []
        own = [token_of(request_id, -1 - index) for index in range(num_prompt_tokens)]
        submit = Submit(
            request_id=request_id,
            prompt_token_ids=[*head, *own],
            params=SamplingParams(max_tokens=max_tokens),
            arrival_ns=self.now_ns,
            output_token_ids=[token_of(request_id, position) for position in range(already)],
            resubmitted=already > 0,
            slo_class=slo_class,
            cache_salt=salt,
            priority=priority,
        )
        self.clients[request_id] = Client(submit, list(submit.output_token_ids))
        self.handle(submit)
        return request_id

    def sequence(self, request_id: int) -> list[int]:
        """Prompt and output so far."""
        client = self.clients[request_id]
        return [*client.submit.prompt_token_ids, *client.tokens]

    def _hashes(self, request_id: int) -> list[int]:
        """What belongs at each position: a hash of all tokens up to there, under the request's salt."""
        salt = hash(self.clients[request_id].submit.cache_salt)
        tokens = self.sequence(request_id)
        return list(itertools.accumulate(tokens, lambda so_far, token: hash((so_far, token)), initial=salt))[1:]

    def pin(self, plan: str | None) -> None:
        self.handle(PinPlan(1, plan))

    def abort(self, request_id: int) -> None:
        client = self.clients[request_id]
        if client.finish is None and not client.rejected:
            client.aborted = True
        self.handle(Abort([request_id]))

    # -- workers ---------------------------------------------------------------------------------------------------

    def start(self, role: Role) -> None:
        if self.online[role]:
            return
        roles = (Role.PREFILL, Role.DECODE) if self.is_hybrid else (role,)
        for each in roles:
            self.online[each] = True
            self.incarnation[each] += 1
        self.handle(WorkerHello(Role.HYBRID if self.is_hybrid else role, self.incarnation[role], 1, 1))

    def kill(self, role: Role, kv_trusted: bool = True) -> None:
        if not self.online[role]:
            return
        roles = (Role.PREFILL, Role.DECODE) if self.is_hybrid else (role,)
        for each in roles:
            self._bury(each)
        if not kv_trusted:
            self.kv.clear()
        dead = Role.HYBRID if self.is_hybrid else role
        self.handle(WorkerGone(dead, self.incarnation[role], "killed by the test", kv_trusted))

    def poisoned(self, role: Role) -> None:
        """A worker runs a poison request."""
        if not self.is_gpu:
            self.kill(role)
            return
        gone = [(each, self.incarnation[each]) for each in (Role.PREFILL, Role.DECODE) if self.online[each]]
        for each, _ in gone:
            self._bury(each)
        self.kv.clear()
        for each, incarnation in gone:  # both are reaped before the engine hears of either
            self.handle(WorkerGone(each, incarnation, "killed by the test", False))

    def _bury(self, role: Role) -> None:
        self.online[role] = False
        if role is Role.PREFILL:
            self.prefill_inbox.clear()
            self.prefill_batches.clear()
            self.cancelled.clear()
        else:
            self.decode_inbox.clear()
            self.rows.clear()

    def apply_plan(self) -> None:
        """Both workers put the plan word in force."""
        seq = max(self.words)
        for role in (Role.PREFILL, Role.DECODE):
            if self.online[role]:
                self.handle(PlanApplied(role, seq, self.now_ns))

    def write(self, request_id: int, block_table: list[int], positions: range) -> None:
        """KV of these positions, after reading that of all positions before them."""
        request = self.engine.books.requests.get(request_id)
        assert request is not None, f"a worker writes for request {request_id}, which ended"
        in_tree = set(self.engine.books.memory.tree.blocks())
        hashes = self._hashes(request_id)
        # A chunk behind one that failed may still run before its cancel is read: nobody uses what it makes.
        reads = range(positions.start) if request.stage is not Stage.CANCELLING else range(0)
        for position in reads:
            block, offset = block_table[position // self.block_size], position % self.block_size
            assert self.kv.get((block, offset)) == hashes[position], f"request {request_id} reads foreign KV"
        for position in positions:
            block, offset = block_table[position // self.block_size], position % self.block_size
            assert block in request.block_table, f"a worker writes to block {block}, not held by request {request_id}"
            assert block not in in_tree, f"a worker writes to block {block}, which the prefix tree holds"
            self.kv[(block, offset)] = hashes[position]

    def prefill_read(self) -> None:
        """The prefill worker reads one message."""
        if not self.prefill_inbox:
            return
        message = self.prefill_inbox.popleft()
        if isinstance(message, PrefillBatch) and message.urgent:
            self.prefill_batches.appendleft(message)
        elif isinstance(message, PrefillBatch):
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
            end = row.start + len(row.token_ids)
            assert row.token_ids == self.sequence(row.request_id)[row.start : end]
            self.write(row.request_id, row.block_table, range(row.start, end))
        if any(row.request_id in self.poison for row in rows):
            self.poisoned(Role.PREFILL)
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
        self.handle(PrefillDone(batch.batch_id, done, self.now_ns, self.now_ns + 900, self.engine.ledger.seq))

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
            self.poisoned(Role.DECODE)
            return
        for key, row in list(self.rows.items()):
            if row.context_len >= len(row.block_table) * self.block_size:
                masked.append(key)
                continue
            self.write(key[0], row.block_table, range(row.context_len, row.context_len + 1))
            token = token_of(key[0], row.position)
            finish = finish_after(row.join.sample.params, row.position, token)
            rows.append(StepRow(*key, token, finish))
            row.context_len += 1
            row.position += 1
            if finish is not None:
                del self.rows[key]
        if rows or left or masked:
            self.step += 1
            times = (self.now_ns, self.now_ns + 900, self.engine.ledger.seq)
            self.handle(StepReport(self.step, rows, left, masked, *times))

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
        memory = self.engine.books.memory
        assert memory.num_available == memory.pool.num_blocks, "every block is free, or cached and in nobody's use"
        assert memory.pool.num_draining == 0
        assert not self.engine.books.queue.num_tokens and not self.engine.prefill.num_remaining
        assert not self.engine.decode.sum_context
        for request_id, client in self.clients.items():
            expected = [token_of(request_id, position) for position in range(len(client.tokens))]
            assert client.tokens == expected, f"request {request_id}: tokens lost, doubled or changed"
            if not (client.aborted or client.rejected or client.finish is FinishReason.ERROR):
                assert client.finish is FinishReason.LENGTH, f"request {request_id} never ended"
                assert len(client.tokens) == client.submit.params.max_tokens
