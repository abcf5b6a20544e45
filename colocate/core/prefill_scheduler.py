"""What is prefilled next: who is admitted, which chunks make the next forward, and which prompt may interrupt one."""

from __future__ import annotations

from collections.abc import Container

from colocate.core.admission import choose_admission
from colocate.core.books import Books
from colocate.core.prefill_side import Chunk, PrefillSide
from colocate.core.request import NEVER, Request, Stage
from colocate.types import RequestId

# An urgent prompt may hold up a forward under way for at most this share of what that forward still needs.
URGENT_SHARE = 0.5
# Forwards that may go ahead of a prompt that has begun, urgent ones included.
MAX_OVERTAKEN = 64


class PrefillScheduler:
    """Reads the queue and the prefill side, and hands the side what to send."""

    __slots__ = (
        "_books",
        "_decode_starves",
        "_is_tried_in_decode",
        "_judged",
        "_num_decode_rows",
        "_prospects",
        "_side",
        "admission",
        "is_blocked",
    )

    def __init__(self, books: Books, side: PrefillSide) -> None:
        self._books = books
        self._side = side
        self._prospects = side.prospects
        self.admission = choose_admission(books.settings.admission)
        self._num_decode_rows = 0  # as of this event
        self._decode_starves = False
        self._is_tried_in_decode = False  # mode `chunked`: a suspect runs alone in the other phase
        self._judged = (0, 0)  # how many had come, and how many batches had been sent, when nobody was urgent last
        self.is_blocked = False  # somebody waits, prefill could take it, and blocks or rows are lacking

    def schedule(self, num_decode_rows: int, decode_starves: bool, decoding: Container[RequestId]) -> None:
        """Send batches until the worker has as many as it may hold, and one more if a prompt is urgent. O(batch)."""
        self.is_blocked = False
        self._num_decode_rows, self._decode_starves = num_decode_rows, decode_starves
        self._is_tried_in_decode = self._side.suspects.trial in decoding
        num_rows = len(self._side.running) + num_decode_rows
        self._prospects.num_reserved = min(num_rows, self._books.settings.num_blocks // 10)
        if not self._side.online:
            return
        while len(self._side.batches) < self._books.settings.prefill_depth:
            chunks = self._choose(self._most())
            if not chunks:
                return
            self._side.send(chunks)
        self._interrupt_if_urgent()

    def _most(self) -> int:
        """Tokens the next forward may hold. In mode `chunked` the standing batch rides along and takes its share."""
        if self._books.settings.mode == "chunked":
            return max(self._books.settings.max_num_batched_tokens - self._num_decode_rows, 1)
        return self._prospects.max_chunk_tokens(0)

    def _allowed(self, most: int) -> int:
        """How many of those may be tokens of prompts that have not begun."""
        books, side = self._books, self._side
        waiting_tokens = books.queue.num_tokens + side.num_remaining
        is_idle = not side.batches and not self._num_decode_rows
        return self.admission.budget(most, waiting_tokens, books.memory.available_share, books.now_ns, is_idle)

    def _choose(self, most: int) -> list[Chunk]:
        """The chunks of the next forward: first a prompt that outranks those begun, then those, then who waits.

        Prompts that have begun hold their blocks already: throttling them would only keep the blocks longer.
        """
        side = self._side
        if side.suspects:
            if side.batches or self._is_tried_in_decode:
                return []
            trial = self._trial(most)
            if trial is not None:
                return [trial]
        begun = [request for request in side.begun.values() if request.request_id not in side.suspects]
        chunks: list[Chunk] = []
        allowed = self._allowed(most)
        ahead = self._admit_some(chunks, allowed, begun)
        room = most - ahead
        if ahead:
            for request in begun:
                request.num_overtaken += 1
        for request in begun:
            if room > 0:
                chunks.append(side.chunk(request, room))
                room -= chunks[-1].num_tokens
        self._admit_some(chunks, min(room, allowed - ahead), None)
        return chunks

    def _admit_some(self, chunks: list[Chunk], room: int, begun: list[Request] | None) -> int:
        """Take from the queue, in its order, into a forward with this much room; with `begun`, only who outranks those.
        Returns how many tokens that makes."""
        taken = 0
        if not self._has_row:  # before the queue is asked, which some disciplines answer by looking at a whole window
            self.is_blocked = len(self._books.queue) > 0
            return 0
        while taken < room and (waiting := self._next_waiting()) is not None:
            if (begun is not None and not self._outranks(waiting, begun)) or not self._admit(waiting):
                break
            chunks.append(self._side.chunk(waiting, room - taken))
            taken += chunks[-1].num_tokens
        return taken

    def _trial(self, most: int) -> Chunk | None:
        """A suspect runs alone, with nothing else in flight."""
        suspects = self._side.suspects
        suspect = suspects.oldest()
        assert suspect is not None
        if suspect.stage is Stage.WAITING and not self._admit(suspect):
            return None
        if suspect.stage is not Stage.PREFILLING:
            return None
        suspects.trial = suspect.request_id
        return self._side.chunk(suspect, most)

    def _next_waiting(self) -> Request | None:
        waiting = self._books.queue.peek(self._prospects)
        return None if waiting is None or waiting.request_id in self._side.suspects else waiting

    def _outranks(self, waiting: Request, begun: list[Request]) -> bool:
        """Whether it should go ahead of prompts that have begun: it will be in time there, it is due before every one
        of them, and each can still be in time behind it. Only deadlines give that right."""
        deadline_ns = waiting.ttft_deadline_ns
        if deadline_ns == NEVER or not begun:
            return False
        end_ns = self._books.now_ns + int(self._prospects.predicted_s(waiting) * 1e9)
        return end_ns <= deadline_ns and all(
            self._can_follow(request, deadline_ns, end_ns + int(self._left_s(request) * 1e9)) for request in begun
        )

    def _can_follow(self, request: Request, deadline_ns: int, done_ns: int) -> bool:
        """Whether this request is due after `deadline_ns`, not before `done_ns` when it would be done, and has not been
        overtaken too often: it holds blocks, and without a deadline of its own everybody would go ahead of it."""
        own_ns = request.ttft_deadline_ns
        is_in_time = own_ns > deadline_ns and (own_ns == NEVER or done_ns <= own_ns)
        return is_in_time and request.num_overtaken < MAX_OVERTAKEN

    def _left_s(self, request: Request) -> float:
        num_left = request.num_prefill_tokens - request.num_scheduled
        return self._prospects.forward_s(num_left, num_left * (request.num_scheduled + num_left / 2))

    def _interrupt_if_urgent(self) -> None:
        """Layer-boundary preemption: a prompt that would miss its first token behind the forwards in flight, and whose
        detour they can afford, runs between two of their slices (in mode `chunked`: between two forwards)."""
        if self._books.model is None or self._side.suspects:
            return
        queue, side = self._books.queue, self._side
        seen = (queue.num_entered, side.num_sent)
        if seen == self._judged or not self._has_row:
            return
        waiting, most = queue.first_due(self._books.now_ns), self._most()  # wherever the discipline has put it
        if waiting is None or not self._may_interrupt(waiting):
            self._judged = seen  # time alone makes nobody urgent: who would be in time behind the others still will be
            return
        if waiting.num_uncached <= self._allowed(most) and self._admit(waiting):
            for batch in side.batches:
                for chunk in batch.chunks:
                    chunk.request.num_overtaken += 1
            side.send([side.chunk(waiting, most)], urgent=True)

    def _may_interrupt(self, waiting: Request) -> bool:
        batches, now_ns = self._side.batches, self._books.now_ns
        deadline_ns, own_ns = waiting.ttft_deadline_ns, int(self._prospects.predicted_s(waiting) * 1e9)
        done_ns = max(batches[-1].due_ns, now_ns)
        is_lost_behind, is_saved_ahead = done_ns + own_ns > deadline_ns, now_ns + own_ns <= deadline_ns
        if not (is_lost_behind and is_saved_ahead) or own_ns > URGENT_SHARE * (done_ns - now_ns):
            return False
        if any(batch.urgent for batch in batches):
            return False
        chunks = (chunk for batch in batches for chunk in batch.chunks)
        return all(self._can_follow(chunk.request, deadline_ns, done_ns + own_ns) for chunk in chunks)

    @property
    def _has_row(self) -> bool:
        """Whether another request may run at all: a row is left, and no row waits for a block."""
        num_rows = len(self._side.running) + self._num_decode_rows
        return num_rows < self._books.settings.max_num_seqs and not self._decode_starves

    def _admit(self, request: Request) -> bool:
        """Give a waiting request blocks for all its tokens, if rows and blocks allow. One free block per decode row
        stays back, so that admission does not cause the next preemption."""
        books = self._books
        reserve = min(len(self._side.running) + self._num_decode_rows, books.settings.num_blocks // 10)
        if not self._has_row or not books.memory.admit(request, reserve, books.now_ns):
            self.is_blocked = True
            return False
        books.queue.remove(request.request_id)
        self._side.admit(request)
        return True
