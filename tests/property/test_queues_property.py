"""Queue disciplines over random histories: nobody starves, sums stay right, promises that hold are not broken."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from itertools import accumulate, permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from colocate.core.queues.choose import DISCIPLINES
from colocate.core.queues.due import due_ns, is_meetable
from colocate.core.queues.edf import EdfQueue
from colocate.core.queues.fcfs import FcfsQueue
from colocate.core.queues.memory_aware_deadline import MemoryAwareDeadlineQueue
from colocate.core.queues.shortest_cache import ShortestCacheQueue
from colocate.core.queues.sjf_window import SjfWindowQueue
from colocate.core.queues.tally import pairs_of
from colocate.core.queues.waiting import WaitingQueue
from colocate.core.request import NEVER, Request
from tests.property.queue_world import MS, PlainView, make_waiting

# Windows and bounds so small that short histories reach them.
SMALL = {
    "fcfs": (FcfsQueue, 0),
    "sjf-window": (lambda: SjfWindowQueue(window=4, max_overtaken=3), 3),
    "edf": (EdfQueue, None),
    "shortest-cache": (lambda: ShortestCacheQueue(max_overtaken=3), 3),
    "memory-aware-deadline": (lambda: MemoryAwareDeadlineQueue(window=4, max_overtaken=3), 3),
}

prompts = st.fixed_dictionaries(
    {
        "num_tokens": st.integers(2, 60),
        "cached_part": st.floats(0, 0.9),
        "ttft_ms": st.none() | st.integers(1, 400),
        "priority": st.sampled_from([0, 0, 0, 0, -1, 2]),
    }
)
histories = st.lists(
    st.one_of(
        st.tuples(st.just("push"), prompts),
        st.tuples(st.just("push"), prompts),
        st.tuples(st.just("serve")),
        st.tuples(st.just("serve")),
        st.tuples(st.just("look")),
        st.tuples(st.just("abort"), st.integers(0, 50)),
        st.tuples(st.just("preempt"), st.integers(0, 50)),
        st.tuples(st.just("wait"), st.integers(1, 100)),
        st.tuples(st.just("cache"), st.integers(0, 50), st.integers(1, 60)),
        st.tuples(st.just("room"), st.integers(0, 80)),
    ),
    max_size=60,
)


@dataclass
class QueueWorld:
    """One queue, with the truth about it kept beside it by brute force."""

    queue: WaitingQueue
    bound: int | None
    view: PlainView = field(default_factory=PlainView)
    waiting: dict[int, Request] = field(default_factory=dict)
    running: list[Request] = field(default_factory=list)
    overtaken: Counter[int] = field(default_factory=Counter)  # during this stay in the queue
    num_pushed: int = 0

    def perform(self, action: tuple) -> None:
        name, *arguments = action
        getattr(self, name)(*arguments)

    def push(self, prompt: dict) -> None:
        self.num_pushed += 1
        num_tokens = prompt["num_tokens"]
        request = make_waiting(
            self.num_pushed,
            arrival_ns=self.view.now_ns,
            num_tokens=num_tokens,
            num_cached=int(num_tokens * prompt["cached_part"]),
            priority=prompt["priority"],
            ttft_ms=prompt["ttft_ms"],
        )
        self._enter(request)

    def _enter(self, request: Request) -> None:
        self.waiting[request.request_id] = request
        self.overtaken[request.request_id] = 0
        self.queue.push(request)

    def look(self) -> Request | None:
        request = self.queue.peek(self.view)
        again = self.queue.peek(self.view)
        assert request is again
        assert (request is None) == (not self.waiting)
        if request is not None:
            assert self.waiting[request.request_id] is request
            assert request.priority == min(other.priority for other in self.waiting.values())
        return request

    def serve(self) -> None:
        request = self.look()
        if request is None:
            return
        self._leave(request)
        self.running.append(request)
        for other in self.waiting.values():
            if other.priority == request.priority and other.order < request.order:
                self.overtaken[other.request_id] += 1
        self.view.now_ns += request.num_uncached * self.view.ns_per_token

    def _leave(self, request: Request) -> None:
        del self.waiting[request.request_id]
        self.queue.remove(request.request_id)

    def abort(self, nth: int) -> None:
        if self.waiting:
            self._leave(list(self.waiting.values())[nth % len(self.waiting)])

    def preempt(self, nth: int) -> None:
        """One that was served loses its blocks; half of them have sent their first token."""
        if self.running:
            request = self.running.pop(nth % len(self.running))
            if nth % 2:
                request.first_token_ns = self.view.now_ns
                request.output_token_ids.append(1)
            request.num_uncached = request.num_prefill_tokens
            self._enter(request)

    def wait(self, num_ms: int) -> None:
        self.view.now_ns += num_ms * MS

    def cache(self, request_id: int, num_uncached: int) -> None:
        request = self.waiting.get(request_id)
        if request is not None:
            self.view.uncached[request_id] = min(num_uncached, request.num_prefill_tokens)

    def room(self, num_tokens: int) -> None:
        self.view.free_tokens = num_tokens

    def check(self) -> None:
        queue, waiting = self.queue, self.waiting.values()
        assert len(queue) == len(waiting)
        assert all(request_id in queue for request_id in self.waiting)
        assert queue.num_tokens == sum(request.num_uncached for request in waiting)
        assert queue.num_pairs == sum(pairs_of(request) for request in waiting)
        now_ns = self.view.now_ns
        deadlines = [due_ns for request in waiting if now_ns <= (due_ns := request.ttft_deadline_ns) != NEVER]
        assert queue.earliest_deadline_ns(now_ns) == min(deadlines, default=None)
        if self.bound is not None:
            assert max((self.overtaken[request_id] for request_id in self.waiting), default=0) <= self.bound


@pytest.mark.parametrize("name", list(SMALL))
@given(history=histories)
@settings(deadline=None, max_examples=80)
def test_over_any_history_the_books_balance_and_everybody_is_served(name: str, history: list[tuple]) -> None:
    make_queue, bound = SMALL[name]
    world = QueueWorld(make_queue(), bound)
    for action in history:
        world.perform(action)
        world.check()
    while world.waiting:
        world.serve()
        world.check()
    assert world.queue.peek(world.view) is None


def test_every_discipline_is_tested_here() -> None:
    assert set(SMALL) == set(DISCIPLINES)


@given(history=histories)
@settings(deadline=None, max_examples=80)
def test_sjf_counts_overtakings_exactly_until_somebody_named_is_aborted(history: list[tuple]) -> None:
    world = QueueWorld(SjfWindowQueue(window=4, max_overtaken=3), 3)
    for action in history:
        if action[0] != "abort":
            world.perform(action)
        for request_id, request in world.waiting.items():
            assert request.num_overtaken == world.overtaken[request_id]


@pytest.mark.parametrize("name", ["sjf-window", "shortest-cache", "memory-aware-deadline"])
@given(num_old=st.integers(0, 4), lengths=st.lists(st.integers(1, 9), min_size=30, max_size=30))
@settings(deadline=None, max_examples=50)
def test_an_endless_stream_of_better_ones_does_not_starve_the_longest(
    name: str, num_old: int, lengths: list[int]
) -> None:
    """It is late, it does not fit, and others are shorter: after the bound, and those older than it, it is its turn."""
    make_queue, bound = SMALL[name]
    world = QueueWorld(make_queue(), bound)
    world.view.free_tokens = 100
    old = {"num_tokens": 20, "cached_part": 0.0, "ttft_ms": None, "priority": 0}
    for _ in range(num_old):
        world.push(old)
    world.push(old | {"num_tokens": 200, "ttft_ms": 1})
    longest = world.waiting[num_old + 1]
    num_served = 0
    while longest.request_id in world.waiting:
        world.push(old | {"num_tokens": lengths[num_served], "ttft_ms": 1_000})
        world.serve()
        num_served += 1
    assert num_served <= bound + num_old + 1


arrivals = st.lists(
    st.tuples(st.integers(0, 40), st.integers(1, 60), st.none() | st.integers(1, 300)), min_size=1, max_size=25
)


def serve_arrivals(queue: WaitingQueue, requests: list[Request]) -> set[int]:
    """One server, one request at a time, in a world where predictions are true. Who had its first token in time."""
    view = PlainView()
    coming = list(requests)
    in_time: set[int] = set()
    while coming or len(queue):
        if not len(queue):
            view.now_ns = max(view.now_ns, coming[0].arrival_ns)
        while coming and coming[0].arrival_ns <= view.now_ns:
            queue.push(coming.pop(0))
        request = queue.peek(view)
        assert request is not None
        queue.remove(request.request_id)
        view.now_ns += request.num_uncached * view.ns_per_token
        if view.now_ns <= request.ttft_deadline_ns != NEVER:
            in_time.add(request.request_id)
    return in_time


def make_arrivals(plan: list[tuple[int, int, int | None]]) -> list[Request]:
    requests, now_ns = [], 0
    for request_id, (gap_ms, num_tokens, ttft_ms) in enumerate(plan):
        now_ns += gap_ms * MS
        requests.append(make_waiting(request_id, arrival_ns=now_ns, num_tokens=num_tokens, ttft_ms=ttft_ms))
    return requests


@given(plan=arrivals, window=st.integers(1, 8), max_overtaken=st.integers(1, 6))
@settings(deadline=None, max_examples=200)
def test_who_is_in_time_in_order_of_arrival_is_in_time_with_sjf(
    plan: list[tuple[int, int, int | None]], window: int, max_overtaken: int
) -> None:
    requests = make_arrivals(plan)
    assert serve_arrivals(FcfsQueue(), requests) <= serve_arrivals(SjfWindowQueue(window, max_overtaken), requests)


together = st.lists(st.tuples(st.integers(1, 60), st.none() | st.integers(1, 300)), min_size=1, max_size=5)


@given(plan=together)
@settings(deadline=None, max_examples=100)
def test_edf_meets_every_deadline_if_any_order_does(plan: list[tuple[int, int | None]]) -> None:
    requests = [make_waiting(i, num_tokens=n, ttft_ms=ttft_ms) for i, (n, ttft_ms) in enumerate(plan)]
    promised = [request for request in requests if request.ttft_deadline_ns != NEVER]

    def meets_all(order: tuple[Request, ...]) -> bool:
        ends_ns = accumulate(request.num_uncached * MS for request in order)
        return all(end_ns <= request.ttft_deadline_ns for end_ns, request in zip(ends_ns, order, strict=True))

    is_feasible = any(meets_all(order) for order in permutations(promised))
    assert (len(serve_arrivals(EdfQueue(), requests)) == len(promised)) == is_feasible


@given(history=histories)
@settings(deadline=None, max_examples=80)
def test_memory_aware_deadline_names_whom_its_rule_says(history: list[tuple]) -> None:
    """Against the rule written down plainly, with a window and a bound that no history here reaches."""
    world = QueueWorld(MemoryAwareDeadlineQueue(window=100, max_overtaken=1_000), None)
    for action in history:
        world.perform(action)
        chosen = world.look()
        if chosen is not None:
            assert chosen is expected_by_rule(world)


def expected_by_rule(world: QueueWorld) -> Request:
    view = world.view
    first = min(request.priority for request in world.waiting.values())
    requests = [request for request in world.waiting.values() if request.priority == first]

    def standing(request: Request) -> tuple[int, ...]:
        if is_meetable(request, view.now_ns, view.predicted_s(request)):
            return (0, due_ns(request), *request.order)
        if is_meetable(request, view.now_ns, 0.0):
            return (1, due_ns(request), *request.order)
        return (2, *request.order)

    ranked = sorted(requests, key=standing)
    return next((request for request in ranked if view.fits(request)), ranked[0])


@given(history=histories)
@settings(deadline=None, max_examples=80)
def test_shortest_cache_names_the_fewest_uncached_tokens(history: list[tuple]) -> None:
    world = QueueWorld(ShortestCacheQueue(max_overtaken=1_000), None)
    for action in history:
        world.perform(action)
        chosen = world.look()
        if chosen is not None:
            assert chosen.num_uncached == min(
                other.num_uncached for other in world.waiting.values() if other.priority == chosen.priority
            )
