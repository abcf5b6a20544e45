"""The prefill phase of the engine: chunks and batches in flight, cancellation, loss of the worker.

What is prefilled next is decided in `prefill_scheduler.py`.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from colocate.config.roles import process_of
from colocate.core.books import Books
from colocate.core.prospects import Prospects
from colocate.core.queues.lazy_heap import LazyHeap
from colocate.core.request import NEVER, AfterLeave, Ending, Request, Stage
from colocate.messages.control import PoisonFailed
from colocate.messages.prefill import (
    BatchFailed,
    PrefillBatch,
    PrefillCancelled,
    PrefillDone,
    PrefillRow,
    PrefillRowDone,
)
from colocate.types import FinishReason, Role

POISON_MESSAGE = "this request was in flight, the last time alone, each time a worker failed; it is not retried again"


@dataclass(slots=True)
class Chunk:
    """Positions `start .. end - 1` of a request in one batch; `incarnation` as it was when the batch was sent."""

    request: Request
    incarnation: int
    start: int
    end: int

    @property
    def num_tokens(self) -> int:
        return self.end - self.start

    @property
    def pairs(self) -> float:
        return self.num_tokens * (self.start + self.num_tokens / 2)


@dataclass(slots=True)
class BatchInFlight:
    """`peer_units` is what decode worked on when it was sent; `due_ns` when it should be done."""

    batch_id: int
    chunks: list[Chunk]
    urgent: bool
    peer_units: int
    due_ns: int
    was_set_aside: bool = False


class PrefillSide:
    """`running` holds PREFILLING and CANCELLING requests in order of admission. Batches are done in the order sent,
    but for urgent ones, which overtake. `begun` holds those of `running` that have tokens left to send."""

    __slots__ = (
        "_books",
        "_due",
        "batches",
        "begun",
        "num_remaining",
        "num_sent",
        "num_set_aside",
        "online",
        "plan_applied_ns",
        "plan_seq",
        "prospects",
        "remaining_pairs",
        "running",
        "suspects",
    )

    def __init__(self, books: Books) -> None:
        self._books = books
        self.num_sent = 0  # batches so far; the last one's id
        self.batches: deque[BatchInFlight] = deque()
        self.running: dict[int, Request] = {}
        self.begun: dict[int, Request] = {}
        self._due = LazyHeap()  # first-token deadlines of `running`
        self.suspects = books.suspects[Role.PREFILL]
        self.online = False
        self.prospects = Prospects(books)
        self.num_remaining = 0  # tokens of `running` not computed yet
        self.remaining_pairs = 0.0  # the same as sum(n * (r + n / 2))
        self.num_set_aside = 0
        self.plan_seq = 0  # asked for now
        self.plan_applied_ns = 0  # since when it is in force here; 0: since before anything was sent

    @property
    def busy(self) -> bool:
        return bool(self.batches)

    def earliest_deadline_ns(self, now_ns: int) -> int | None:
        """The earliest first-token deadline of `running` that has not passed; None where there is none. O(log n)."""
        while (first := self._due.first()) is not None and first[0] < now_ns:
            self._due.discard(first[1])
        return None if first is None else first[0]

    # -- sending ---------------------------------------------------------------------------------------------------

    def admit(self, request: Request) -> None:
        """It has its blocks and is in no queue any more."""
        books = self._books
        request.incarnation += 1
        request.move(Stage.PREFILLING, books.now_ns)
        if not request.scheduled_ns:
            request.scheduled_ns = books.now_ns
        books.drain_rate.left_queue(books.now_ns)
        self.running[request.request_id] = self.begun[request.request_id] = request
        if request.ttft_deadline_ns != NEVER:
            self._due.put((request.ttft_deadline_ns, request.request_id))
        num_left = request.num_prefill_tokens - request.num_computed
        self.num_remaining += num_left
        self.remaining_pairs += num_left * (request.num_computed + num_left / 2)

    def chunk(self, request: Request, budget: int) -> Chunk:
        """The next tokens of an admitted request, at most `budget`. They count as scheduled."""
        start = request.num_scheduled
        end = min(start + min(budget, self.prospects.max_chunk_tokens(start)), request.num_prefill_tokens)
        request.num_scheduled = end
        if end == request.num_prefill_tokens:
            del self.begun[request.request_id]
        request.num_chunks_in_flight += 1
        return Chunk(request, request.incarnation, start, end)

    def send(self, chunks: list[Chunk], *, urgent: bool = False) -> None:
        """One forward to the worker. An urgent one runs between two slices of the forward under way."""
        books, prospects = self._books, self.prospects
        self.num_sent += 1
        batch_id = self.num_sent
        predicted_s = prospects.forward_s(
            sum(chunk.num_tokens for chunk in chunks), sum(chunk.pairs for chunk in chunks)
        )
        begins_ns = books.now_ns if urgent or not self.batches else max(self.batches[-1].due_ns, books.now_ns)
        due_ns = begins_ns + int(predicted_s * 1e9)
        batch = BatchInFlight(batch_id, chunks, urgent, prospects.peer_units, due_ns)
        if urgent:
            for other in self.batches:
                other.due_ns += int(predicted_s * 1e9)
                other.was_set_aside = True
            self.num_set_aside += 1
            self.batches.appendleft(batch)
        else:
            self.batches.append(batch)
        books.outbox.send("prefill", PrefillBatch(batch_id, [self._row(chunk) for chunk in chunks], urgent))

    def _row(self, chunk: Chunk) -> PrefillRow:
        request, end = chunk.request, chunk.end
        is_last = end == request.num_prefill_tokens
        num_top = request.params.prompt_logprobs if not request.output_token_ids else None
        return PrefillRow(
            request_id=request.request_id,
            incarnation=chunk.incarnation,
            token_ids=request.prefill_tokens(chunk.start, end),
            start=chunk.start,
            block_table=request.block_table[: self._books.pool.blocks_for(end)],
            sample=request.sample_state() if is_last else None,
            prompt_logprobs=num_top,
            next_token_id=None if is_last or num_top is None else request.token_at(end),
        )

    # -- reports ---------------------------------------------------------------------------------------------------

    def done(self, message: PrefillDone) -> list[tuple[Request, PrefillRowDone]]:
        """Take a batch off. Returns the requests whose last chunk this was: they leave `running`."""
        rows = {(row.request_id, row.incarnation): row for row in message.rows}
        finished: list[tuple[Request, PrefillRowDone]] = []
        batch, landed = self._land(message.batch_id)
        if batch is not None:
            self._learn(batch, message)
        for chunk in landed:
            request = chunk.request
            row = rows.get((request.request_id, request.incarnation))
            if row is None:
                self._books.num_ignored += 1  # a worker may not leave out a row that nobody cancelled
                self.cancel(request, AfterLeave.REQUEUE)
                continue
            request.num_computed = chunk.end
            self.num_remaining -= chunk.num_tokens
            self.remaining_pairs -= chunk.pairs
            self._books.memory.remember(request, self._books.now_ns)
            request.prompt_logprobs += row.prompt_logprobs
            if row.token_id is not None:
                self._forget(request)
                self.suspects.prefilled(request)
                finished.append((request, row))
        return finished

    def _learn(self, batch: BatchInFlight, message: PrefillDone) -> None:
        """Correct the latency model by a forward that ran wholly under the plan asked for now, with decode beside it as
        when it was sent. One that was set aside tells nothing."""
        model, prospects = self._books.model, self.prospects
        is_one_plan = message.plan_seq == self.plan_seq and message.started_ns >= self.plan_applied_ns
        is_as_sent = not batch.was_set_aside and bool(batch.peer_units) == bool(prospects.peer_units)
        if model is None or not (is_one_plan and is_as_sent and message.rows) or self._books.settings.mode == "chunked":
            return
        num_tokens, pairs = sum(chunk.num_tokens for chunk in batch.chunks), sum(chunk.pairs for chunk in batch.chunks)
        model.observe(
            "prefill", prospects.forward_s(num_tokens, pairs), (message.finished_ns - message.started_ns) / 1e9
        )

    def _land(self, batch_id: int) -> tuple[BatchInFlight | None, list[Chunk]]:
        """The worker is through with this batch: the chunks whose requests go on. Cancelled ones are let go."""
        batch = next((batch for batch in self.batches if batch.batch_id == batch_id), None)
        if batch is None:
            self._books.num_ignored += 1
            return None, []
        self.batches.remove(batch)
        landed: list[Chunk] = []
        for chunk in batch.chunks:
            request = chunk.request
            if chunk.incarnation != request.incarnation or request.request_id not in self.running:
                continue
            request.num_chunks_in_flight -= 1
            if request.stage is not Stage.CANCELLING:
                landed.append(chunk)
            elif request.num_chunks_in_flight == 0:
                self._let_go(request)
        return batch, landed

    # -- leaving ---------------------------------------------------------------------------------------------------

    def _forget(self, request: Request) -> None:
        """It leaves this phase; what was left of it to compute is no load any more."""
        del self.running[request.request_id]
        self.begun.pop(request.request_id, None)
        self._due.discard(request.request_id)
        num_left = request.num_prefill_tokens - request.num_computed
        self.num_remaining -= num_left
        self.remaining_pairs -= num_left * (request.num_computed + num_left / 2)
        if not self.running:
            self.remaining_pairs = 0.0  # rounding must not pile up

    def cancel(self, request: Request, after: AfterLeave) -> None:
        """Stop prefilling this request: at once if the worker does not know it, else when it has let go."""
        if request.stage is Stage.CANCELLING:
            self._books.change_after_leave(request, after)
            return
        request.move(Stage.CANCELLING, self._books.now_ns)
        self.begun.pop(request.request_id, None)
        self._books.start_draining(request, after)
        if request.num_chunks_in_flight == 0:
            self._let_go(request)
        else:
            self._books.outbox.cancel_prefill(request.request_id, request.incarnation)

    def cancelled(self, message: PrefillCancelled) -> None:
        for request_id, incarnation in message.rows:
            request = self.running.get(request_id)
            if request is not None and request.incarnation == incarnation and request.stage is Stage.CANCELLING:
                self._let_go(request)

    def _let_go(self, request: Request) -> None:
        self._forget(request)
        if self._books.stop_draining(request) is AfterLeave.REQUEUE:
            self._books.requeue(request)
        else:
            self._books.forget(request)

    # -- loss ------------------------------------------------------------------------------------------------------

    def failed(self, message: BatchFailed) -> None:
        """A forward raised. The KV of its rows is not to be trusted; chunks behind it are cancelled."""
        for chunk in self._land(message.batch_id)[1]:
            if self.suspects.died(chunk.request, Role.PREFILL):
                self._convict(chunk.request, message.error, charged_to_worker=False)
            else:
                self.cancel(chunk.request, AfterLeave.REQUEUE)

    def lost(self) -> None:
        """The worker is dead and reaped. Chunks that were done stay done; the others are sent again."""
        books = self._books
        self.online = False
        books.outbox.drop_worker("prefill")
        # All that were sent, not the first batch alone: a worker that dies at once takes its last report with it, and
        # the batch it died in then looks like the next one. Innocents lose nothing: only who dies alone is convicted.
        in_flight = {chunk.request.request_id: chunk.request for batch in self.batches for chunk in batch.chunks}
        self.batches.clear()
        self.begun.clear()
        for request in list(self.running.values()):
            request.num_chunks_in_flight = 0
            request.num_scheduled = request.num_computed
            if request.stage is Stage.CANCELLING:
                self._let_go(request)
            else:
                request.incarnation += 1
                self.begun[request.request_id] = request
        for request in in_flight.values():
            if request.stage is Stage.PREFILLING and self.suspects.died(request, Role.PREFILL):
                self._convict(request, POISON_MESSAGE, charged_to_worker=True)

    def distrust(self) -> None:
        """KV may be garbage: whatever no worker holds any more is computed again."""
        if not self.online:
            for request in list(self.running.values()):
                self._forget(request)
                self._books.requeue(request)

    def _convict(self, request: Request, error: str, *, charged_to_worker: bool) -> None:
        if charged_to_worker:
            process = process_of(Role.PREFILL, self._books.settings.mode)
            self._books.outbox.send("supervisor", PoisonFailed(process, request.request_id))
        self._books.tell_end(request, Ending(FinishReason.ERROR, error))
        self.cancel(request, AfterLeave.FINISH)  # its blocks must wait for the worker; the client need not
