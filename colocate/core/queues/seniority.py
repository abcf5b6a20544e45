"""How often a waiting request was overtaken, counted in O(1) for a discipline that serves from its whole queue.

Each priority counts its services out of order: of a request that was not the oldest of its priority. What that count
has grown by while a request waited is at least the number of younger ones that went before it. Once it has grown by
the bound for any request, the oldest is served, again and again, until that request is gone. Serving the oldest
overtakes nobody, so the count stands still meanwhile and the bound holds for everyone.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field

from colocate.core.queues.lazy_heap import LazyHeap
from colocate.core.request import Request
from colocate.types import RequestId


@dataclass(slots=True)
class _Rank:
    """One priority."""

    num_out_of_order: int = 0
    since: OrderedDict[RequestId, int] = field(default_factory=OrderedDict)  # the count when each came; rises


class Seniority:
    """Follows who waits in one queue. Every operation is O(log n) amortised."""

    __slots__ = ("_order", "_ranks", "max_overtaken")

    def __init__(self, max_overtaken: int) -> None:
        self.max_overtaken = max_overtaken
        self._order = LazyHeap()
        self._ranks: dict[int, _Rank] = {}

    def enter(self, request: Request) -> None:
        self._order.put(request.order)
        rank = self._ranks.setdefault(request.priority, _Rank())
        rank.since[request.request_id] = rank.num_out_of_order

    def leave(self, request: Request, *, served: bool) -> None:
        """Sets `num_overtaken`, from above."""
        is_oldest = self.oldest_id() == request.request_id
        self._order.discard(request.request_id)
        rank = self._ranks[request.priority]
        request.num_overtaken = rank.num_out_of_order - rank.since.pop(request.request_id)
        if not rank.since:
            del self._ranks[request.priority]
        elif served and not is_oldest:
            rank.num_out_of_order += 1

    def oldest_id(self) -> RequestId | None:
        """Of the first priority."""
        first = self._order.first()
        return None if first is None else first[-1]

    def must_serve_oldest(self, priority: int) -> bool:
        """Whether somebody of this priority may not be overtaken again. Somebody of it waits."""
        rank = self._ranks[priority]
        longest = next(iter(rank.since.values()))
        return rank.num_out_of_order - longest >= self.max_overtaken
