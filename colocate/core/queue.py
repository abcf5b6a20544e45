"""The waiting queue: first come, first served by arrival, so a preempted request goes on ahead of younger ones."""

from __future__ import annotations

import heapq

from colocate.core.request import Request
from colocate.types import RequestId


class FcfsQueue:
    """Ordered by (priority, arrival, id); removal is lazy, so every operation is O(log n) or better."""

    __slots__ = ("_heap", "_members")

    def __init__(self) -> None:
        self._heap: list[tuple[int, int, RequestId]] = []
        self._members: dict[RequestId, Request] = {}

    def __len__(self) -> int:
        return len(self._members)

    def __contains__(self, request_id: RequestId) -> bool:
        return request_id in self._members

    def push(self, request: Request) -> None:
        self._members[request.request_id] = request
        heapq.heappush(self._heap, (request.priority, request.arrival_ns, request.request_id))

    def peek(self) -> Request | None:
        """The next request, or None. It stays queued until removed."""
        while self._heap:
            request = self._members.get(self._heap[0][2])
            if request is not None:
                return request
            heapq.heappop(self._heap)
        return None

    def remove(self, request_id: RequestId) -> None:
        """Take a request out, wherever it stands. Raises KeyError where it is not queued."""
        del self._members[request_id]
