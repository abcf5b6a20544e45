"""Queue disciplines: what all of them promise, and the parts they are built from."""

from __future__ import annotations

import pytest

from colocate.config.serve import Discipline
from colocate.core.queues.choose import DISCIPLINES, choose_queue
from colocate.core.queues.lazy_heap import SLACK, LazyHeap
from colocate.core.queues.tally import pairs_of
from colocate.core.queues.waiting import WaitingQueue
from colocate.core.queues.window import Window
from colocate.core.request import Request
from colocate.errors import ConfigError
from tests.property.queue_world import MS, PlainView, make_waiting, serve_all

every_discipline = pytest.mark.parametrize("name", list(DISCIPLINES))


def fill(queue: WaitingQueue, *requests: Request) -> None:
    for request in requests:
        queue.push(request)


# -- every discipline --------------------------------------------------------------------------------------------------


def test_every_configured_discipline_can_be_chosen_and_no_other() -> None:
    assert set(Discipline.__args__) == set(DISCIPLINES)
    for name, discipline in DISCIPLINES.items():
        assert type(choose_queue(name)) is discipline
    with pytest.raises(ConfigError, match=r"no 'lifo' \(choose from: fcfs, sjf-window, edf"):
        choose_queue("lifo")


@every_discipline
def test_an_empty_queue_has_nobody_and_no_work(name: str) -> None:
    queue = choose_queue(name)
    assert queue.peek(PlainView()) is None
    assert (len(queue), queue.num_tokens, queue.num_pairs, queue.earliest_deadline_ns(0)) == (0, 0, 0.0, None)
    with pytest.raises(KeyError):
        queue.remove(1)


@every_discipline
def test_priority_stands_above_the_discipline(name: str) -> None:
    """The urgent one is the youngest, the longest, has no deadline and does not fit."""
    queue = choose_queue(name)
    view = PlainView(free_tokens=100)
    fill(
        queue,
        make_waiting(1, arrival_ns=0, num_tokens=10, ttft_ms=11),
        make_waiting(2, arrival_ns=1, num_tokens=20),
        make_waiting(3, arrival_ns=2, num_tokens=500, priority=-1),
    )
    chosen = queue.peek(view)
    assert chosen is not None and chosen.request_id == 3


@every_discipline
def test_a_removed_request_is_not_named_and_may_come_back(name: str) -> None:
    queue = choose_queue(name)
    view = PlainView()
    first, second = make_waiting(1), make_waiting(2, arrival_ns=5)
    fill(queue, first, second)
    queue.remove(1)
    assert 1 not in queue
    assert queue.peek(view) is second
    queue.push(first)
    assert 1 in queue
    assert serve_all(queue, view) == [1, 2]


@every_discipline
def test_the_sums_hold_when_the_hint_changes_while_a_request_waits(name: str) -> None:
    queue = choose_queue(name)
    request, other = make_waiting(1, num_tokens=30), make_waiting(2, num_tokens=8, num_cached=4)
    fill(queue, request, other)
    request.num_uncached = 3  # as admission does, just before it removes the request
    queue.remove(1)
    assert (queue.num_tokens, queue.num_pairs) == (4, pairs_of(other))
    queue.remove(2)
    assert (queue.num_tokens, queue.num_pairs) == (0, 0.0)


@every_discipline
def test_a_first_token_deadline_ends_with_the_first_token(name: str) -> None:
    queue = choose_queue(name)
    request = make_waiting(1, ttft_ms=20)
    queue.push(request)
    assert queue.earliest_deadline_ns(0) == 20 * MS
    queue.remove(1)
    request.first_token_ns = 15 * MS
    request.output_token_ids.append(9)
    queue.push(request)  # preempted
    assert queue.earliest_deadline_ns(0) is None


# -- the parts ---------------------------------------------------------------------------------------------------------


def test_a_window_holds_the_first_by_key_whatever_the_order_of_arrival() -> None:
    window = Window(3)
    for value in (50, 20, 40, 10, 30):
        window.put((value, value))
    assert window.keys == [(10, 10), (20, 20), (30, 30)]
    assert window.discard(20) and window.discard(50)
    assert not window.discard(50)
    assert window.keys == [(10, 10), (30, 30), (40, 40)]
    assert len(window) == 3 and 40 in window and 50 not in window


def test_a_lazy_heap_forgets_old_keys_and_does_not_grow_with_them() -> None:
    heap = LazyHeap()
    heap.put((5, 1))
    for value in range(10_000):
        heap.put((value + 10, 2))
        if value % 3 == 0:
            heap.discard(2)
    heap.put((7, 1))
    assert heap.first() == (7, 1)
    assert len(heap._heap) <= 2 * 2 + SLACK
    assert heap.pop() == (7, 1)
    assert heap.pop() is None  # the last round took the other out
