"""When a waiting request is due, for disciplines that sort by it."""

from __future__ import annotations

from colocate.core.request import NEVER, Request

# A request without any promise is due this long after it arrived. Since that is a fixed time and others are sorted by
# theirs, only requests due earlier go before it, and those have all arrived by then: nothing starves.
IMPLICIT_TTFT_S = 60.0


def due_ns(request: Request) -> int:
    """Its first-token deadline; after the first token (it was preempted) when its next token is due; else implicit."""
    deadline_ns = request.ttft_deadline_ns
    if deadline_ns == NEVER:
        deadline_ns = request.token_deadline_ns()
    return request.arrival_ns + int(IMPLICIT_TTFT_S * 1e9) if deadline_ns == NEVER else deadline_ns


def is_meetable(request: Request, now_ns: int, predicted_s: float) -> bool:
    """Whether its first token can still be in time if its prefill starts now. A request that was promised no time for
    its first token, or whose client has it already, is never given up."""
    deadline_ns = request.ttft_deadline_ns
    return deadline_ns == NEVER or now_ns + round(predicted_s * 1e9) <= deadline_ns
