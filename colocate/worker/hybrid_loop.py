"""The hybrid worker's loop, mode `chunked`: every turn is one forward over the head chunk and the whole standing batch.

The next chunk is in the inbox while one runs, so a turn never waits for the engine between two chunks. What is common
with the other loops is theirs: `PrefillQueue` orders chunks (urgent ones first), `StandingBatch` holds the rows.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

from colocate.messages.decode import DecodeUpdate, StepReport, StepRow
from colocate.messages.prefill import BatchFailed, PrefillBatch, PrefillCancel, PrefillCancelled, PrefillDone
from colocate.types import Role
from colocate.worker.engine_link import Order
from colocate.worker.executor import HybridExecutor, HybridResult
from colocate.worker.prefill_queue import HeldBatch, PrefillQueue
from colocate.worker.standing_batch import StandingBatch
from colocate.worker.station import Station, Turn

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class HybridCounts:
    steps: int = 0  # forwards with standing rows
    batches: int = 0  # chunks done
    failed: int = 0
    cancelled: int = 0
    unknown_cancels: int = 0  # rows that were done, or never here


@dataclass(slots=True)
class HybridLoop:
    """Owns the waiting chunks and the standing batch. `turn` never blocks for longer than one forward."""

    station: Station
    executor: HybridExecutor
    batch: StandingBatch
    counts: HybridCounts = field(default_factory=HybridCounts)
    _queue: PrefillQueue = field(default_factory=PrefillQueue)

    def turn(self) -> Turn:
        order = self.station.orders()
        if order is Order.LEAVE:
            return Turn.LEFT
        if order is Order.RESET:
            self._queue.clear()
            self.batch.clear()
        self._read_inbox()
        may_step = self.station.settle()
        self.batch.mask_full_rows()
        if may_step and (self.batch.rows or self._queue):
            self._step()
            return Turn.WORKED
        self._acknowledge()
        return Turn.WAITING

    def _read_inbox(self) -> None:
        while (message := self.station.link.recv()) is not None:
            if isinstance(message, DecodeUpdate):
                self.batch.apply(message)
            elif isinstance(message, PrefillBatch):
                self._queue.add(message)
            elif isinstance(message, PrefillCancel):
                self._cancel(message)

    def _cancel(self, message: PrefillCancel) -> None:
        """A chunk runs whole, so only chunks that wait can lose rows: those that ran were reported before this."""
        found = self._queue.cancel(message)
        self.counts.cancelled += len(found)
        self.counts.unknown_cancels += len(set(message.rows) - found)
        self.station.link.send(PrefillCancelled(message.rows))

    def _acknowledge(self) -> None:
        """Leaves and masks, where no step carries them."""
        if self.batch.has_acknowledgements:
            left, masked = self.batch.take_acknowledgements()
            self.station.link.send(StepReport(step=self.counts.steps, rows=[], left=left, masked=masked))

    def _step(self) -> None:
        batch, progress = self.batch, self.station.progress
        held = self._queue.head()
        chunk = held.remaining() if held is not None and held.keys else None
        started_ns = progress.begin(len(batch.rows) + (held.num_tokens if held is not None else 0))
        result = HybridResult(None, [])
        step_rows: list[StepRow] = []
        try:
            if chunk is not None or batch.rows:
                result = self.executor.step(chunk, batch.rows, batch.version)
            finished_ns = progress.end()
            if result.tokens is not None:
                step_rows = batch.record(result.tokens)
        except Exception as error:  # the worker outlives any forward; the engine decides what becomes of its rows
            self._fail(held, error)
            return
        plan_seq = self.station.boundary.plan_seq
        if step_rows:
            self.counts.steps += 1
            left, masked = batch.take_acknowledgements()
            report = StepReport(self.counts.steps, step_rows, left, masked, started_ns, finished_ns, plan_seq)
            self.station.link.send(report)
        else:
            self._acknowledge()
        if held is not None:
            self._queue.pop()
            self.counts.batches += 1
            self.station.link.send(PrefillDone(held.message.batch_id, result.done, started_ns, finished_ns, plan_seq))

    def _fail(self, held: HeldBatch | None, error: Exception) -> None:
        """Both phases were in it: the rows that stood leave, the chunk is given up."""
        _log.error("hybrid forward after step %d failed", self.counts.steps, exc_info=error)
        self.counts.failed += 1
        reason = f"{type(error).__name__}: {error}"
        if self.batch.rows:
            rows = self.batch.drop_stepped()
            self.station.link.send(BatchFailed(Role.DECODE, rows, -1, reason))
        if held is not None:
            self._queue.pop()
            self.station.link.send(BatchFailed(Role.PREFILL, sorted(held.keys), held.message.batch_id, reason))
