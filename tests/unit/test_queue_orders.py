"""Queue disciplines: the order each promises, by small examples."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from colocate.core.queues.choose import DISCIPLINES, choose_queue
from colocate.core.queues.due import IMPLICIT_TTFT_S
from colocate.core.queues.edf import EdfQueue
from colocate.core.queues.fcfs import FcfsQueue
from colocate.core.queues.memory_aware_deadline import MemoryAwareDeadlineQueue
from colocate.core.queues.shortest_cache import ShortestCacheQueue
from colocate.core.queues.sjf_window import SjfWindowQueue
from colocate.core.queues.tally import REFRESH_INTERVAL_NS
from colocate.core.queues.waiting import WaitingQueue
from colocate.core.request import Request
from colocate.messages.slo import SloClass
from tests.property.queue_world import MS, PlainView, make_waiting, serve_all

every_discipline = pytest.mark.parametrize("name", list(DISCIPLINES))


def fill(queue: WaitingQueue, *requests: Request) -> None:
    for request in requests:
        queue.push(request)


# -- fcfs --------------------------------------------------------------------------------------------------------------


def test_fcfs_serves_by_priority_then_arrival_and_forgets_the_removed() -> None:
    queue = FcfsQueue()
    fill(
        queue,
        make_waiting(1, arrival_ns=30),
        make_waiting(2, arrival_ns=10),
        make_waiting(3, arrival_ns=40, priority=-1),
        make_waiting(4, arrival_ns=5),
    )
    queue.remove(4)
    assert serve_all(queue, PlainView()) == [3, 2, 1]


def test_a_preempted_request_goes_ahead_of_younger_ones() -> None:
    queue = FcfsQueue()
    old, young = make_waiting(1, arrival_ns=1), make_waiting(2, arrival_ns=2)
    fill(queue, old, young)
    queue.remove(1)
    queue.push(old)
    assert queue.peek(PlainView()) is old


# -- sjf-window --------------------------------------------------------------------------------------------------------


def test_sjf_serves_the_shortest_uncached_first() -> None:
    queue = SjfWindowQueue()
    fill(
        queue,
        make_waiting(1, num_tokens=50),
        make_waiting(2, num_tokens=90, num_cached=80),
        make_waiting(3, num_tokens=20),
    )
    assert serve_all(queue, PlainView()) == [2, 3, 1]


def test_sjf_does_not_look_beyond_its_window() -> None:
    queue = SjfWindowQueue(window=2)
    fill(
        queue,
        make_waiting(1, num_tokens=50),
        make_waiting(2, arrival_ns=1, num_tokens=40),
        make_waiting(3, arrival_ns=2, num_tokens=1),
    )
    assert serve_all(queue, PlainView()) == [2, 3, 1]


@pytest.mark.parametrize(("ttft_ms", "first"), [(59, 1), (60, 2)])
def test_a_short_prompt_goes_ahead_only_if_the_older_one_stays_in_time(ttft_ms: int, first: int) -> None:
    queue = SjfWindowQueue()
    fill(queue, make_waiting(1, num_tokens=50, ttft_ms=ttft_ms), make_waiting(2, arrival_ns=1, num_tokens=10))
    assert serve_all(queue, PlainView())[0] == first


def test_older_promises_count_together() -> None:
    """Each of the first two could wait for the third if it were alone. One after the other, the second cannot."""
    queue = SjfWindowQueue()
    fill(
        queue,
        make_waiting(1, num_tokens=50, ttft_ms=70),
        make_waiting(2, arrival_ns=1, num_tokens=50, ttft_ms=105),
        make_waiting(3, arrival_ns=2, num_tokens=10),
    )
    assert serve_all(queue, PlainView()) == [1, 2, 3]


def test_one_about_to_miss_goes_before_the_shortest() -> None:
    queue = SjfWindowQueue()
    fill(
        queue,
        make_waiting(1, num_tokens=60),
        make_waiting(2, arrival_ns=1, num_tokens=40, ttft_ms=45),  # behind 1 it misses, before 3 it does not
        make_waiting(3, arrival_ns=2, num_tokens=10),
    )
    assert serve_all(queue, PlainView()) == [2, 3, 1]


@pytest.mark.parametrize(("ttft_ms", "first"), [((48, 43), 3), ((43, 48), 2)])
def test_of_two_about_to_miss_the_one_with_less_slack_goes_first(ttft_ms: tuple[int, int], first: int) -> None:
    queue = SjfWindowQueue()
    fill(
        queue,
        make_waiting(1, num_tokens=90),
        make_waiting(2, num_tokens=40, ttft_ms=ttft_ms[0]),
        make_waiting(3, num_tokens=40, ttft_ms=ttft_ms[1]),
        make_waiting(4, num_tokens=10),
    )
    assert serve_all(queue, PlainView())[0] == first


def test_the_least_slack_of_all_older_ones_counts() -> None:
    """In order of arrival the second would be in time by 5 ms and the third by 130 ms: the last, of 10 ms, waits."""
    queue = SjfWindowQueue()
    fill(
        queue,
        make_waiting(1, num_tokens=20),
        make_waiting(2, num_tokens=20, ttft_ms=45),
        make_waiting(3, num_tokens=30, ttft_ms=200),
        make_waiting(4, num_tokens=10),
    )
    assert serve_all(queue, PlainView())[0] == 1


def test_one_that_is_late_holds_up_nobody() -> None:
    queue = SjfWindowQueue()
    fill(queue, make_waiting(1, num_tokens=50, ttft_ms=49), make_waiting(2, arrival_ns=1, num_tokens=10))
    assert serve_all(queue, PlainView()) == [2, 1]


def test_a_long_prompt_is_overtaken_a_stated_number_of_times() -> None:
    queue = SjfWindowQueue(max_overtaken=3)
    long = make_waiting(0, num_tokens=500)
    queue.push(long)
    fill(queue, *(make_waiting(request_id, arrival_ns=request_id, num_tokens=5) for request_id in range(1, 9)))
    assert serve_all(queue, PlainView()) == [1, 2, 3, 0, 4, 5, 6, 7, 8]
    assert long.num_overtaken == 3


@pytest.mark.parametrize("make_queue", [SjfWindowQueue, ShortestCacheQueue, MemoryAwareDeadlineQueue])
def test_an_abort_between_does_not_hide_an_overtaking(make_queue: Callable[..., WaitingQueue]) -> None:
    queue = make_queue(max_overtaken=1)
    view = PlainView(free_tokens=100)
    fill(queue, *(make_waiting(request_id, num_tokens=length) for request_id, length in enumerate((500, 1, 2, 3))))
    assert getattr(queue.peek(view), "request_id", None) == 1
    queue.remove(2)
    queue.remove(1)
    assert getattr(queue.peek(view), "request_id", None) == 0


@every_discipline
def test_overtakings_count_anew_after_a_preemption(name: str) -> None:
    queue = choose_queue(name)
    request = make_waiting(0, num_tokens=500)
    fill(queue, request, make_waiting(1, num_tokens=5, ttft_ms=100))
    serve_all(queue, PlainView())
    assert request.num_overtaken == (name in ("sjf-window", "shortest-cache", "memory-aware-deadline"))
    queue.push(request)
    assert request.num_overtaken == 0


def test_an_abort_overtakes_nobody() -> None:
    queue = SjfWindowQueue()
    long = make_waiting(1, num_tokens=500)
    fill(queue, long, make_waiting(2, arrival_ns=1, num_tokens=5), make_waiting(3, arrival_ns=2, num_tokens=4))
    assert queue.peek(PlainView()) is not None
    queue.remove(2)
    assert long.num_overtaken == 0


def test_without_a_latency_model_nothing_is_about_to_miss() -> None:
    queue = SjfWindowQueue()
    fill(queue, make_waiting(1, num_tokens=50, ttft_ms=1), make_waiting(2, num_tokens=10))
    assert serve_all(queue, PlainView(ns_per_token=0)) == [2, 1]


# -- edf ---------------------------------------------------------------------------------------------------------------


def test_edf_serves_by_deadline_and_gives_the_others_an_implicit_one() -> None:
    queue = EdfQueue()
    implicit_ms = int(IMPLICIT_TTFT_S * 1000)
    fill(
        queue,
        make_waiting(1),
        make_waiting(2, arrival_ns=MS, ttft_ms=implicit_ms),
        make_waiting(3, arrival_ns=MS, ttft_ms=implicit_ms - 2),
    )
    assert serve_all(queue, PlainView()) == [3, 1, 2]


def test_edf_sorts_a_preempted_request_by_its_next_token() -> None:
    queue = EdfQueue()
    preempted = make_waiting(1)
    preempted.slo = SloClass("chat", ttft_s=0.001, tpot_s=0.05)
    preempted.tpot_ns = 50 * MS
    preempted.first_token_ns = 10 * MS
    preempted.output_token_ids = [1, 2]
    fill(queue, preempted, make_waiting(2, ttft_ms=109), make_waiting(3, ttft_ms=111))
    assert serve_all(queue, PlainView()) == [2, 1, 3]


# -- shortest-cache ----------------------------------------------------------------------------------------------------


def test_shortest_cache_looks_at_the_whole_queue_and_breaks_ties_by_the_longer_cached_prefix() -> None:
    queue = ShortestCacheQueue()
    fill(
        queue,
        *(make_waiting(request_id, num_tokens=50 + request_id) for request_id in range(100)),
        make_waiting(100, arrival_ns=1, num_tokens=20),
        make_waiting(101, arrival_ns=2, num_tokens=90, num_cached=70),
    )
    assert serve_all(queue, PlainView())[:3] == [101, 100, 0]


def test_shortest_cache_overtakes_nobody_beyond_its_bound() -> None:
    queue = ShortestCacheQueue(max_overtaken=2)
    fill(queue, *(make_waiting(request_id, num_tokens=50 - request_id) for request_id in range(5)))
    assert serve_all(queue, PlainView()) == [4, 3, 0, 1, 2]


def test_a_prefix_that_was_cached_meanwhile_brings_its_readers_forward() -> None:
    queue = ShortestCacheQueue()
    fill(queue, *(make_waiting(request_id, num_tokens=50) for request_id in range(4)))
    view = PlainView(uncached={3: 2})
    for _ in range(4):
        queue.peek(view)
        view.now_ns += REFRESH_INTERVAL_NS
    chosen = queue.peek(view)
    assert chosen is not None and chosen.request_id == 3
    assert queue.num_tokens == 152


def test_an_evicted_prefix_is_noticed_before_it_is_relied_on() -> None:
    queue = ShortestCacheQueue()
    fill(queue, make_waiting(1, num_tokens=30), make_waiting(2, num_tokens=50, num_cached=45))
    chosen = queue.peek(PlainView(uncached={2: 50}))
    assert chosen is not None and chosen.request_id == 1


@every_discipline
def test_the_prefix_tree_is_asked_at_most_twice_per_interval(name: str) -> None:
    queue = choose_queue(name)
    fill(queue, *(make_waiting(request_id, num_tokens=50) for request_id in range(20)))
    view = PlainView()
    for step in range(100):
        view.now_ns = step * REFRESH_INTERVAL_NS // 10
        queue.peek(view)
    assert view.num_asked <= 2 * 10


# -- memory-aware-deadline ---------------------------------------------------------------------------------------------


def test_the_first_due_that_fits_is_served_and_those_that_cannot_be_met_come_last() -> None:
    queue = MemoryAwareDeadlineQueue()
    fill(
        queue,
        make_waiting(1, num_tokens=50, ttft_ms=40),  # cannot be met
        make_waiting(2, arrival_ns=1, num_tokens=300, ttft_ms=400),  # does not fit
        make_waiting(3, arrival_ns=2, num_tokens=20, ttft_ms=500),
        make_waiting(4, arrival_ns=3, num_tokens=20, ttft_ms=450),
    )
    view = PlainView(free_tokens=100)
    assert serve_all(queue, view)[:3] == [4, 3, 1]


def test_where_nothing_fits_the_earliest_due_is_named() -> None:
    queue = MemoryAwareDeadlineQueue()
    fill(queue, make_waiting(1, num_tokens=50, ttft_ms=100), make_waiting(2, num_tokens=40, ttft_ms=90))
    chosen = queue.peek(PlainView(free_tokens=1))
    assert chosen is not None and chosen.request_id == 2


def test_a_request_is_not_given_up_for_a_share_that_was_small_for_a_moment() -> None:
    queue = MemoryAwareDeadlineQueue()
    fill(queue, make_waiting(1, num_tokens=50, ttft_ms=60), make_waiting(2, num_tokens=10, ttft_ms=500))
    view = PlainView(ns_per_token=2 * MS)
    assert getattr(queue.peek(view), "request_id", None) == 2
    view.ns_per_token = MS
    assert getattr(queue.peek(view), "request_id", None) == 1


def test_a_passed_deadline_goes_behind_even_where_many_passed_at_once() -> None:
    queue = MemoryAwareDeadlineQueue(window=4)
    fill(
        queue,
        *(make_waiting(request_id, num_tokens=5, ttft_ms=10) for request_id in range(20)),
        make_waiting(20, num_tokens=5, ttft_ms=100),
    )
    assert serve_all(queue, PlainView(now_ns=50 * MS))[:3] == [20, 0, 1]


def test_a_request_without_a_promise_is_never_late() -> None:
    queue = MemoryAwareDeadlineQueue()
    now_ns = int(2 * IMPLICIT_TTFT_S * 1e9)
    fill(queue, make_waiting(1), make_waiting(2, arrival_ns=now_ns, ttft_ms=100))
    assert serve_all(queue, PlainView(now_ns=now_ns))[0] == 1


def test_a_large_request_is_bypassed_but_not_for_ever() -> None:
    queue = MemoryAwareDeadlineQueue(max_overtaken=3)
    queue.push(make_waiting(0, num_tokens=500))
    fill(queue, *(make_waiting(request_id, arrival_ns=request_id, num_tokens=5) for request_id in range(1, 9)))
    assert serve_all(queue, PlainView(free_tokens=100))[:4] == [1, 2, 3, 0]
