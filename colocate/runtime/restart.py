"""When a dead process may start again, and when its deaths are a crash loop. Pure: time is an argument."""

from __future__ import annotations

from collections import deque

_FIRST_BACKOFF_S = 0.25
_MAX_BACKOFF_S = 5.0


class RestartBudget:
    """Deaths of one role inside a sliding window. The first restart is immediate; each further one waits twice as
    long as the one before."""

    def __init__(self, max_restarts: int, window_s: float) -> None:
        self._max_restarts = max_restarts
        self._window_s = window_s
        self._deaths_s: deque[float] = deque()

    def on_death(self, now_s: float) -> float | None:
        """Seconds to wait before the restart, or None: more than `max_restarts` deaths in the window, give up."""
        while self._deaths_s and self._deaths_s[0] <= now_s - self._window_s:
            self._deaths_s.popleft()
        self._deaths_s.append(now_s)
        if len(self._deaths_s) > self._max_restarts:
            return None
        if len(self._deaths_s) == 1:
            return 0.0
        return min(_MAX_BACKOFF_S, _FIRST_BACKOFF_S * 2.0 ** (len(self._deaths_s) - 2))

    def forgive(self) -> None:
        """A poison request is to blame for the deaths so far, not the process: they no longer count.

        All of them, not only the last: the request was in flight at each, and two such requests in one window must
        not stop the daemon for everybody.
        """
        self._deaths_s.clear()
