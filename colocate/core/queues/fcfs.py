"""First come, first served by arrival, so a preempted request goes on ahead of younger ones."""

from __future__ import annotations

from colocate.core.queues.lazy_heap import LazyHeap
from colocate.core.queues.tally import Tally
from colocate.core.queues.waiting import QueueView
from colocate.core.request import Request
from colocate.types import RequestId


class FcfsQueue(Tally):
    """Ordered by (priority, arrival, id). Nobody is overtaken."""

    __slots__ = ("_order",)

    def __init__(self) -> None:
        super().__init__()
        self._order = LazyHeap()

    def push(self, request: Request) -> None:
        self.enter(request)
        self._order.put(request.order)

    def peek(self, view: QueueView) -> Request | None:
        first = self._order.first()
        return None if first is None else self.members[first[-1]]

    def remove(self, request_id: RequestId) -> None:
        self.leave(request_id)
        self._order.discard(request_id)
