"""First come, first served by arrival, so a preempted request goes on ahead of younger ones."""

from __future__ import annotations

from colocate.core.queues.ordered import OrderedQueue
from colocate.core.request import Request


class FcfsQueue(OrderedQueue):
    """Ordered by (priority, arrival, id). Nobody is overtaken."""

    __slots__ = ()

    def key(self, request: Request) -> tuple[int, ...]:
        return request.order
