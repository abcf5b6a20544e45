"""The hybrid worker's loop, mode `chunked`: every turn is one forward over the head chunk and the whole standing batch.

The next chunk is in the inbox while one runs, so a turn never waits for the engine between two chunks. What is common
with the other loops is theirs: `PrefillQueue` orders chunks (urgent ones first), `StandingBatch` holds the rows, and a
forward is launched ahead of the tokens of the one before as in `DecodeLoop`.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import NamedTuple

from colocate.errors import DeviceLost
from colocate.messages.decode import DecodeUpdate, StepReport
from colocate.messages.prefill import BatchFailed, PrefillBatch, PrefillCancel, PrefillDone
from colocate.types import Role
from colocate.worker.engine_link import Order
from colocate.worker.executor import HybridExecutor, HybridResult, StandingRow, StepTokens
from colocate.worker.flight import Flight
from colocate.worker.prefill_queue import HeldBatch, PrefillQueue
from colocate.worker.standing_batch import StandingBatch
from colocate.worker.station import Station, Turn

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class HybridCounts:
    steps: int = 0  # forwards with standing rows
    batches: int = 0  # chunks done
    failed: int = 0


class LaunchedForward(NamedTuple):
    held: HeldBatch | None
    rows: list[StandingRow]
    is_empty: bool  # every row of the chunk was cancelled, and no row stood
    plan_seq: int


@dataclass(slots=True)
class HybridLoop:
    """Owns the waiting chunks and the standing batch. `turn` never blocks for longer than one forward, and those
    launched before it."""

    station: Station
    executor: HybridExecutor
    batch: StandingBatch
    counts: HybridCounts = field(default_factory=HybridCounts)
    queue: PrefillQueue = field(default_factory=PrefillQueue)
    _flight: Flight[LaunchedForward] = field(init=False)

    def __post_init__(self) -> None:
        self._flight = Flight(self.station.progress)

    def turn(self) -> Turn:
        order = self.station.orders(self._let_go)
        if order is Order.LEAVE:
            return Turn.LEFT
        if order is Order.RESET:
            self.queue.clear()
            self.batch.clear()
        self._read_inbox()
        may_step = self.station.settle()
        self.batch.mask_full_rows()
        if self._step(may_step):
            return Turn.WORKED
        self._acknowledge()
        return Turn.WAITING

    def _read_inbox(self) -> None:
        while (message := self.station.link.recv()) is not None:
            if isinstance(message, DecodeUpdate):
                self.batch.apply(message)
            elif isinstance(message, PrefillBatch):
                self.queue.add(message)
            elif isinstance(message, PrefillCancel):
                self._finish_chunks(message)
                self.station.link.send(self.queue.cancel(message))

    def _finish_chunks(self, message: PrefillCancel) -> None:
        """A chunk runs whole: one under way with such a row is reported before the cancel is answered."""
        wanted = set(message.rows)
        while any(forward.held is not None and forward.held.keys & wanted for forward in self._flight):
            self._step(may_step=False)

    def _acknowledge(self) -> None:
        """Leaves and masks, where no step carries them."""
        if self.batch.has_acknowledgements:
            left, masked = self.batch.take_acknowledgements()
            self.station.link.send(StepReport(step=self.counts.steps, rows=[], left=left, masked=masked))

    def _step(self, may_step: bool) -> bool:
        """Launch a forward where there is room, and handle the oldest one where there is none. False: nothing to do."""
        try:
            launched = may_step and self._launch()
            if not self._flight:
                return False
            if not launched or len(self._flight) >= self.executor.depth:
                self._collect()
        except DeviceLost:
            raise
        except Exception as error:  # the worker outlives any forward; the engine decides what becomes of its rows
            self._fail(error)
        return True

    def _launch(self) -> bool:
        batch, held = self.batch, self.queue.head()
        rows = batch.next_step()
        chunk = held.remaining() if held is not None and held.keys else None
        is_empty = chunk is None and not rows
        if is_empty and (held is None or self._flight):
            return False
        if self._flight and not self.executor.may_run_ahead(chunk, rows, batch.version):
            return False
        num_tokens = held.num_tokens if held is not None else 0
        self._flight.add(LaunchedForward(held, rows, is_empty, self.station.boundary.plan_seq), len(rows) + num_tokens)
        if held is not None:
            self.queue.pop()
        if not is_empty:
            self.executor.launch(chunk, rows, batch.version)
            batch.launched(rows)
        return True

    def _collect(self) -> None:
        batch, forward = self.batch, self._flight.oldest
        result = HybridResult(None, []) if forward.is_empty else self.executor.collect()
        started_ns, finished_ns = self._flight.land()
        step_rows = [] if forward.is_empty else batch.record(forward.rows, result.tokens or StepTokens([]))
        if forward.rows:
            self.counts.steps += 1
            left, masked = batch.take_acknowledgements()
            report = StepReport(self.counts.steps, step_rows, left, masked, started_ns, finished_ns, forward.plan_seq)
            self.station.link.send(report)
        elif not self._flight:
            self._acknowledge()
        if forward.held is not None:
            self.counts.batches += 1
            batch_id = forward.held.message.batch_id
            self.station.link.send(PrefillDone(batch_id, result.done, started_ns, finished_ns, forward.plan_seq))

    def _let_go(self) -> None:
        """What is under way ends, and nobody hears of it."""
        self.executor.abandon()
        self._flight.clear()

    def _fail(self, error: Exception) -> None:
        """Both phases were in it: the rows that stood leave, the chunks under way are given up."""
        _log.error("hybrid forward after step %d failed", self.counts.steps, exc_info=error)
        self.counts.failed += 1
        reason = f"{type(error).__name__}: {error}"
        given_up = [forward.held for forward in self._flight if forward.held is not None]
        self._let_go()
        if self.batch.rows:
            rows = self.batch.drop_stepped()
            self.station.link.send(BatchFailed(Role.DECODE, rows, -1, reason))
        for held in given_up:
            self.station.link.send(BatchFailed(Role.PREFILL, sorted(held.keys), held.message.batch_id, reason))
