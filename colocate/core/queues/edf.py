"""Earliest deadline first."""

from __future__ import annotations

from colocate.core.queues.due import due_ns
from colocate.core.queues.ordered import OrderedQueue
from colocate.core.request import Request


class EdfQueue(OrderedQueue):
    """Ordered by (priority, due, arrival, id), see `due_ns`. A request is overtaken only by those due before it; what
    arrives after its due time never goes ahead of it. Optimal while every deadline can be met (Liu and Layland, JACM
    20(1), 1973); under overload it keeps serving those that are late already."""

    __slots__ = ()

    def key(self, request: Request) -> tuple[int, ...]:
        return request.priority, due_ns(request), request.arrival_ns, request.request_id
