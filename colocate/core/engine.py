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

from colocate.config.roles import phases_of
from colocate.core.books import Books
from colocate.core.decode_side import DecodeSide
from colocate.core.ledger import SwitchLedger
from colocate.core.load import learn_from_step, load_view
from colocate.core.operator import Operator
from colocate.core.outbox import Command
from colocate.core.policy.controller import Controller
from colocate.core.prefill_scheduler import PrefillScheduler
from colocate.core.prefill_side import PrefillSide
from colocate.core.request import AfterLeave, Ending, Request, Stage
from colocate.core.settings import EngineSettings
from colocate.core.slo import SloBook
from colocate.core.snapshot import snapshot
from colocate.core.stop import finish_after
from colocate.messages.client import Abort, ChangeSlo, PinPlan, Rejected, StateQuery, Submit, UsePlans
from colocate.messages.control import Drain, FrontendGone, PlanApplied, Tick, WorkerGone, WorkerHello
from colocate.messages.decode import StepReport
from colocate.messages.prefill import BatchFailed, PrefillCancelled, PrefillDone
from colocate.types import WORKER_ROLES, FinishReason, RequestId, Role

Event: TypeAlias = (
    Submit
    | Abort
    | StateQuery
    | PinPlan
    | ChangeSlo
    | UsePlans
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
        self.scheduler = PrefillScheduler(self.books, self.prefill)
        self.decode = DecodeSide(self.books)
        self.table = settings.plan_table()
        self.slo = SloBook(settings.slo_classes, settings.default_slo_class)
        self.controller = Controller(settings, self.table, self.books.model)
        self.operator = Operator(self.controller, self.slo, self.table)
        self.plan = self.controller.first
        self.plan_since_ns = 0
        self.ledger = SwitchLedger(self.plan, settings.first_plan_seq)
        self.draining = False
        # A worker of the epoch before may write to any block until it said Hello here, or is dead.
        self._met: set[Role] = set()
        self._handlers: dict[type[Struct], Callable[[Any], None]] = {
            Submit: self._submit,
            Abort: self._abort,
            StateQuery: self._state_query,
            PinPlan: self._operate,
            ChangeSlo: self._operate,
            UsePlans: self._operate,
            PrefillDone: self._prefill_done,
            PrefillCancelled: self.prefill.cancelled,
            BatchFailed: self._batch_failed,
            StepReport: self._step_report,
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
        self.decode.fill(self.prefill.running, bool(self.prefill.batches))
        if len(self._met) == len(WORKER_ROLES):
            self._foresee()
            self.scheduler.schedule(self.decode.num_rows, bool(self.decode.starved), self.decode.rows)
        self._decide_plan()
        return books.outbox.take()

    def _foresee(self) -> None:
        """What prefill work costs depends on the plan, and on whether decode works beside it."""
        prefill, plan = self.prefill, self.plan
        if not plan.prefill_units:  # lent to decode: the first forward brings back a split, or something like it
            plan = self.controller.first
        prefill.plan_seq, prefill.plan_applied_ns = self.ledger.seq, self.ledger.prefill_applied_ns
        prefill.prospects.units = plan.prefill_units or self.settings.total_units
        prefill.prospects.peer_units = plan.decode_units if self.decode.busy else 0
        prefill.prospects.num_rows, prefill.prospects.sum_context = self.decode.num_rows, self.decode.sum_context

    def first_commands(self) -> list[Command]:
        """Before any event: put the first plan on the board."""
        self.books.outbox.set_plan(self.ledger.seq, self.table.index_of(self.plan.name))
        return self.books.outbox.take()

    def _decide_plan(self) -> None:
        target = self.controller.decide(load_view(self))
        if target is self.plan:
            return
        switch = self.ledger.decide(self.plan, target, self.controller.reason, self.books.now_ns)
        if not (self.prefill.online and self.decode.online):
            self.ledger.interrupt()
        self.books.outbox.set_plan(switch.seq, self.table.index_of(target.name))
        self.plan = target
        self.plan_since_ns = self.books.now_ns

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
            slo=self.slo.of(message),
            cache_salt=message.cache_salt,
        )
        request.tpot_ns = int((request.slo.tpot_s or 0.0) * 1e9)
        request.itl_ns = int((request.slo.itl_s or 0.0) * 1e9)
        rejected = self._refusal(request, message.resubmitted)
        if rejected is not None:
            books.outbox.send("frontend", rejected)
            return
        books.requests[request.request_id] = request
        books.memory.expect(request)
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

    def _operate(self, message: PinPlan | ChangeSlo | UsePlans) -> None:
        self.books.outbox.send("frontend", self.operator.obey(message))

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
        self.scheduler.admission.preempted(self.books.now_ns)
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
        for role in phases_of(message.role):
            self._met.add(role)
            self._side(role).online = True

    def _worker_gone(self, message: WorkerGone) -> None:
        for role in phases_of(message.role):
            self._met.add(role)
            self.ledger.lost(role)
            self._side(role).lost()
        if not message.kv_trusted:
            self.decode.distrust()
            self.prefill.distrust()
            self.books.memory.distrust()

    def _side(self, role: Role) -> PrefillSide | DecodeSide:
        return self.prefill if role is Role.PREFILL else self.decode

    def _step_report(self, message: StepReport) -> None:
        learn_from_step(self, message)
        self.decode.report(message)

    def _plan_applied(self, message: PlanApplied) -> None:
        self.ledger.applied(message.role, message.seq, message.applied_ns)
