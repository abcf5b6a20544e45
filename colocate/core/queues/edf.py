"""Earliest deadline first."""

from __future__ import annotations

from colocate.core.queues.due import due_ns
from colocate.core.queues.lazy_heap import LazyHeap
from colocate.core.queues.tally import Tally
from colocate.core.queues.waiting import QueueView
from colocate.core.request import Request
from colocate.types import RequestId


class EdfQueue(Tally):
    """Ordered by (priority, due, arrival, id), see `due_ns`. A request is overtaken only by those due before it; what
    arrives after its due time never goes ahead of it. Optimal while every deadline can be met (Liu and Layland, JACM
    20(1), 1973); under overload it keeps serving those that are late already."""

    __slots__ = ("_order",)

    def __init__(self) -> None:
        super().__init__()
        self._order = LazyHeap()

    def push(self, request: Request) -> None:
        self.enter(request)
        self._order.put((request.priority, due_ns(request), request.arrival_ns, request.request_id))

    def peek(self, view: QueueView) -> Request | None:
        first = self._order.first()
        return None if first is None else self.members[first[-1]]

    def remove(self, request_id: RequestId) -> None:
        self.leave(request_id)
        self._order.discard(request_id)
