"""Shortest uncached prefill first, among the oldest few, where no promise breaks by it."""

from __future__ import annotations

from dataclasses import dataclass

from colocate.core.queues.tally import Tally
from colocate.core.queues.waiting import QueueView
from colocate.core.queues.window import Window
from colocate.core.request import NEVER, Request
from colocate.types import RequestId

WINDOW = 32
MAX_OVERTAKEN = 64


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A request of the window. Times in nanoseconds; `slack_ns` is None where it can miss nothing any more."""

    request: Request
    predicted_ns: int
    slack_ns: int | None  # how much longer it can wait before its own prefill must start


class SjfWindowQueue(Tally):
    """Looks at the oldest `window` requests of the first priority, and serves the shortest of them, except that:

    * The order of arrival is the floor. A request that would be in time if all were served in that order from now on
      keeps that: a younger one goes ahead only if it takes no longer than the least such slack of those it overtakes,
      where slack = deadline - now - predicted time of everything up to and including that request. So with true
      predictions every request that `fcfs` serves in time is served in time.
    * Among those the floor allows, one about to miss goes first: slack = deadline - now - own predicted time is not
      negative, but shorter than what the shortest takes. Of several, the one with the least slack.
    * A request that was overtaken `max_overtaken` times is not overtaken again. Removing the request that `peek` named
      last counts as its admission; if it was an abort, the bound only gets stricter.
    * A request that cannot be in time any more holds up nobody, and that bound is what keeps it from starving.
    """

    __slots__ = ("_named", "_turn", "_window", "max_overtaken")

    def __init__(self, window: int = WINDOW, max_overtaken: int = MAX_OVERTAKEN) -> None:
        super().__init__()
        self.max_overtaken = max_overtaken
        self._window = Window(window)
        self._named: RequestId | None = None
        self._turn = 0  # whose hint is refreshed next

    def push(self, request: Request) -> None:
        self.enter(request)
        self._window.put(request.order)

    def remove(self, request_id: RequestId) -> None:
        request = self.leave(request_id)
        if request_id == self._named:
            self._count_overtaken(request)
            self._named = None
        self._window.discard(request_id)

    def _count_overtaken(self, served: Request) -> None:
        """Everybody it overtakes is in the window, since it is and they are older."""
        for key in self._window.keys:
            if key >= served.order:
                return
            if key[0] == served.priority:
                self.members[key[-1]].num_overtaken += 1

    def peek(self, view: QueueView) -> Request | None:
        """O(window)."""
        if not self._window.keys:
            return None
        self._refresh_one(view)
        chosen = _choose(self._eligible(), view)
        self._named = chosen.request_id
        return chosen

    def _refresh_one(self, view: QueueView) -> None:
        if self.may_refresh(view.now_ns):
            self._turn = (self._turn + 1) % len(self._window.keys)
            self.refresh(self.members[self._window.keys[self._turn][-1]], view)

    def _eligible(self) -> list[Request]:
        """Those of the first priority, oldest first, up to the first that may not be overtaken again."""
        requests: list[Request] = []
        priority = self._window.keys[0][0]
        for key in self._window.keys:
            if key[0] != priority:
                break
            request = self.members[key[-1]]
            requests.append(request)
            if request.num_overtaken >= self.max_overtaken:
                break
        return requests


def _choose(requests: list[Request], view: QueueView) -> Request:
    """`requests` are in order of arrival, at least one."""
    if all(request.ttft_deadline_ns == NEVER for request in requests):
        return min(requests, key=lambda request: request.num_uncached)
    allowed = _allowed(requests, view)
    shortest = min(allowed, key=lambda candidate: candidate.request.num_uncached)
    chosen, least_ns = shortest, shortest.predicted_ns
    for candidate in allowed:
        slack_ns = candidate.slack_ns
        if candidate is not shortest and slack_ns is not None and 0 <= slack_ns < least_ns:
            chosen, least_ns = candidate, slack_ns
    return chosen.request


def _allowed(requests: list[Request], view: QueueView) -> list[_Candidate]:
    """Those that break no promise of an older one by going first. The oldest always is."""
    allowed: list[_Candidate] = []
    end_ns = view.now_ns  # of the prefill of all up to this one, in order of arrival
    spare_ns = NEVER  # least slack, in that order, of the older ones that would be in time
    for request in requests:
        predicted_ns = round(view.predicted_s(request) * 1e9)
        deadline_ns = request.ttft_deadline_ns
        if predicted_ns <= spare_ns:
            slack_ns = None if deadline_ns == NEVER else deadline_ns - view.now_ns - predicted_ns
            allowed.append(_Candidate(request, predicted_ns, slack_ns))
        end_ns += predicted_ns
        if end_ns <= deadline_ns != NEVER:
            spare_ns = min(spare_ns, deadline_ns - end_ns)
    return allowed
