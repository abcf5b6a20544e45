"""The load: open loop, on schedule whatever the server does, or closed loop with so many requests in flight."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import msgspec

from colocate.bench.http import HttpError, exchange
from colocate.bench.outcome import LoadCounts, make_row, microseconds, outcome_of
from colocate.bench.plan import BenchPlan
from colocate.bench.prompts import Answered, Prompts
from colocate.bench.records import Outcome, Phase, RequestRow
from colocate.bench.stream import StreamSink
from colocate.bench.target import Target
from colocate.workload.prompts import PromptLayout, lay_out
from colocate.workload.rows import WorkloadRow

_SPIN_S = 0.0015  # timers of the event loop wake up to a millisecond late: the rest is waited for turn by turn
_IDLE_S = 0.003  # with so much time until the next request, another prompt can be made
_MOST_PREPARED = 256 << 20  # bytes of requests made before they are due
_PREPARED_PER_SLOT = 16  # a closed loop may not come to most of its rows


class LoadRun:
    """One run of one workload. Used once.

    `on_row` gets every row as its request ends; what it raises stops the load. Times are seconds of `clock`, which is 0
    when `run` starts the load. The garbage collector is off meanwhile: a collection would be lateness.
    """

    def __init__(self, plan: BenchPlan, target: Target, prompts: Prompts, run_id: str) -> None:
        self._plan = plan
        self._target = target
        self._prompts = prompts
        self._run_id = run_id
        self._rows = plan.workload.rows
        self._layouts = lay_out(self._rows)
        self._before = _turns_before(self._rows)
        self._ended: dict[int, asyncio.Event] = {before: asyncio.Event() for before in self._before.values()}
        self._answers: dict[int, Answered] = {}
        self._prepared: dict[int, bytes] = {}
        self._next_unprepared = 0
        self._num_prepared_bytes = 0
        self._written: set[int] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._failure: BaseException | None = None
        self._offering: asyncio.Task[None] | None = None
        self._start_s = time.monotonic()
        self._on_row: Callable[[RequestRow], None] = lambda row: None
        self.counts = LoadCounts(offered=len(self._rows))
        self.load_s = plan.workload.duration_s  # of the load as it was; shorter where a closed loop ran out of rows
        self.num_taken = 0  # rows that a closed loop came to

    @property
    def is_closed(self) -> bool:
        return self._plan.concurrency is not None

    @property
    def started_s(self) -> float:
        """On the machine's monotonic clock, which its other processes share."""
        return self._start_s

    def clock(self) -> float:
        return time.monotonic() - self._start_s

    async def prepare(self) -> None:
        """Make requests ahead, as many as memory allows."""
        slots = self._plan.concurrency
        most = len(self._rows) if slots is None else slots * _PREPARED_PER_SLOT
        while self._may_prepare() and self._next_unprepared < most:
            if self._next_unprepared not in self._before:
                await self._prompts.settle(self._layouts[self._next_unprepared])
            self._prepare_next()
            if self._next_unprepared % 64 == 0:
                await asyncio.sleep(0)
        gc.collect()  # now, so that the start of the load need not wait for it

    def start_clock(self) -> None:
        self._start_s = time.monotonic()

    async def run(self, on_row: Callable[[RequestRow], None]) -> None:
        """Offer everything and wait for what comes of it. Every row is handed over, also when this is cancelled, which
        it passes on. Raises what `on_row` raised."""
        self._on_row = on_row
        with _no_collections():
            self._offering = asyncio.create_task(self._offer())
            try:
                await self._offering
            except asyncio.CancelledError:
                if self._failure is None:
                    raise
            finally:
                await self._end_all()
        if self._failure is not None:
            raise self._failure

    async def _offer(self) -> None:
        await (self._open() if self._plan.concurrency is None else self._closed(self._plan.concurrency))
        await self._drain()

    # Open loop

    async def _open(self) -> None:
        for index, row in enumerate(self._rows):
            await self._until(row.arrival_s)
            self._spawn(index, row.arrival_s)
        await self._until(self._plan.workload.duration_s)

    async def _until(self, due_s: float) -> None:
        while (left_s := due_s - self.clock()) > _SPIN_S:
            if left_s > _IDLE_S and self._may_prepare():
                self._prepare_next()
                await asyncio.sleep(0)
            else:
                await asyncio.sleep(left_s - _SPIN_S)
        while self.clock() < due_s:  # noqa: ASYNC110 - waits for a time, not for an event
            await asyncio.sleep(0)

    def _spawn(self, index: int, due_s: float | None) -> asyncio.Task[None]:
        task = asyncio.create_task(self._one(index, due_s))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    # Closed loop

    async def _closed(self, concurrency: int) -> None:
        indexes = iter(range(len(self._rows)))
        slots = [asyncio.create_task(self._slot(indexes)) for _ in range(concurrency)]
        try:
            await asyncio.gather(*slots)
        finally:
            for slot in slots:
                slot.cancel()
            await asyncio.gather(*slots, return_exceptions=True)
        if self.num_taken == len(self._rows):
            self.load_s = min(self.load_s, self.clock())

    async def _slot(self, indexes: Iterator[int]) -> None:
        while self.clock() < self._plan.workload.duration_s:
            index = next(indexes, None)
            if index is None:
                return
            self.num_taken = index + 1
            # Beyond the load a slot waits no longer: `_drain` sees to what is still under way.
            left_s = self._plan.workload.duration_s - self.clock()
            await asyncio.wait([self._spawn(index, None)], timeout=max(left_s, 0.0))

    # Both

    async def _drain(self) -> None:
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=self._plan.drain_s)

    async def _end_all(self) -> None:
        """Cut off what is under way and account for every row."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        num_offered = len(self._rows) if self._plan.concurrency is None else self.num_taken
        self.counts.offered = num_offered
        for index in range(num_offered):
            if index not in self._written and self._failure is None:
                row = self._rows[index]
                self._write(index, row.arrival_s, None, StreamSink(), "not_sent")

    async def _one(self, index: int, due_s: float | None) -> None:
        """`due_s` is None in a closed loop: as soon as it can be sent."""
        sink = StreamSink(self.clock, self._target.needs_done, keep_text=index in self._ended)
        sent_s: float | None = None
        outcome: Outcome | None = None
        before = self._before.get(index)
        try:
            if before is not None:
                await self._ended[before].wait()
                if due_s is not None:
                    due_s = max(due_s, self.clock())
            request = self._take_request(index)
            sent_s = self.clock()
            due_s = sent_s if due_s is None else due_s
            self._has_sent(sent_s - due_s)
            try:
                await exchange(self._target.address, request, sink, self._plan.timeout_s)
                sink.settle()
            except HttpError as error:
                sink.broke(error)
        except asyncio.CancelledError:
            outcome = "not_sent" if sent_s is None else "cut_off"
        except Exception as error:  # of this client: no figure of the server
            outcome = "not_sent" if sent_s is None else "cut_off"
            self._stop(error)
        finally:
            if sent_s is not None:
                self.counts.in_flight -= 1
        due_s = self._rows[index].arrival_s if due_s is None else due_s
        self._write(index, due_s, sent_s, sink, outcome or outcome_of(sink))
        if index in self._ended:
            self._answers[self._layouts[index].answer] = Answered(sink.token_ids, "".join(sink.text))
            self._ended[index].set()

    def _has_sent(self, late_s: float) -> None:
        counts = self.counts
        counts.sent += 1
        counts.in_flight += 1
        counts.most_in_flight = max(counts.most_in_flight, counts.in_flight)
        counts.late_s.append(late_s)

    def _may_prepare(self) -> bool:
        return self._next_unprepared < len(self._rows) and self._num_prepared_bytes < _MOST_PREPARED

    def _prepare_next(self) -> None:
        index = self._next_unprepared
        self._next_unprepared += 1
        if index in self._before:
            return  # holds an answer that has not come yet
        request = self._prepared[index] = self._request(index)
        self._num_prepared_bytes += len(request)

    def _take_request(self, index: int) -> bytes:
        request = self._prepared.pop(index, None)
        if request is None:
            return self._request(index)
        self._num_prepared_bytes -= len(request)
        return request

    def _request(self, index: int) -> bytes:
        self._next_unprepared = max(self._next_unprepared, index + 1)
        row, layout = self._rows[index], self._layouts[index]
        headers = {"x-request-id": f"{self._run_id}-{index}"}
        if row.slo_class in self._target.slo_classes:
            headers["x-slo-class"] = row.slo_class
        fields = self._prompts.fields(layout, self._answers_of(layout))
        body = self._target.body(fields, row.output_tokens, self._plan.extra_body)
        return self._target.request(body, headers)

    def _answers_of(self, layout: PromptLayout) -> dict[int, Answered]:
        return {number: self._answers[number] for number, _ in layout.pieces if number in self._answers}

    def _write(self, index: int, due_s: float, sent_s: float | None, sink: StreamSink, outcome: Outcome) -> None:
        row = make_row(index, self._rows[index], self._phase(index, due_s), due_s, sent_s, sink, outcome)
        ended_s = sink.last_byte_s if outcome == "finished" else self.clock()
        row = msgspec.structs.replace(
            row,
            end_s=None if sent_s is None or ended_s is None else microseconds(ended_s),
            token_ids=tuple(sink.token_ids) if self._plan.keep_token_ids else None,
        )
        self.counts.add(row, sink.prompt_tokens)
        self._written.add(index)
        try:
            self._on_row(row)
        except Exception as error:
            self._stop(error)

    def _stop(self, error: Exception) -> None:
        """`run` raises the first of them."""
        if self._failure is None:
            self._failure = error
            if self._offering is not None:
                self._offering.cancel()

    def _phase(self, index: int, due_s: float) -> Phase:
        """By the schedule: in a closed loop by when a slot took it, so that a slow server does not shift it."""
        at_s = self._rows[index].arrival_s if self._plan.concurrency is None else due_s
        if at_s < self._plan.warmup_s:
            return "warmup"
        return "cooldown" if at_s >= self._plan.workload.duration_s - self._plan.cooldown_s else "measured"


def _turns_before(rows: tuple[WorkloadRow, ...]) -> dict[int, int]:
    """Index of a later turn -> index of the turn before."""
    last: dict[str, int] = {}
    before: dict[int, int] = {}
    for index, row in enumerate(rows):
        if row.session:
            if row.session in last:
                before[index] = last[row.session]
            last[row.session] = index
    return before


@contextmanager
def _no_collections() -> Iterator[None]:
    """Prepared requests are many objects: walking them in the middle of a run would be lateness."""
    gc.freeze()
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
        gc.unfreeze()
