"""The decode phase of the engine: the standing batch as the engine sees it, blocks grown ahead, preemption, loss."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Container

from colocate.config.roles import process_of
from colocate.core.books import Books
from colocate.core.prefill_side import POISON_MESSAGE
from colocate.core.request import NEVER, AfterLeave, Ending, Request, Stage
from colocate.messages.control import PoisonFailed
from colocate.messages.decode import DecodeRow, StepReport, StepRow
from colocate.messages.prefill import BatchFailed
from colocate.types import FinishReason, Incarnation, RequestId, Role

# A starving row forces a preemption only this close to its last slot: until then another row may end by itself.
PREEMPT_MARGIN_TOKENS = 2


class DecodeSide:
    """`ready` holds READY requests, `rows` DECODING and LEAVING ones, `starved` the rows that wait for a block."""

    __slots__ = (
        "_books",
        "_itl_targets_ns",
        "_tpot_targets_ns",
        "next_due_ns",
        "online",
        "ready",
        "rows",
        "starved",
        "sum_context",
        "suspects",
    )

    def __init__(self, books: Books) -> None:
        self._books = books
        self.ready: dict[RequestId, Request] = {}
        self.rows: dict[RequestId, Request] = {}
        self.starved: dict[RequestId, Request] = {}
        self.suspects = books.suspects[Role.DECODE]
        self.online = False
        self.sum_context = 0  # tokens of KV that one step over `rows` reads
        self.next_due_ns = NEVER  # when the first row's next token is late, as of the last report
        self._tpot_targets_ns: Counter[int] = Counter()  # of the requests in `rows`
        self._itl_targets_ns: Counter[int] = Counter()

    @property
    def busy(self) -> bool:
        return self.online and bool(self.rows)

    @property
    def num_rows(self) -> int:
        return len(self.rows) + len(self.ready)

    @property
    def tpot_target_ns(self) -> int:
        """The smallest mean time per token promised in the standing batch; NEVER where nobody has one. O(classes)."""
        return min(self._tpot_targets_ns, default=NEVER)

    @property
    def itl_target_ns(self) -> int:
        """The same of the 99th percentile of gaps."""
        return min(self._itl_targets_ns, default=NEVER)

    # -- joining ---------------------------------------------------------------------------------------------------

    def hand_over(self, request: Request) -> None:
        """A prefilled request waits for `fill`, which follows in the same event."""
        request.move(Stage.READY, self._books.now_ns)
        self.ready[request.request_id] = request

    def fill(self, prefilling: Container[RequestId], is_prefill_busy: bool) -> None:
        """Join whoever may join: everybody, or the one suspect on trial. `prefilling` are the requests in prefill.

        Where both phases share their fate a trial waits for the forward that is under way, and the next one waits for
        the trial: it must not be convicted of what somebody else's prompt did.
        """
        if not self.online or not self.ready:
            return
        trial = self.suspects.trial
        if trial in self.rows or (self._books.settings.shares_fate and trial in prefilling):
            return
        candidates = [request for request in self.ready.values() if request.request_id in self.suspects]
        if not candidates:
            for request in list(self.ready.values()):
                self._join(request)
            return
        if self.rows:
            for request in list(self.rows.values()):
                if request.stage is Stage.DECODING:
                    self.leave(request, AfterLeave.PARK)
        elif not (is_prefill_busy and self._books.settings.shares_fate):
            suspect = min(candidates, key=lambda request: request.order)
            self.suspects.trial = suspect.request_id
            self._join(suspect)

    def _join(self, request: Request) -> None:
        del self.ready[request.request_id]
        request.incarnation += 1
        request.move(Stage.DECODING, self._books.now_ns)
        self._enter(request)
        self._set_grow_at(request)
        if request.num_computed >= request.grow_at:
            self._grow(request, announce=False)
        self._books.outbox.join(
            DecodeRow(
                request_id=request.request_id,
                incarnation=request.incarnation,
                last_token_id=request.output_token_ids[-1],
                context_len=request.num_computed,
                block_table=list(request.block_table),
                sample=request.sample_state(),
            )
        )

    def _enter(self, request: Request) -> None:
        self.rows[request.request_id] = request
        self.sum_context += request.num_computed
        for target_ns, targets in ((request.tpot_ns, self._tpot_targets_ns), (request.itl_ns, self._itl_targets_ns)):
            if target_ns:
                targets[target_ns] += 1

    def _exit(self, request: Request) -> None:
        del self.rows[request.request_id]
        self.sum_context -= request.num_computed
        for target_ns, targets in ((request.tpot_ns, self._tpot_targets_ns), (request.itl_ns, self._itl_targets_ns)):
            if target_ns:
                targets[target_ns] -= 1
                if not targets[target_ns]:
                    del targets[target_ns]

    # -- growing ---------------------------------------------------------------------------------------------------

    def _set_grow_at(self, request: Request) -> None:
        """Ask for the next block when the row enters its last one; never beyond what it can need."""
        capacity = len(request.block_table) * self._books.pool.block_size
        if capacity >= request.max_kv_tokens:
            request.grow_at = NEVER
        else:
            request.grow_at = max(capacity - self._books.pool.block_size, 0)

    def _grow(self, request: Request, *, announce: bool = True) -> bool:
        """One block more, or the row starves. True if it got the block."""
        memory = self._books.memory
        if not memory.can_allocate(1) or (self.starved and request.request_id not in self.starved):
            self.starved[request.request_id] = request
            return False
        blocks = memory.allocate(1)
        request.block_table += blocks
        self.starved.pop(request.request_id, None)
        self._set_grow_at(request)
        if announce:
            self._books.outbox.grow(request.request_id, request.incarnation, blocks)
        return True

    def relieve(self, preempt_youngest: Callable[[], None]) -> None:
        """Feed starving rows, oldest first; where one is about to run dry, the youngest request that holds blocks goes.

        Draining blocks count as freed soon: while there are any, nobody else is preempted.
        """
        memory = self._books.memory
        while self.starved:
            request = min(self.starved.values(), key=lambda starving: starving.order)
            if memory.can_allocate(1):
                self._grow(request)
                continue
            if memory.pool.num_draining or not any(self._runs_dry(starving) for starving in self.starved.values()):
                return
            preempt_youngest()

    def _runs_dry(self, request: Request) -> bool:
        capacity = len(request.block_table) * self._books.pool.block_size
        return capacity - request.num_computed <= PREEMPT_MARGIN_TOKENS

    def preemptable(self) -> list[Request]:
        """Whoever holds blocks in this phase and is not on its way out."""
        running = [request for request in self.rows.values() if request.stage is Stage.DECODING]
        return [*running, *self.ready.values()]

    def preempt(self, victim: Request) -> None:
        if victim.stage is Stage.READY:
            del self.ready[victim.request_id]
            self._books.requeue(victim)
        else:
            self.leave(victim, AfterLeave.REQUEUE)

    # -- reports ---------------------------------------------------------------------------------------------------

    def report(self, message: StepReport) -> None:
        """One completed step. Tokens of a row that is leaving still count: they were drawn before it left."""
        rows, books = self.rows, self._books
        commit, trial = books.commit, self.suspects.trial
        due_ns, num_stepped = NEVER, 0
        for step_row in message.rows:
            request = rows.get(step_row.request_id)
            if request is None or request.incarnation != step_row.incarnation:
                books.num_ignored += 1
                continue
            request.num_computed += 1
            num_stepped += 1
            if step_row.finish is not None or request.after_leave is not None:
                self._last_tokens(request, step_row)
                continue
            commit(request, step_row.token_id, step_row.logprob, None)
            if request.num_computed >= request.grow_at:
                self._grow(request)
            if request.tpot_ns:
                own_ns = request.first_token_ns + len(request.output_token_ids) * request.tpot_ns
                if own_ns < due_ns:
                    due_ns = own_ns
            if request.request_id == trial:
                self.suspects.progressed(request)
        self.sum_context += num_stepped
        if message.rows:
            self.next_due_ns = due_ns
        self._acknowledged(message.left)

    def _acknowledged(self, left: list[tuple[RequestId, Incarnation]]) -> None:
        """The worker touches these rows no more."""
        for request_id, incarnation in left:
            request = self.rows.get(request_id)
            if request is not None and request.incarnation == incarnation and request.stage is Stage.LEAVING:
                self._let_go(request)

    def _last_tokens(self, request: Request, step_row: StepRow) -> None:
        """A token of a row that ended with it, or that is on its way out. An aborted request says nothing more."""
        books = self._books
        is_aborted = request.after_leave is AfterLeave.FINISH
        if step_row.finish is not None:
            self._finished(request)
        if not is_aborted:
            books.commit(request, step_row.token_id, step_row.logprob, step_row.finish)
        elif step_row.finish is not None:
            books.forget(request)

    def _finished(self, request: Request) -> None:
        """The worker dropped the row by itself: a leave under way is settled, its acknowledgement will be ignored."""
        self._exit(request)
        self.starved.pop(request.request_id, None)
        if request.after_leave is not None:
            self._books.stop_draining(request)

    # -- leaving ---------------------------------------------------------------------------------------------------

    def leave(self, request: Request, after: AfterLeave) -> None:
        """Take a request out of this phase; its blocks drain until the worker acknowledges."""
        books = self._books
        if request.stage is Stage.READY:
            del self.ready[request.request_id]
            books.forget(request)
            return
        if request.stage is Stage.LEAVING:
            books.change_after_leave(request, after)
            return
        request.move(Stage.LEAVING, books.now_ns)
        self.starved.pop(request.request_id, None)
        books.start_draining(request, after)
        books.outbox.leave(request.request_id, request.incarnation)

    def _let_go(self, request: Request) -> None:
        self._exit(request)
        after = self._books.stop_draining(request)
        if after is AfterLeave.PARK:
            request.move(Stage.READY, self._books.now_ns)
            self.ready[request.request_id] = request
        elif after is AfterLeave.REQUEUE:
            self._books.requeue(request)
        else:
            self._books.forget(request)

    # -- loss ------------------------------------------------------------------------------------------------------

    def lost(self) -> None:
        """The worker is dead and reaped. Rows keep their confirmed KV and join the next worker where they stood."""
        self.online = False
        self._books.outbox.drop_worker("decode")
        self._give_up_rows(list(self.rows.values()), POISON_MESSAGE, charged_to_worker=True)

    def distrust(self) -> None:
        """KV may be garbage: whoever waits for a row is computed again. Rows of a worker that lives follow when it is
        gone as well: a memory fault hits both."""
        for request in list(self.ready.values()):
            del self.ready[request.request_id]
            self._books.requeue(request)

    def failed(self, message: BatchFailed) -> None:
        """A step raised: the worker lives and has dropped the rows of that step."""
        named: list[tuple[RequestId, Incarnation]] = message.rows
        rows = [self.rows[request_id] for request_id, _ in named if request_id in self.rows]
        current = [request for request in rows if (request.request_id, request.incarnation) in set(named)]
        self._give_up_rows(current, message.error, charged_to_worker=False)

    def _give_up_rows(self, rows: list[Request], error: str, *, charged_to_worker: bool) -> None:
        books = self._books
        for request in rows:
            self.starved.pop(request.request_id, None)
            if request.stage is Stage.LEAVING:
                self._let_go(request)
                continue
            convicted = self.suspects.died(request, Role.DECODE)
            self._exit(request)
            if convicted:
                if charged_to_worker:
                    process = process_of(Role.DECODE, books.settings.mode)
                    books.outbox.send("supervisor", PoisonFailed(process, request.request_id))
                books.end(request, Ending(FinishReason.ERROR, error))
            else:
                request.move(Stage.READY, books.now_ns)
                self.ready[request.request_id] = request
