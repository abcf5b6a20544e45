"""The first few of those that wait by some key, at hand in order; the others in a heap."""

from __future__ import annotations

from bisect import bisect_left, insort

from colocate.core.queues.lazy_heap import Key, LazyHeap
from colocate.types import RequestId


class Window:
    """`keys` are the `size` smallest, sorted: a discipline may look at each of them, which no discipline may do with
    everybody. Adding and removing are O(size + log n) amortised."""

    __slots__ = ("_key_of", "_rest", "keys", "size")

    def __init__(self, size: int) -> None:
        self.size = size
        self.keys: list[Key] = []
        self._key_of: dict[RequestId, Key] = {}  # of those in `keys`
        self._rest = LazyHeap()

    def __len__(self) -> int:
        return len(self.keys) + len(self._rest)

    def __contains__(self, request_id: RequestId) -> bool:
        return request_id in self._key_of or request_id in self._rest

    def put(self, key: Key) -> None:
        """Add a request that is not in it."""
        if len(self.keys) == self.size and key > self.keys[-1]:
            self._rest.put(key)
            return
        insort(self.keys, key)
        self._key_of[key[-1]] = key
        if len(self.keys) > self.size:
            last = self.keys.pop()
            del self._key_of[last[-1]]
            self._rest.put(last)

    def discard(self, request_id: RequestId) -> bool:
        """Whether it was there. The next of the rest takes its place."""
        key = self._key_of.pop(request_id, None)
        if key is None:
            return self._rest.discard(request_id)
        del self.keys[bisect_left(self.keys, key)]
        following = self._rest.pop()
        if following is not None:
            self.keys.append(following)
            self._key_of[following[-1]] = following
        return True
