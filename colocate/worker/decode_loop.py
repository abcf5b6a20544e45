"""The decode worker's loop: one step of the standing batch per turn, without waiting for anyone."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

from colocate.messages.decode import DecodeUpdate, StepReport
from colocate.messages.prefill import BatchFailed
from colocate.types import Role
from colocate.worker.engine_link import Order
from colocate.worker.executor import DecodeExecutor
from colocate.worker.standing_batch import StandingBatch
from colocate.worker.station import Station, Turn

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class DecodeCounts:
    steps: int = 0
    failed: int = 0


@dataclass(slots=True)
class DecodeLoop:
    """Owns the standing batch. `turn` never blocks for longer than one step."""

    station: Station
    executor: DecodeExecutor
    batch: StandingBatch
    counts: DecodeCounts = field(default_factory=DecodeCounts)

    def turn(self) -> Turn:
        order = self.station.orders()
        if order is Order.LEAVE:
            return Turn.LEFT
        if order is Order.RESET:
            self.batch.clear()
        self._read_inbox()
        may_step = self.station.settle()
        self.batch.mask_full_rows()
        if may_step and self.batch.rows:
            self._step()
            return Turn.WORKED
        if self.batch.has_acknowledgements:
            left, masked = self.batch.take_acknowledgements()
            self.station.link.send(StepReport(step=self.counts.steps, rows=[], left=left, masked=masked))
        return Turn.WAITING

    def _read_inbox(self) -> None:
        while (message := self.station.link.recv()) is not None:
            if isinstance(message, DecodeUpdate):
                self.batch.apply(message)

    def _step(self) -> None:
        batch, progress = self.batch, self.station.progress
        started_ns = progress.begin(len(batch.rows))
        try:
            tokens = self.executor.step(batch.rows, batch.version)
            finished_ns = progress.end()
            rows = batch.record(tokens)
        except Exception as error:  # the worker outlives any step; the engine decides what becomes of its rows
            self._fail(error)
            return
        self.counts.steps += 1
        left, masked = batch.take_acknowledgements()
        plan_seq = self.station.boundary.plan_seq
        report = StepReport(self.counts.steps, rows, left, masked, started_ns, finished_ns, plan_seq)
        self.station.link.send(report)

    def _fail(self, error: Exception) -> None:
        _log.error("decode step %d failed", self.counts.steps + 1, exc_info=error)
        self.counts.failed += 1
        rows = self.batch.drop_stepped()
        self.station.link.send(BatchFailed(Role.DECODE, rows, -1, f"{type(error).__name__}: {error}"))
