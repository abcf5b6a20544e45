"""Queue disciplines: no operation costs more where more wait."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType

import pytest

from colocate.core.queues.choose import DISCIPLINES, choose_queue
from tests.property.queue_world import MS, PlainView, make_waiting

every_discipline = pytest.mark.parametrize("name", list(DISCIPLINES))


class Counted(int):
    """A priority that counts how often it is compared: every key begins with one."""

    num_compared = 0

    def __eq__(self, other: object) -> bool:
        Counted.num_compared += 1
        return int.__eq__(self, other) is True

    def __lt__(self, other: int) -> bool:
        Counted.num_compared += 1
        return int.__lt__(self, other)

    __hash__ = int.__hash__


def count_steps(work: Callable[[], None]) -> int:
    """Lines run in the disciplines, and comparisons of keys."""
    num_lines = 0

    def trace(frame: FrameType, event: str, argument: object) -> Callable[..., object] | None:
        nonlocal num_lines
        if "/core/" not in frame.f_code.co_filename:
            return None
        num_lines += event == "line"
        return trace

    before = Counted.num_compared
    previous = sys.gettrace()
    sys.settrace(trace)
    try:
        work()
    finally:
        sys.settrace(previous)
    return num_lines + Counted.num_compared - before


def steps_per_turn(name: str, num_waiting: int) -> float:
    """Of serving one, aborting one and pushing two, in a queue that stays at this length."""
    queue = choose_queue(name)
    view = PlainView(free_tokens=60)
    num_turns = 100

    def push(request_id: int) -> None:
        request = make_waiting(
            request_id,
            arrival_ns=request_id * MS,
            num_tokens=1 + request_id * 37 % 90,
            ttft_ms=None if request_id % 3 == 0 else 50 + request_id * 53 % 4_000,
        )
        request.priority = Counted(0)
        queue.push(request)

    for request_id in range(num_waiting):
        push(request_id)
    view.now_ns = num_waiting * MS
    queue.peek(view)  # deadlines that passed at once are an effort of once per request, not of every turn

    def turns() -> None:
        for turn in range(num_turns):
            request = queue.peek(view)
            assert request is not None
            queue.remove(request.request_id)
            aborted = num_waiting // 2 + turn
            if aborted in queue:
                queue.remove(aborted)
            push(num_waiting + 2 * turn)
            push(num_waiting + 2 * turn + 1)
            view.now_ns += MS

    return count_steps(turns) / num_turns


@every_discipline
def test_no_operation_looks_at_everybody_who_waits(name: str) -> None:
    """With 16 times as many waiting, a scan costs 16 times as much; heaps and windows nearly the same."""
    few, many = steps_per_turn(name, 250), steps_per_turn(name, 4_000)
    assert few > 10
    assert many < 2.5 * few
