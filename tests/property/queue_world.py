"""Waiting requests and a `QueueView` of plain numbers, for tests of disciplines without an engine."""

from __future__ import annotations

from dataclasses import dataclass, field

from colocate.core.queues.waiting import WaitingQueue
from colocate.core.request import Request
from colocate.messages.sampling import SamplingParams
from colocate.messages.slo import SloClass

MS = 1_000_000


def make_waiting(
    request_id: int,
    *,
    arrival_ns: int = 0,
    num_tokens: int = 10,
    num_cached: int = 0,
    priority: int = 0,
    ttft_ms: int | None = None,
) -> Request:
    """A request of `num_tokens` prompt tokens, `num_cached` of them in the prefix cache, to be pushed."""
    slo = SloClass("test", ttft_s=None if ttft_ms is None else ttft_ms / 1000)
    request = Request(request_id, [7] * num_tokens, SamplingParams(max_tokens=4), arrival_ns, [], priority, slo)
    request.num_uncached = num_tokens - num_cached
    return request


@dataclass
class PlainView:
    """A prefill takes `ns_per_token` for each uncached token; `free_tokens` is the room in the pool."""

    now_ns: int = 0
    ns_per_token: int = MS
    free_tokens: int = 1 << 30
    uncached: dict[int, int] = field(default_factory=dict)  # what changed since the push
    num_asked: int = 0  # calls that cost O(prompt)

    def uncached_tokens(self, request: Request) -> int:
        self.num_asked += 1
        return self.uncached.get(request.request_id, request.num_uncached)

    def predicted_s(self, request: Request) -> float:
        return request.num_uncached * self.ns_per_token / 1e9

    def fits(self, request: Request) -> bool:
        return request.num_uncached <= self.free_tokens


def serve_all(queue: WaitingQueue, view: PlainView) -> list[int]:
    """Serve until nobody waits; time advances by what each prefill takes. The ids in the order served."""
    served: list[int] = []
    while (request := queue.peek(view)) is not None:
        served.append(request.request_id)
        queue.remove(request.request_id)
        view.now_ns += request.num_uncached * view.ns_per_token
    return served
