"""Poison requests: who was in flight when a worker died, and who is tried alone because of it.

A request in flight at two deaths is a suspect. Suspects are tried alone in the phase where they died, one at a time,
while the others of that phase wait. A suspect that gets `TRIAL_TOKENS` further than ever before is cleared. One that
is in flight, alone, at a third death is convicted: it fails with 500 and the death is not the worker's fault.
"""

from __future__ import annotations

from colocate.core.request import Request
from colocate.types import RequestId, Role

SUSPECT_AT = 2
CONVICT_AT = 3
TRIAL_TOKENS = 8


class Suspects:
    """Suspects of one phase, or of both where they share their fate. `trial` is the one that runs alone now."""

    __slots__ = ("_died_in", "_passed_at", "_waiting", "trial")

    def __init__(self) -> None:
        self.trial: RequestId | None = None
        self._waiting: dict[RequestId, Request] = {}
        self._passed_at: dict[RequestId, int] = {}
        self._died_in: dict[RequestId, Role] = {}

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def __contains__(self, request_id: RequestId) -> bool:
        return request_id in self._waiting

    def died(self, request: Request, phase: Role) -> bool:
        """Charge a death in this phase. True where the request is convicted."""
        request.deaths += 1
        if request.deaths >= CONVICT_AT and self.trial == request.request_id:
            self.forget(request.request_id)
            return True
        if self.trial == request.request_id:
            self.trial = None
        if request.deaths >= SUSPECT_AT:
            self._waiting[request.request_id] = request
            self._died_in[request.request_id] = phase
            self._passed_at[request.request_id] = len(request.output_token_ids) + TRIAL_TOKENS
        return False

    def oldest(self) -> Request | None:
        """Who is to be tried next."""
        return min(self._waiting.values(), key=lambda request: request.order, default=None)

    def progressed(self, request: Request) -> None:
        """Clear the request on trial if it got far enough."""
        if len(request.output_token_ids) >= self._passed_at[request.request_id]:
            self.clear(request)

    def prefilled(self, request: Request) -> None:
        """Its prompt is through: that clears whom a death in prefill made a suspect. One that died in decode, and was
        computed again because the KV was not trusted, has shown nothing yet."""
        if self._died_in.get(request.request_id) is Role.PREFILL:
            self.clear(request)

    def clear(self, request: Request) -> None:
        request.deaths = 0
        self.forget(request.request_id)

    def forget(self, request_id: RequestId) -> None:
        """The request ended or was cleared."""
        self._waiting.pop(request_id, None)
        self._passed_at.pop(request_id, None)
        self._died_in.pop(request_id, None)
        if self.trial == request_id:
            self.trial = None
