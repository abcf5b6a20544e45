"""Shortest uncached prefill first, among the oldest few, where no promise breaks by it."""

from __future__ import annotations

from colocate.core.queues.tally import Tally
from colocate.core.queues.waiting import QueueView
from colocate.core.queues.window import Window
from colocate.core.request import NEVER, Request
from colocate.types import RequestId

WINDOW = 32
MAX_OVERTAKEN = 64


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
        chosen = self._choose(self._eligible(), view)
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

    def _choose(self, requests: list[Request], view: QueueView) -> Request:
        """`requests` are in order of arrival, at least one. The floor allows the first of them whatever it takes."""
        deadlines = self.deadlines
        if not any(request.request_id in deadlines for request in requests):
            return min(requests, key=lambda request: request.num_uncached)
        now_ns = end_ns = view.now_ns  # `end_ns`: of the prefill of all up to this one, in order of arrival
        spare_ns = NEVER  # least slack, in that order, of the older ones that would be in time
        shortest, shortest_ns = requests[0], NEVER
        in_time: list[tuple[int, Request]] = []  # own slack of those allowed that can be in time
        for request in requests:
            predicted_ns = round(view.predicted_s(request) * 1e9)
            deadline_ns = deadlines.get(request.request_id)
            end_ns += predicted_ns
            if predicted_ns <= spare_ns:
                if shortest_ns == NEVER or request.num_uncached < shortest.num_uncached:
                    shortest, shortest_ns = request, predicted_ns
                if deadline_ns is not None and now_ns + predicted_ns <= deadline_ns:
                    in_time.append((deadline_ns - now_ns - predicted_ns, request))
            if deadline_ns is not None and end_ns <= deadline_ns:
                spare_ns = min(spare_ns, deadline_ns - end_ns)
        chosen, least_ns = shortest, shortest_ns
        for slack_ns, request in in_time:
            if slack_ns < least_ns and request is not shortest:
                chosen, least_ns = request, slack_ns
        return chosen
