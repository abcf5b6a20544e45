"""The prefill phase of the engine: admission, chunks, batches in flight, cancellation, loss of the worker."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

from colocate.core.books import Books
from colocate.core.request import AfterLeave, Ending, Request, Stage
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


@dataclass(slots=True)
class BatchInFlight:
    batch_id: int
    chunks: list[Chunk]


class PrefillSide:
    """`running` holds PREFILLING and CANCELLING requests in order of admission. Batches are done in the order sent."""

    __slots__ = ("_books", "_next_batch_id", "batches", "online", "running", "suspects")

    def __init__(self, books: Books) -> None:
        self._books = books
        self._next_batch_id = 1
        self.batches: deque[BatchInFlight] = deque()
        self.running: dict[int, Request] = {}
        self.suspects = books.suspects[Role.PREFILL]
        self.online = False

    @property
    def busy(self) -> bool:
        return bool(self.batches)

    def schedule(self, num_decode_rows: int, decode_starves: bool) -> None:
        """Send batches until the worker has as many as it may hold. O(batch)."""
        while self.online and len(self.batches) < self._books.settings.prefill_depth:
            chunks = self._choose(num_decode_rows, decode_starves)
            if not chunks:
                return
            self._send(chunks)

    def _choose(self, num_decode_rows: int, decode_starves: bool) -> list[Chunk]:
        """The chunks of the next forward. A suspect on trial runs alone, with nothing else in flight."""
        if self.suspects:
            if self.batches:
                return []
            suspect = self.suspects.oldest()
            assert suspect is not None
            admitted = suspect.stage is Stage.PREFILLING or (
                suspect.stage is Stage.WAITING and self._admit(suspect, num_decode_rows, decode_starves)
            )
            if admitted:
                self.suspects.trial = suspect.request_id
                return [self._chunk(suspect, self._books.settings.max_num_batched_tokens)]
        budget = self._books.settings.max_num_batched_tokens
        chunks: list[Chunk] = []
        for request in self.running.values():
            if budget <= 0:
                return chunks
            if (
                request.stage is Stage.PREFILLING
                and request.num_scheduled < request.num_prefill_tokens
                and request.request_id not in self.suspects
            ):
                chunks.append(self._chunk(request, budget))
                budget -= chunks[-1].end - chunks[-1].start
        while budget > 0:
            waiting = self._books.queue.peek()
            if waiting is None or waiting.request_id in self.suspects:
                return chunks
            if not self._admit(waiting, num_decode_rows, decode_starves):
                return chunks
            chunks.append(self._chunk(waiting, budget))
            budget -= chunks[-1].end - chunks[-1].start
        return chunks

    def _admit(self, request: Request, num_decode_rows: int, decode_starves: bool) -> bool:
        """Give a waiting request blocks for all its tokens, if rows and blocks allow. One free block per decode row
        stays back, so that admission does not cause the next preemption."""
        books = self._books
        num_rows = len(self.running) + num_decode_rows
        if num_rows >= books.settings.max_num_seqs or decode_starves:
            return False
        needed = books.pool.blocks_for(request.num_prefill_tokens)
        reserve = min(num_rows, books.settings.num_blocks // 10)
        if not books.pool.can_allocate(needed + reserve):
            return False
        books.queue.remove(request.request_id)
        request.block_table = books.pool.allocate(needed)
        request.incarnation += 1
        request.move(Stage.PREFILLING, books.now_ns)
        if not request.scheduled_ns:
            request.scheduled_ns = books.now_ns
        books.drain_rate.left_queue(books.now_ns)
        self.running[request.request_id] = request
        return True

    def _chunk(self, request: Request, budget: int) -> Chunk:
        start = request.num_scheduled
        end = min(start + budget, request.num_prefill_tokens)
        request.num_scheduled = end
        request.num_chunks_in_flight += 1
        return Chunk(request, request.incarnation, start, end)

    def _send(self, chunks: list[Chunk]) -> None:
        batch_id = self._next_batch_id
        self._next_batch_id += 1
        self.batches.append(BatchInFlight(batch_id, chunks))
        self._books.outbox.send("prefill", PrefillBatch(batch_id, [self._row(chunk) for chunk in chunks]))

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

    def done(self, message: PrefillDone) -> list[tuple[Request, PrefillRowDone]]:
        """Take the oldest batch off. Returns the requests whose last chunk this was: they leave `running`."""
        rows = {(row.request_id, row.incarnation): row for row in message.rows}
        finished: list[tuple[Request, PrefillRowDone]] = []
        for chunk in self._land(message.batch_id):
            request = chunk.request
            row = rows.get((request.request_id, request.incarnation))
            if row is None:
                self._books.num_ignored += 1  # a worker may not leave out a row that nobody cancelled
                self.cancel(request, AfterLeave.REQUEUE)
                continue
            request.num_computed = chunk.end
            request.prompt_logprobs += row.prompt_logprobs
            if row.token_id is not None:
                del self.running[request.request_id]
                if request.request_id in self.suspects:
                    self.suspects.clear(request)
                finished.append((request, row))
        return finished

    def _land(self, batch_id: int) -> list[Chunk]:
        """The worker is through with this batch, its oldest unless it never got it: the chunks whose requests go on.
        Cancelled ones are let go."""
        batch = next((batch for batch in self.batches if batch.batch_id == batch_id), None)
        if batch is None:
            self._books.num_ignored += 1
            return []
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
        return landed

    def cancel(self, request: Request, after: AfterLeave) -> None:
        """Stop prefilling this request: at once if the worker does not know it, else when it has let go."""
        if request.stage is Stage.CANCELLING:
            self._books.change_after_leave(request, after)
            return
        request.move(Stage.CANCELLING, self._books.now_ns)
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
        del self.running[request.request_id]
        if self._books.stop_draining(request) is AfterLeave.REQUEUE:
            self._books.requeue(request)
        else:
            self._books.forget(request)

    def failed(self, message: BatchFailed) -> None:
        """A forward raised. The KV of its rows is not to be trusted; chunks behind it are cancelled."""
        for chunk in self._land(message.batch_id):
            if self.suspects.died(chunk.request):
                self._convict(chunk.request, message.error, charged_to_worker=False)
            else:
                self.cancel(chunk.request, AfterLeave.REQUEUE)

    def lost(self, kv_trusted: bool) -> None:
        """The worker is dead and reaped. Chunks that were done stay done; the others are sent again."""
        books = self._books
        self.online = False
        books.outbox.drop_worker("prefill")
        in_flight = [chunk.request for chunk in self.batches[0].chunks] if self.batches else []
        self.batches.clear()
        for request in list(self.running.values()):
            request.num_chunks_in_flight = 0
            request.num_scheduled = request.num_computed
            if request.stage is Stage.CANCELLING:
                self._let_go(request)
            else:
                request.incarnation += 1
        for request in in_flight:
            if request.stage is Stage.PREFILLING and self.suspects.died(request):
                self._convict(request, POISON_MESSAGE, charged_to_worker=True)
        if not kv_trusted:
            self._requeue_all(list(self.running.values()))

    def _requeue_all(self, requests: Iterable[Request]) -> None:
        for request in requests:
            del self.running[request.request_id]
            self._books.requeue(request)

    def _convict(self, request: Request, error: str, *, charged_to_worker: bool) -> None:
        if charged_to_worker:
            self._books.outbox.send("supervisor", PoisonFailed(Role.PREFILL, request.request_id))
        self._books.tell_end(request, Ending(FinishReason.ERROR, error))
        self.cancel(request, AfterLeave.FINISH)  # its blocks must wait for the worker; the client need not
