"""From the operator's word to a discipline."""

from __future__ import annotations

from collections.abc import Callable

from colocate.core.queues.edf import EdfQueue
from colocate.core.queues.fcfs import FcfsQueue
from colocate.core.queues.memory_aware_deadline import MemoryAwareDeadlineQueue
from colocate.core.queues.shortest_cache import ShortestCacheQueue
from colocate.core.queues.sjf_window import SjfWindowQueue
from colocate.core.queues.waiting import WaitingQueue
from colocate.errors import ConfigError

DISCIPLINES: dict[str, Callable[[], WaitingQueue]] = {
    "fcfs": FcfsQueue,
    "sjf-window": SjfWindowQueue,
    "edf": EdfQueue,
    "shortest-cache": ShortestCacheQueue,
    "memory-aware-deadline": MemoryAwareDeadlineQueue,
}


def choose_queue(name: str) -> WaitingQueue:
    """An empty queue of this discipline. Raises ConfigError."""
    discipline = DISCIPLINES.get(name)
    if discipline is None:
        raise ConfigError("discipline", f"there is no {name!r}", "choose from: " + ", ".join(DISCIPLINES))
    return discipline()
