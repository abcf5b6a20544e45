"""An ordered set of keys with lazy removal: the building block of every discipline."""

from __future__ import annotations

import heapq

from colocate.types import RequestId

# Smaller is first. The last element is the request id, so keys are unique; a request has at most one.
Key = tuple[int, ...]

# Dead entries a heap may hold beyond its live ones before it is rebuilt.
SLACK = 64


class LazyHeap:
    """Every operation is O(log n) amortised. A removed key stays in the heap until it surfaces, or until dead entries
    outnumber live ones."""

    __slots__ = ("_heap", "_keys")

    def __init__(self) -> None:
        self._heap: list[Key] = []
        self._keys: dict[RequestId, Key] = {}  # what is in the set

    def __len__(self) -> int:
        return len(self._keys)

    def __contains__(self, request_id: RequestId) -> bool:
        return request_id in self._keys

    def put(self, key: Key) -> None:
        """Add a request, or give it another key."""
        self._keys[key[-1]] = key
        heapq.heappush(self._heap, key)
        if len(self._heap) > 2 * len(self._keys) + SLACK:
            self._heap = list(self._keys.values())
            heapq.heapify(self._heap)

    def discard(self, request_id: RequestId) -> bool:
        """Whether it was there."""
        return self._keys.pop(request_id, None) is not None

    def first(self) -> Key | None:
        while self._heap:
            key = self._heap[0]
            if self._keys.get(key[-1]) == key:
                return key
            heapq.heappop(self._heap)
        return None

    def pop(self) -> Key | None:
        """Take the first out."""
        key = self.first()
        if key is not None:
            heapq.heappop(self._heap)
            del self._keys[key[-1]]
        return key
