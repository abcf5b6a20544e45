"""The engine's one entry: `handle(event, now_ns) -> commands`.

Rules:
* Pure: no clock, no I/O, no randomness. The same events at the same times give the same commands, byte for byte.
* Every request that was not rejected ends exactly once: by a token with `finish`, by an error, or silently when it was
  aborted (whoever aborted it knows).
* A block returns to the pool only when no worker can touch it.
* Events about unknown requests, old incarnations or old batches are counted and ignored.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from msgspec import Struct

from colocate.core.books import Books
from colocate.core.decode_side import DecodeSide
from colocate.core.ledger import SwitchLedger
from colocate.core.outbox import Command
from colocate.core.policy import LoadView, choose_policy
from colocate.core.prefill_side import PrefillSide
from colocate.core.request import AfterLeave, Ending, Request, Stage
from colocate.core.settings import EngineSettings
from colocate.core.snapshot import snapshot
from colocate.core.stop import finish_after
from colocate.messages.client import Abort, Rejected, StateQuery, Submit
from colocate.messages.control import Drain, FrontendGone, PlanApplied, Tick, WorkerGone, WorkerHello
from colocate.messages.decode import StepReport
from colocate.messages.prefill import BatchFailed, PrefillCancelled, PrefillDone
from colocate.types import WORKER_ROLES, FinishReason, RequestId, Role

Event: TypeAlias = (
    Submit
    | Abort
    | StateQuery
    | PrefillDone
    | PrefillCancelled
    | BatchFailed
    | StepReport
    | WorkerHello
    | WorkerGone
    | FrontendGone
    | PlanApplied
    | Drain
    | Tick
)


class Engine:
    """All truth about requests, blocks and the plan. One owner, one thread."""

    def __init__(self, settings: EngineSettings) -> None:
        self.settings = settings
        self.books = Books(settings)
        self.prefill = PrefillSide(self.books)
        self.decode = DecodeSide(self.books)
        self.table = settings.plan_table()
        self.policy = choose_policy(settings.mode, settings.plan, self.table)
        self.plan = self.policy.first
        self.ledger = SwitchLedger(self.plan, settings.first_plan_seq)
        self.draining = False
        # A worker of the epoch before may write to any block until it said Hello here, or is dead.
        self._met: set[Role] = set()
        self._handlers: dict[type[Struct], Callable[[Any], None]] = {
            Submit: self._submit,
            Abort: self._abort,
            StateQuery: self._state_query,
            PrefillDone: self._prefill_done,
            PrefillCancelled: self.prefill.cancelled,
            BatchFailed: self._batch_failed,
            StepReport: self.decode.report,
            WorkerHello: self._worker_hello,
            WorkerGone: self._worker_gone,
            FrontendGone: self._frontend_gone,
            PlanApplied: self._plan_applied,
            Drain: self._drain,
            Tick: self._tick,
        }

    def handle(self, event: Event, now_ns: int) -> list[Command]:
        """Take one event, return what must be done about it, in order. O(rows the event names)."""
        books = self.books
        books.now_ns = now_ns
        self.ledger.account(now_ns, self.prefill.busy or self.decode.busy)
        self._handlers[type(event)](event)
        if self.decode.starved:
            self.decode.relieve(self._preempt_youngest)
        self.decode.fill()
        if len(self._met) == len(WORKER_ROLES):
            self.prefill.schedule(self.decode.num_rows, bool(self.decode.starved))
        self._decide_plan()
        return books.outbox.take()

    def first_commands(self) -> list[Command]:
        """Before any event: put the first plan on the board."""
        self.books.outbox.set_plan(self.ledger.seq, self.table.index_of(self.plan.name))
        return self.books.outbox.take()

    def _decide_plan(self) -> None:
        view = LoadView(self.prefill.busy, self.decode.busy, self.plan)
        target = self.policy.decide(view)
        if target is self.plan:
            return
        reason = f"prefill {'busy' if view.prefill_busy else 'idle'}, decode {'busy' if view.decode_busy else 'idle'}"
        switch = self.ledger.decide(self.plan, target, reason, self.books.now_ns)
        if not (self.prefill.online and self.decode.online):
            self.ledger.interrupt()
        self.books.outbox.set_plan(switch.seq, self.table.index_of(target.name))
        self.plan = target

    # -- requests --------------------------------------------------------------------------------------------------

    def _submit(self, message: Submit) -> None:
        books = self.books
        if message.request_id in books.requests:
            books.num_ignored += 1
            return
        request = Request(
            request_id=message.request_id,
            prompt_token_ids=message.prompt_token_ids,
            params=message.params,
            arrival_ns=message.arrival_ns,
            output_token_ids=list(message.output_token_ids),
            priority=message.priority,
        )
        rejected = self._refusal(request, message.resubmitted)
        if rejected is not None:
            books.outbox.send("frontend", rejected)
            return
        books.requests[request.request_id] = request
        books.queue.push(request)

    def _refusal(self, request: Request, resubmitted: bool) -> Rejected | None:
        books = self.books
        needed = books.pool.blocks_for(request.max_kv_tokens)
        if needed > books.pool.num_blocks:
            capacity = books.pool.num_blocks * books.pool.block_size
            reason = (
                f"prompt and max_tokens need {request.max_kv_tokens} tokens of KV, the whole pool holds {capacity}; "
                "ask for fewer tokens, or start the server with a larger --kv-memory"
            )
            return Rejected(request.request_id, 400, reason, 0.0)
        num_waiting = len(books.queue)
        retry_after_s = books.drain_rate.retry_after_s(num_waiting, books.now_ns)
        if resubmitted:
            return None
        if self.draining:
            return Rejected(request.request_id, 503, "the server is shutting down", retry_after_s)
        if num_waiting >= self.settings.max_queue:
            reason = f"the queue is full ({num_waiting} requests wait)"
            return Rejected(request.request_id, 429, reason, retry_after_s)
        return None

    def _abort(self, message: Abort) -> None:
        for request_id in message.request_ids:
            self._abort_one(request_id)

    def _abort_one(self, request_id: RequestId) -> None:
        request = self.books.requests.get(request_id)
        if request is None:
            return
        if request.stage is Stage.WAITING:
            self.books.queue.remove(request_id)
            self.books.forget(request)
        elif request.stage in (Stage.PREFILLING, Stage.CANCELLING):
            self.prefill.cancel(request, AfterLeave.FINISH)
        else:
            self.decode.leave(request, AfterLeave.FINISH)

    def _frontend_gone(self, message: FrontendGone) -> None:
        for request_id in list(self.books.requests):
            self._abort_one(request_id)

    def _state_query(self, message: StateQuery) -> None:
        self.books.outbox.send("frontend", snapshot(self, message.query_id))

    def _drain(self, message: Drain) -> None:
        self.draining = True

    def _tick(self, message: Tick) -> None:
        """Time alone changes nothing but the accounts, which `handle` has done."""

    # -- workers ---------------------------------------------------------------------------------------------------

    def _prefill_done(self, message: PrefillDone) -> None:
        for request, row in self.prefill.done(message):
            self._first_token(request, row.token_id, row.logprob)

    def _first_token(self, request: Request, token_id: int | None, logprob: Any) -> None:
        """The last chunk is done: the request goes on to decode, unless this token ends it."""
        books = self.books
        assert token_id is not None
        if not request.first_token_ns:
            request.first_token_ns = books.now_ns
        if request.params.max_tokens == 0:  # `echo` of a prompt: nothing is generated
            books.end(request, Ending(FinishReason.LENGTH))
            return
        finish = finish_after(request.params, len(request.output_token_ids), token_id)
        books.commit(request, token_id, logprob, finish, with_times=True)
        if finish is None:
            self.decode.hand_over(request)

    def _preempt_youngest(self) -> None:
        """Somebody must give up blocks: the youngest of all that hold some, in whichever phase."""
        prefilling = [request for request in self.prefill.running.values() if request.stage is Stage.PREFILLING]
        victim = max((*self.decode.preemptable(), *prefilling), key=lambda request: request.order)
        victim.num_preemptions += 1
        self.books.num_preemptions += 1
        if victim.stage is Stage.PREFILLING:
            self.prefill.cancel(victim, AfterLeave.REQUEUE)
        else:
            self.decode.preempt(victim)

    def _batch_failed(self, message: BatchFailed) -> None:
        if message.role == Role.PREFILL:
            self.prefill.failed(message)
        else:
            self.decode.failed(message)

    def _worker_hello(self, message: WorkerHello) -> None:
        self._met.add(message.role)
        if message.role is Role.PREFILL:
            self.prefill.online = True
        else:
            self.decode.online = True

    def _worker_gone(self, message: WorkerGone) -> None:
        self._met.add(message.role)
        self.ledger.lost(message.role)
        if message.role is Role.PREFILL:
            self.prefill.lost(message.kv_trusted)
        else:
            self.decode.lost(message.kv_trusted)

    def _plan_applied(self, message: PlanApplied) -> None:
        self.ledger.applied(message.role, message.seq, message.applied_ns)
