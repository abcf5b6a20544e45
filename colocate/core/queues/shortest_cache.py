"""Fewest tokens to compute first, over the whole queue: what is mostly cached is nearly free, and its prefix is in use
again before it can be evicted."""

from __future__ import annotations

from colocate.core.queues.lazy_heap import LazyHeap
from colocate.core.queues.seniority import Seniority
from colocate.core.queues.tally import Tally
from colocate.core.queues.waiting import QueueView
from colocate.core.request import Request
from colocate.types import RequestId

MAX_OVERTAKEN = 256  # a queue of default length goes by


class ShortestCacheQueue(Tally):
    """Ordered by (priority, uncached tokens, longer cached prefix, arrival, id), by the hints in `num_uncached`.

    A prefill that ends shortens others with the same prefix, so one hint is refreshed at a time: in turn, over all
    that wait. A hint may also have grown, by eviction, so the first is asked as well before it is named.
    Aging: nobody is overtaken more than `max_overtaken` times, see `Seniority`.
    """

    __slots__ = ("_named", "_order", "_seniority", "_turns")

    def __init__(self, max_overtaken: int = MAX_OVERTAKEN) -> None:
        super().__init__()
        self._order = LazyHeap()
        self._seniority = Seniority(max_overtaken)
        self._turns = LazyHeap()  # by when the hint was asked last
        self._named: RequestId | None = None

    @property
    def max_overtaken(self) -> int:
        return self._seniority.max_overtaken

    def push(self, request: Request) -> None:
        self.enter(request)
        self._seniority.enter(request)
        self._place(request)
        self._turns.put((request.arrival_ns, request.request_id))

    def remove(self, request_id: RequestId) -> None:
        request = self.leave(request_id)
        served = request_id == self._named
        self._seniority.leave(request, served=served)
        self._order.discard(request_id)
        self._turns.discard(request_id)
        if served:
            self._named = None

    def peek(self, view: QueueView) -> Request | None:
        if not self.members:
            return None
        if self.may_refresh(view.now_ns):
            self._refresh_some(view)
        self._named = self._first()
        return self.members[self._named]

    def _first(self) -> RequestId:
        oldest_id = self._seniority.oldest_id()
        assert oldest_id is not None
        if self._seniority.must_serve_oldest(self.members[oldest_id].priority):
            return oldest_id
        first = self._order.first()
        assert first is not None
        return first[-1]

    def _refresh_some(self, view: QueueView) -> None:
        stalest = self._turns.first()
        assert stalest is not None
        for request_id in {stalest[-1]: None, self._first(): None}:
            request = self.members[request_id]
            self.refresh(request, view)
            self._place(request)
            self._turns.put((view.now_ns, request_id))

    def _place(self, request: Request) -> None:
        num_cached = request.num_prefill_tokens - request.num_uncached
        self._order.put((request.priority, request.num_uncached, -num_cached, request.arrival_ns, request.request_id))
