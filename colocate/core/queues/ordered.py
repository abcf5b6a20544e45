"""What the disciplines share that sort all who wait by one key."""

from __future__ import annotations

from colocate.core.queues.lazy_heap import LazyHeap
from colocate.core.queues.tally import Tally
from colocate.core.queues.waiting import QueueView
from colocate.core.request import Request
from colocate.types import RequestId


class OrderedQueue(Tally):
    """The lowest key is next. A key is fixed while its request waits, is unique and ends with the request's id."""

    __slots__ = ("_order",)

    def __init__(self) -> None:
        super().__init__()
        self._order = LazyHeap()

    def key(self, request: Request) -> tuple[int, ...]:
        raise NotImplementedError

    def push(self, request: Request) -> None:
        self.enter(request)
        self._order.put(self.key(request))

    def peek(self, view: QueueView) -> Request | None:
        first = self._order.first()
        return None if first is None else self.members[first[-1]]

    def remove(self, request_id: RequestId) -> None:
        self.leave(request_id)
        self._order.discard(request_id)
