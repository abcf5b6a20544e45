"""Earliest deadline first among those that fit the KV pool now and can still be in time."""

from __future__ import annotations

from colocate.core.queues.due import due_ns, is_meetable
from colocate.core.queues.lazy_heap import Key
from colocate.core.queues.seniority import Seniority
from colocate.core.queues.tally import Tally
from colocate.core.queues.waiting import QueueView
from colocate.core.queues.window import Window
from colocate.core.request import Request
from colocate.types import RequestId

WINDOW = 32
MAX_OVERTAKEN = 256  # a queue of default length goes by


class MemoryAwareDeadlineQueue(Tally):
    """Looks at the `window` earliest due (see `due_ns`) of the first priority. In this order, the first that fits:

    1. those that can be in time, by due time;
    2. those due later than now that cannot, as predicted on the share prefill has now: with more of it they might;
    3. those whose deadline has passed, by arrival.

    Nobody is overtaken more than `max_overtaken` times (see `Seniority`): then the oldest is named whether it fits or
    not, and the pool drains until it does. So a large request is bypassed, but not for ever. Where nothing fits, the
    first of this order is named, and waits.
    """

    __slots__ = ("_due", "_late", "_named", "_seniority", "_turn")

    def __init__(self, window: int = WINDOW, max_overtaken: int = MAX_OVERTAKEN) -> None:
        super().__init__()
        self._due = Window(window)  # keys (priority, due, arrival, id)
        self._late = Window(window)  # keys (priority, arrival, id)
        self._seniority = Seniority(max_overtaken)
        self._named: RequestId | None = None
        self._turn = 0  # whose hint is refreshed next

    @property
    def max_overtaken(self) -> int:
        return self._seniority.max_overtaken

    def push(self, request: Request) -> None:
        self.enter(request)
        self._seniority.enter(request)
        self._due.put((request.priority, due_ns(request), request.arrival_ns, request.request_id))

    def remove(self, request_id: RequestId) -> None:
        request = self.leave(request_id)
        served = request_id == self._named
        self._seniority.leave(request, served=served)
        if not self._due.discard(request_id):
            self._late.discard(request_id)
        if served:
            self._named = None

    def peek(self, view: QueueView) -> Request | None:
        """O(window), and O(log n) once for each request whose deadline passes."""
        oldest_id = self._seniority.oldest_id()
        if oldest_id is None:
            return None
        chosen = self.members[oldest_id]
        if not self._seniority.must_serve_oldest(chosen.priority):
            self._give_up_passed(view.now_ns)
            self._refresh_one(view)
            chosen = self._choose(chosen.priority, view)
        self._named = chosen.request_id
        return chosen

    def _give_up_passed(self, now_ns: int) -> None:
        """Move those that missed their deadline to the late ones. Implicit deadlines are no promise to be missed."""
        passed = [key for key in self._due.keys if key[1] < now_ns and self._has_missed(key[-1], now_ns)]
        while passed:
            for key in passed:
                self._due.discard(key[-1])
                self._late.put(self.members[key[-1]].order)
            passed = [key for key in self._due.keys if key[1] < now_ns and self._has_missed(key[-1], now_ns)]

    def _has_missed(self, request_id: RequestId, now_ns: int) -> bool:
        return not is_meetable(self.members[request_id], now_ns, 0.0)

    def _refresh_one(self, view: QueueView) -> None:
        if self._due.keys and self.may_refresh(view.now_ns):
            self._turn = (self._turn + 1) % len(self._due.keys)
            self.refresh(self.members[self._due.keys[self._turn][-1]], view)

    def _choose(self, priority: int, view: QueueView) -> Request:
        doubtful: list[Request] = []
        blocked: Request | None = None  # first of the order; named where nothing fits
        for request in self._of(priority, self._due.keys):
            if not is_meetable(request, view.now_ns, view.predicted_s(request)):
                doubtful.append(request)
            elif view.fits(request):
                return request
            else:
                blocked = blocked or request
        for request in (*doubtful, *self._of(priority, self._late.keys)):
            if view.fits(request):
                return request
            blocked = blocked or request
        assert blocked is not None
        return blocked

    def _of(self, priority: int, keys: list[Key]) -> list[Request]:
        return [self.members[key[-1]] for key in keys if key[0] == priority]
