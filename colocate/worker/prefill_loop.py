"""The prefill worker's loop: one layer slice per turn, a boundary between slices, urgent batches before the others.

An urgent batch also goes between two slices of the forward under way, which is set aside and resumes at the same layer:
so answers may come in another order than the batches did.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

from colocate.messages.prefill import BatchFailed, PrefillBatch, PrefillCancel, PrefillCancelled, PrefillDone
from colocate.types import Role
from colocate.worker.engine_link import Order
from colocate.worker.executor import PrefillExecutor
from colocate.worker.prefill_queue import HeldBatch, PrefillQueue
from colocate.worker.slice_pace import SlicePace
from colocate.worker.station import Station, Turn

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class PrefillCounts:
    batches: int = 0
    slices: int = 0
    failed: int = 0
    cancelled: int = 0
    unknown_cancels: int = 0  # rows that were done, or never here
    set_aside: int = 0  # forwards that an urgent batch interrupted


@dataclass(slots=True)
class PrefillLoop:
    """Owns its queue and the forwards under way. `turn` never blocks for longer than one slice."""

    station: Station
    executor: PrefillExecutor
    pace: SlicePace
    counts: PrefillCounts = field(default_factory=PrefillCounts)
    _queue: PrefillQueue = field(default_factory=PrefillQueue)

    def turn(self) -> Turn:
        order = self.station.orders()
        if order is Order.LEAVE:
            return Turn.LEFT
        if order is Order.RESET:
            self._queue.clear()
        self._read_inbox()
        may_run = self.station.settle()
        batch = self._queue.head()
        if not may_run or batch is None:
            return Turn.WAITING
        self._run_slice(batch)
        return Turn.WORKED

    def _read_inbox(self) -> None:
        while (message := self.station.link.recv()) is not None:
            if isinstance(message, PrefillBatch):
                self._queue.add(message)
            elif isinstance(message, PrefillCancel):
                self._cancel(message)

    def _cancel(self, message: PrefillCancel) -> None:
        found = self._queue.cancel(message)
        self.counts.cancelled += len(found)
        self.counts.unknown_cancels += len(set(message.rows) - found)
        self.station.link.send(PrefillCancelled(message.rows))

    def _run_slice(self, batch: HeldBatch) -> None:
        progress, plan_seq = self.station.progress, self.station.boundary.plan_seq
        if batch.forward is None:
            batch.layers_left = self.executor.num_layers
        # No layer is left where a scored prompt has pieces to go, which are like layers in their length.
        layers = max(1, min(self.pace.layers(batch.num_tokens, batch.context_len), batch.layers_left))
        started_ns = progress.begin(batch.num_tokens * layers)
        try:
            if not batch.keys:
                done = PrefillDone(batch.message.batch_id, [], started_ns, started_ns, plan_seq)
            else:
                if batch.forward is None:
                    self.counts.set_aside += self._queue.set_aside()
                    batch.forward = self.executor.begin(batch.remaining())
                    batch.started_ns = started_ns
                batch.is_aside = False
                self.counts.slices += 1
                is_done = batch.forward.run_slice(layers)
                rows = batch.forward.results() if is_done else []
                finished_ns = progress.end()
                self._learn(batch, layers, (finished_ns - started_ns) / 1e9)
                if not is_done:
                    return
                done = PrefillDone(batch.message.batch_id, rows, batch.started_ns, finished_ns, plan_seq)
        except Exception as error:  # the worker outlives any forward; the engine decides what becomes of its rows
            self._fail(batch, error)
            return
        self._queue.pop()
        self.counts.batches += 1
        self.station.link.send(done)

    def _learn(self, batch: HeldBatch, layers: int, seconds: float) -> None:
        self.pace.observe(batch.num_tokens, batch.context_len, min(layers, batch.layers_left), seconds)
        batch.layers_left = max(0, batch.layers_left - layers)

    def _fail(self, batch: HeldBatch, error: Exception) -> None:
        _log.error("prefill batch %d failed", batch.message.batch_id, exc_info=error)
        self._queue.pop()
        self.counts.failed += 1
        reason = f"{type(error).__name__}: {error}"
        self.station.link.send(BatchFailed(Role.PREFILL, sorted(batch.keys), batch.message.batch_id, reason))
