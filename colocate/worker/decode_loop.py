"""The decode worker's loop: one step of the standing batch per turn, without waiting for anyone.

On a GPU the next step is launched before the tokens of this one are handled (`executor.depth`), so the device has no
pause between them. Why that is sound, beside the rules of `StandingBatch`:

* A report of step n may go out while step n+1 is under way. What it says is over is over on the device as well: a row
  that ended at n is not active in n+1, so its blocks, free from the report on, are neither read nor written.
* A leave that is applied before n+1 is launched is acknowledged by the report of n at the earliest, which was the last
  step with that row.
* The loop rests, leaves, greets a new engine or gives rows up only when nothing is under way.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import NamedTuple

from colocate.errors import DeviceLost
from colocate.messages.decode import DecodeUpdate, StepReport
from colocate.messages.prefill import BatchFailed
from colocate.types import Role
from colocate.worker.engine_link import Order
from colocate.worker.executor import DecodeExecutor, StandingRow
from colocate.worker.flight import Flight
from colocate.worker.standing_batch import StandingBatch
from colocate.worker.station import Station, Turn

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class DecodeCounts:
    steps: int = 0
    failed: int = 0


class LaunchedStep(NamedTuple):
    rows: list[StandingRow]
    plan_seq: int


@dataclass(slots=True)
class DecodeLoop:
    """Owns the standing batch. `turn` never blocks for longer than one step, and those launched before it."""

    station: Station
    executor: DecodeExecutor
    batch: StandingBatch
    counts: DecodeCounts = field(default_factory=DecodeCounts)
    _flight: Flight[LaunchedStep] = field(init=False)

    def __post_init__(self) -> None:
        self._flight = Flight(self.station.progress)

    def turn(self) -> Turn:
        order = self.station.orders(self._let_go)
        if order is Order.LEAVE:
            return Turn.LEFT
        if order is Order.RESET:
            self.batch.clear()
        self._read_inbox()
        may_step = self.station.settle()
        self.batch.mask_full_rows()
        if self._step(may_step):
            return Turn.WORKED
        if self.batch.has_acknowledgements:
            left, masked = self.batch.take_acknowledgements()
            self.station.link.send(StepReport(step=self.counts.steps, rows=[], left=left, masked=masked))
        return Turn.WAITING

    def _read_inbox(self) -> None:
        while (message := self.station.link.recv()) is not None:
            if isinstance(message, DecodeUpdate):
                self.batch.apply(message)

    def _step(self, may_step: bool) -> bool:
        """Launch a step where there is room, and handle the oldest one where there is none. False: nothing to do."""
        try:
            launched = may_step and self._launch()
            if not self._flight:
                return False
            if not launched or len(self._flight) >= self.executor.depth:
                self._collect()
        except DeviceLost:
            raise
        except Exception as error:  # the worker outlives any step; the engine decides what becomes of its rows
            self._fail(error)
        return True

    def _launch(self) -> bool:
        batch = self.batch
        rows = batch.next_step()
        if not rows or (self._flight and not self.executor.may_run_ahead(rows, batch.version)):
            return False
        self._flight.add(LaunchedStep(rows, self.station.boundary.plan_seq), len(rows))
        self.executor.launch(rows, batch.version)
        batch.launched(rows)
        return True

    def _collect(self) -> None:
        step = self._flight.oldest
        tokens = self.executor.collect()
        started_ns, finished_ns = self._flight.land()
        rows = self.batch.record(step.rows, tokens)
        self.counts.steps += 1
        left, masked = self.batch.take_acknowledgements()
        self.station.link.send(
            StepReport(self.counts.steps, rows, left, masked, started_ns, finished_ns, step.plan_seq)
        )

    def _let_go(self) -> None:
        """What is under way ends, and nobody hears of it."""
        self.executor.abandon()
        self._flight.clear()

    def _fail(self, error: Exception) -> None:
        _log.error("decode step %d failed", self.counts.steps + 1, exc_info=error)
        self.counts.failed += 1
        self._let_go()
        rows = self.batch.drop_stepped()
        self.station.link.send(BatchFailed(Role.DECODE, rows, -1, f"{type(error).__name__}: {error}"))
