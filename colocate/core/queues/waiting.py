"""The seam of queue disciplines: who of those that wait is prefilled next."""

from __future__ import annotations

from typing import Protocol

from colocate.core.request import Request
from colocate.types import RequestId


class QueueView(Protocol):
    """What a discipline may ask about the present. Valid during one call."""

    @property
    def now_ns(self) -> int: ...

    def uncached_tokens(self, request: Request) -> int:
        """Tokens a prefill of this request would compute, by what is cached now. O(prompt blocks): ask sparingly."""
        ...

    def predicted_s(self, request: Request) -> float:
        """Seconds the prefill of this request alone would take on the share prefill has now; 0 where nothing is known.
        By `request.num_uncached`. O(1)."""
        ...

    def fits(self, request: Request) -> bool:
        """Whether the pool has blocks for it now. By `request.num_uncached`. O(1)."""
        ...


class WaitingQueue(Protocol):
    """Owned by the engine. No operation is O(waiting); `request.num_uncached` is set before `push`."""

    num_tokens: int  # sum of num_uncached over all that wait
    num_entered: int  # pushes so far
    num_pairs: float  # sum of n * (r + n / 2) over all that wait, n = num_uncached, r = the cached rest

    def __len__(self) -> int: ...

    def __contains__(self, request_id: RequestId) -> bool: ...

    def push(self, request: Request) -> None: ...

    def peek(self, view: QueueView) -> Request | None:
        """Who is next, or None. It stays queued until removed; asking again without a change gives the same answer."""
        ...

    def remove(self, request_id: RequestId) -> None:
        """Take a request out, wherever it stands. Where a discipline counts how often others were overtaken, removing
        the one that `peek` named last counts as its admission. Raises KeyError where it is not queued."""
        ...

    def earliest_deadline_ns(self, now_ns: int) -> int | None:
        """The earliest `ttft_deadline_ns` of those that wait and have not passed; None where there is none. A deadline
        that was missed urges nobody: what is late for one must not cost the others. O(log n) amortised."""
        ...

    def first_due(self, now_ns: int) -> Request | None:
        """Whose deadline that is, wherever it stands."""
        ...
