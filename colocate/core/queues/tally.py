"""What every discipline counts alike: who waits, how much prefill work that is, and the earliest deadline."""

from __future__ import annotations

from colocate.core.queues.lazy_heap import LazyHeap
from colocate.core.queues.waiting import QueueView
from colocate.core.request import NEVER, Request
from colocate.types import RequestId

# Asking how much of a prompt is cached walks the prefix tree along the whole prompt, so a queue asks for one request
# at a time and not more often than this, however many events there are.
REFRESH_INTERVAL_NS = 2_000_000


class Tally:
    """Members by id, and running sums over them. A discipline adds its order.

    The work a member adds is remembered, so the sums stay right whatever happens to `request.num_uncached` meanwhile.
    """

    __slots__ = (
        "_deadline_order",
        "_next_refresh_ns",
        "_work",
        "deadlines",
        "members",
        "num_entered",
        "num_pairs",
        "num_tokens",
    )

    def __init__(self) -> None:
        self.members: dict[RequestId, Request] = {}
        self.num_entered = 0  # requests so far
        self.num_tokens = 0
        self.num_pairs = 0.0
        self._work: dict[RequestId, tuple[int, float]] = {}  # what each member adds to the sums
        self.deadlines: dict[RequestId, int] = {}  # `ttft_deadline_ns` of those that have one; fixed while they wait
        self._deadline_order = LazyHeap()
        self._next_refresh_ns = 0

    def __len__(self) -> int:
        return len(self.members)

    def __contains__(self, request_id: RequestId) -> bool:
        return request_id in self.members

    def enter(self, request: Request) -> None:
        request_id = request.request_id
        request.num_overtaken = 0
        self.members[request_id] = request
        self.num_entered += 1
        self._add_work(request)
        deadline_ns = request.ttft_deadline_ns
        if deadline_ns != NEVER:
            self.deadlines[request_id] = deadline_ns
            self._deadline_order.put((deadline_ns, request_id))

    def leave(self, request_id: RequestId) -> Request:
        """Raises KeyError where it is not a member."""
        request = self.members.pop(request_id)
        self._drop_work(request_id)
        if self.deadlines.pop(request_id, None) is not None:
            self._deadline_order.discard(request_id)
        return request

    def earliest_deadline_ns(self, now_ns: int) -> int | None:
        first = self.first_due(now_ns)
        return None if first is None else self.deadlines[first.request_id]

    def first_due(self, now_ns: int) -> Request | None:
        """Deadlines that passed are dropped for good: time does not run back."""
        while (first := self._deadline_order.first()) is not None and first[0] < now_ns:
            self._deadline_order.discard(first[1])
            del self.deadlines[first[1]]
        return None if first is None else self.members[first[1]]

    def may_refresh(self, now_ns: int) -> bool:
        """Whether it is time to ask again what is cached. Says yes once per interval, so a second `peek` at the same
        time sees the same hints."""
        if now_ns < self._next_refresh_ns:
            return False
        self._next_refresh_ns = now_ns + REFRESH_INTERVAL_NS
        return True

    def refresh(self, request: Request, view: QueueView) -> None:
        """Set a member's `num_uncached` to what is cached now, and the sums with it."""
        self._drop_work(request.request_id)
        request.num_uncached = view.uncached_tokens(request)
        self._add_work(request)

    def _add_work(self, request: Request) -> None:
        work = (request.num_uncached, pairs_of(request))
        self._work[request.request_id] = work
        self.num_tokens += work[0]
        self.num_pairs += work[1]

    def _drop_work(self, request_id: RequestId) -> None:
        num_tokens, num_pairs = self._work.pop(request_id)
        self.num_tokens -= num_tokens
        self.num_pairs -= num_pairs  # multiples of a half: exact below 2**52


def pairs_of(request: Request) -> float:
    """n * (r + n / 2) with n tokens to compute and r cached: the attention work of its prefill."""
    num_new = request.num_uncached
    return num_new * (request.num_prefill_tokens - num_new / 2)
