"""The prefill and hybrid loops over executors of depth 2: a slice is launched before the one ahead of it is done."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from colocate.messages.control import EngineAt
from colocate.messages.decode import DecodeUpdate, StepReport
from colocate.messages.prefill import (
    BatchFailed,
    PrefillBatch,
    PrefillCancel,
    PrefillCancelled,
    PrefillDone,
    PrefillRowDone,
)
from colocate.types import Role
from colocate.worker.executor import HybridResult, StandingRow, StepTokens
from colocate.worker.hybrid_loop import HybridLoop
from colocate.worker.prefill_loop import PrefillLoop
from colocate.worker.station import Turn
from tests.unit.test_steps_ahead import TwoAhead
from tests.worker_harness import Bench, decode_row, prefill_row

NUM_LAYERS = 4


@dataclass
class Device:
    """Implements `PrefillExecutor`. Slices run in the order of their launch, each when somebody waits for it."""

    fails_in: int = 0  # the batch whose second slice raises when it is waited for
    slice_ns: int = 0  # what a layer takes, on the bench's clock
    num_layers: int = NUM_LAYERS
    depth: int = 2
    bench: Bench | None = None
    queue: deque[tuple[Forward, int, frozenset[tuple[int, int]]]] = field(default_factory=deque)
    story: list[tuple[str, int]] = field(default_factory=list)
    touched: list[tuple[int, int]] = field(default_factory=list)  # rows, as slices over them ran
    open_forwards: int = 0
    most_open: int = 0

    def begin(self, batch: PrefillBatch) -> Forward:
        self.open_forwards += 1
        self.most_open = max(self.most_open, self.open_forwards)
        return Forward(self, batch)

    def run_until(self, forward: Forward, num_waited: int) -> None:
        while forward.num_run < num_waited:
            each, layers, rows = self.queue.popleft()
            each.num_run += 1
            self.touched += sorted(rows)
            self.story.append(("ran", each.batch.batch_id))
            if self.bench is not None:
                self.bench.clock.now_ns += layers * self.slice_ns

    def units_changed(self, num_units: int) -> None:
        pass


class Forward:
    """Implements `PrefillForward`."""

    def __init__(self, device: Device, batch: PrefillBatch) -> None:
        self.device, self.batch = device, batch
        self.rows = {(row.request_id, row.incarnation) for row in batch.rows}
        self.layers_left = device.num_layers
        self.num_launched = self.num_waited = self.num_run = 0
        self.is_closed = False

    def run_slice(self, max_layers: int = 1) -> bool:
        assert not self.is_closed and self.layers_left and len(self.device.queue) < self.device.depth
        layers = min(max_layers, self.layers_left)
        self.layers_left -= layers
        self.num_launched += 1
        self.device.queue.append((self, layers, frozenset(self.rows)))
        self.device.story.append(("launched", self.batch.batch_id))
        return self.layers_left == 0

    def wait_slice(self) -> None:
        self.num_waited += 1
        self.device.run_until(self, self.num_waited)
        if self.batch.batch_id == self.device.fails_in and self.num_waited == 2:
            raise RuntimeError("boom")

    def drop_rows(self, rows: set[tuple[int, int]]) -> None:
        self.device.run_until(self, self.num_launched)
        self.rows -= rows

    def results(self) -> list[PrefillRowDone]:
        assert self.num_waited == self.num_launched and not self.layers_left
        self._close()
        keys = [(row.request_id, row.incarnation) for row in self.batch.rows]
        self.device.story.append(("results", self.batch.batch_id))
        return [PrefillRowDone(*key, 5) for key in keys if key in self.rows]

    def abandon(self) -> None:
        self.device.run_until(self, self.num_launched)
        self._close()

    def _close(self) -> None:
        assert not self.is_closed, "a forward ends once"
        self.is_closed = True
        self.device.open_forwards -= 1


@pytest.fixture
def device() -> Device:
    return Device()


@pytest.fixture
def bench(device: Device) -> Iterator[Bench]:
    bench = Bench(Role.PREFILL, prefill=device)
    bench.settle()
    yield bench
    bench.close()


def done(messages: Sequence[object]) -> list[PrefillDone]:
    return [message for message in messages if isinstance(message, PrefillDone)]


def test_the_next_forward_begins_before_this_one_is_answered(bench: Bench, device: Device) -> None:
    for batch_id in (1, 2):
        bench.say(PrefillBatch(batch_id, [prefill_row(batch_id)]))
    assert [each.batch_id for each in done(bench.settle())] == [1, 2]
    assert device.story.index(("launched", 2)) < device.story.index(("results", 1))
    assert [name for name, _ in device.story if name != "results"][:4] == ["launched", "launched", "ran", "launched"]


def test_a_cancel_is_answered_when_no_slice_under_way_has_the_row(bench: Bench, device: Device) -> None:
    bench.say(PrefillBatch(1, [prefill_row(1), prefill_row(2)]))
    bench.turn()
    assert len(device.queue) == 1
    bench.say(PrefillCancel([(2, 1)]))
    bench.turn()
    assert PrefillCancelled([(2, 1)]) in bench.heard()
    device.touched.clear()
    (only,) = done(bench.settle())
    assert [row.request_id for row in only.rows] == [1] and (2, 1) not in device.touched


def test_a_cancel_reaches_a_forward_that_is_launched_to_its_end(bench: Bench, device: Device) -> None:
    bench.say(PrefillBatch(1, [prefill_row(1)]))
    bench.turn(NUM_LAYERS)
    assert isinstance(bench.loop, PrefillLoop) and bench.loop.queue.head() is None and device.queue
    bench.say(PrefillCancel([(1, 1)]))
    messages = bench.settle()
    assert messages[0] == PrefillCancelled([(1, 1)]) and [each.rows for each in done(messages)] == [[]]
    assert bench.loop.queue.num_cancelled == 1


def test_a_whole_batch_cancelled_in_mid_flight_is_answered_once(bench: Bench, device: Device) -> None:
    bench.say(PrefillBatch(1, [prefill_row(1)]))
    bench.say(PrefillBatch(2, [prefill_row(2)]))
    bench.turn(2)
    bench.say(PrefillCancel([(1, 1)]))
    assert [(each.batch_id, len(each.rows)) for each in done(bench.settle())] == [(1, 0), (2, 1)]
    assert device.open_forwards == 0 and not device.queue


def test_an_urgent_batch_goes_between_slices_and_three_forwards_are_open_at_most(bench: Bench, device: Device) -> None:
    bench.say(PrefillBatch(1, [prefill_row(1)]))
    bench.turn(2)
    for batch_id in (2, 3):
        bench.say(PrefillBatch(batch_id, [prefill_row(batch_id)], urgent=True))
    assert [each.batch_id for each in done(bench.settle())] == [2, 3, 1]
    assert device.most_open == 3, "one aside, one launched to its end, one that begins"
    assert device.open_forwards == 0


def test_a_slice_that_fails_takes_its_batch_only(device: Device) -> None:
    device.fails_in = 1
    bench = Bench(Role.PREFILL, prefill=device)
    for batch_id in (1, 2):
        bench.say(PrefillBatch(batch_id, [prefill_row(batch_id)]))
    messages = bench.settle()
    assert [message.batch_id for message in messages if isinstance(message, BatchFailed)] == [1]
    assert [each.batch_id for each in done(messages)] == [2] and device.open_forwards == 0 and not device.queue
    bench.close()


def test_a_new_engine_is_greeted_when_all_slices_have_run(bench: Bench, device: Device) -> None:
    bench.say(PrefillBatch(1, [prefill_row(1)]))
    bench.turn(2)
    assert device.queue
    bench.supervisor.send(EngineAt(2, "engine-2"))
    bench.turn()
    assert not device.queue and device.open_forwards == 0
    assert bench.settle("engine-2") and not done(bench.heard("engine-2"))


def test_without_units_what_is_launched_is_still_answered(bench: Bench, device: Device) -> None:
    bench.say(PrefillBatch(1, [prefill_row(1)]))
    bench.turn(NUM_LAYERS)
    bench.set_plan("all-decode")
    assert [each.batch_id for each in done(bench.settle())] == [1]
    assert bench.turn() is Turn.WAITING


def test_the_pace_learns_how_long_slices_ran_not_how_long_launches_took(device: Device) -> None:
    device.slice_ns, device.num_layers = 30_000_000, 24
    bench = device.bench = Bench(Role.PREFILL, prefill=device, max_slice_s=0.25)
    bench.say(PrefillBatch(1, [prefill_row(1, 1000)]))
    bench.settle()
    device.story.clear()
    bench.say(PrefillBatch(2, [prefill_row(2, 1000)]))
    (report,) = done(bench.settle())
    num_slices = device.story.count(("launched", 2))
    assert 3 <= num_slices <= 6, "seven layers of 30 ms, and the clock's own steps, fill a slice"
    assert report.finished_ns - report.started_ns >= 24 * 30_000_000
    bench.close()


batches = st.lists(
    st.one_of(
        st.tuples(st.just("batch"), st.integers(1, 3), st.booleans()),
        st.tuples(st.just("cancel"), st.integers(1, 20), st.booleans()),
        st.tuples(st.just("turn"), st.integers(1, 6), st.booleans()),
    ),
    min_size=3,
    max_size=30,
)


@settings(max_examples=200, deadline=None)
@given(batches, st.sampled_from([0, 0, 2]))
def test_every_batch_is_answered_once_with_the_rows_nobody_cancelled(sequence: list[tuple], fails_in: int) -> None:
    device = Device(fails_in=fails_in)
    bench = Bench(Role.PREFILL, prefill=device)
    bench.settle()
    sent: dict[int, set[tuple[int, int]]] = {}
    num_rows, messages = 0, []
    for name, number, urgent in sequence:
        if name == "batch":
            rows = [prefill_row(num_rows + index) for index in range(1, number + 1)]
            num_rows += number
            sent[len(sent) + 1] = {(row.request_id, 1) for row in rows}
            bench.say(PrefillBatch(len(sent), rows, urgent=urgent))
        elif name == "cancel" and num_rows:
            bench.say(PrefillCancel([(1 + number % num_rows, 1)]))
        elif name == "turn":
            bench.turn(number)
            messages += bench.heard()
    messages += bench.settle()
    bench.close()
    answered = [(each.batch_id, {(row.request_id, 1) for row in each.rows}) for each in done(messages)]
    failed = [each.batch_id for each in messages if isinstance(each, BatchFailed)]
    cancelled = {key for each in messages if isinstance(each, PrefillCancelled) for key in each.rows}
    assert sorted([*failed, *(batch_id for batch_id, _ in answered)]) == sorted(sent)
    for batch_id, rows in answered:
        assert sent[batch_id] - cancelled <= rows <= sent[batch_id]
    assert not device.queue and device.open_forwards == 0 and device.most_open <= 3


class HybridAhead:
    """Implements `HybridExecutor` over the lagging device of decode steps; chunks take no layers."""

    depth = 2

    def __init__(self) -> None:
        self.steps = TwoAhead()
        self.under_way: deque[tuple[PrefillBatch | None, bool]] = deque()

    def may_run_ahead(self, batch: PrefillBatch | None, rows: Sequence[StandingRow], version: int) -> bool:
        return True

    def launch(self, batch: PrefillBatch | None, rows: Sequence[StandingRow], version: int) -> None:
        assert len(self.under_way) < self.depth and (batch is not None or rows)
        if rows:
            self.steps.launch(rows, version)
        self.under_way.append((batch, bool(rows)))

    def collect(self) -> HybridResult:
        batch, has_rows = self.under_way.popleft()
        tokens: StepTokens | None = self.steps.collect() if has_rows else None
        rows = batch.rows if batch is not None else []
        return HybridResult(tokens, [PrefillRowDone(row.request_id, row.incarnation, 5) for row in rows])

    def abandon(self) -> None:
        self.under_way.clear()
        self.steps.abandon()

    def units_changed(self, num_units: int) -> None:
        pass


@pytest.fixture
def hybrid() -> Iterator[tuple[Bench, HybridAhead]]:
    bench, ahead = Bench(Role.HYBRID), HybridAhead()
    assert isinstance(bench.loop, HybridLoop)
    bench.loop.executor = ahead
    bench.settle()
    yield bench, ahead
    bench.close()


def test_chunks_and_rows_run_ahead_together(hybrid: tuple[Bench, HybridAhead]) -> None:
    bench, ahead = hybrid
    bench.say(DecodeUpdate(joins=[decode_row(1, max_tokens=8)]))
    for batch_id in (1, 2):
        bench.say(PrefillBatch(batch_id, [prefill_row(batch_id + 10)]))
    bench.turn(2)
    assert [batch.batch_id for batch, _ in ahead.under_way if batch is not None] == [2], "the first is answered"
    messages = bench.settle()
    assert [each.batch_id for each in done(messages)] == [1, 2]
    assert sum(len(each.rows) for each in messages if isinstance(each, StepReport)) == 7


def test_a_chunk_under_way_is_answered_before_its_cancel(hybrid: tuple[Bench, HybridAhead]) -> None:
    bench, ahead = hybrid
    bench.say(PrefillBatch(1, [prefill_row(1)]))
    bench.turn()
    assert ahead.under_way
    bench.say(PrefillCancel([(1, 1)]))
    first, second = bench.settle()
    assert isinstance(first, PrefillDone) and len(first.rows) == 1
    assert second == PrefillCancelled([(1, 1)])
