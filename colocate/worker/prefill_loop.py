"""The prefill worker's loop: batches first come first served, one layer slice per turn, a boundary between slices."""

from __future__ import annotations

import logging
from collections import deque
from dataclasses import dataclass, field

from colocate.messages.prefill import BatchFailed, PrefillBatch, PrefillCancel, PrefillCancelled, PrefillDone
from colocate.types import Incarnation, RequestId, Role
from colocate.worker.engine_link import Order
from colocate.worker.executor import PrefillExecutor, PrefillForward
from colocate.worker.station import Station, Turn

_log = logging.getLogger(__name__)

_RowKey = tuple[RequestId, Incarnation]


@dataclass(slots=True)
class _Batch:
    """A batch of the engine's, waiting or under way."""

    message: PrefillBatch
    keys: set[_RowKey]  # rows not cancelled
    num_tokens: int
    forward: PrefillForward | None = None
    started_ns: int = 0


@dataclass(slots=True)
class PrefillCounts:
    batches: int = 0
    slices: int = 0
    failed: int = 0
    cancelled: int = 0
    unknown_cancels: int = 0  # rows that were done, or never here


@dataclass(slots=True)
class PrefillLoop:
    """Owns its queue and the forward under way. `turn` never blocks for longer than one slice."""

    station: Station
    executor: PrefillExecutor
    counts: PrefillCounts = field(default_factory=PrefillCounts)
    _batches: deque[_Batch] = field(default_factory=deque)  # the first may be under way

    def turn(self) -> Turn:
        order = self.station.orders()
        if order is Order.LEAVE:
            return Turn.LEFT
        if order is Order.RESET:
            self._batches.clear()
        self._read_inbox()
        if not self.station.settle() or not self._batches:
            return Turn.WAITING
        self._run_slice(self._batches[0])
        return Turn.WORKED

    def _read_inbox(self) -> None:
        while (message := self.station.link.recv()) is not None:
            if isinstance(message, PrefillBatch):
                keys = {(row.request_id, row.incarnation) for row in message.rows}
                num_tokens = sum(len(row.token_ids) for row in message.rows)
                self._batches.append(_Batch(message, keys, num_tokens))
            elif isinstance(message, PrefillCancel):
                self._cancel(message)

    def _cancel(self, message: PrefillCancel) -> None:
        """Drop rows wherever they are; after the answer their blocks are neither read nor written here."""
        wanted = set(message.rows)
        found: set[_RowKey] = set()
        for batch in self._batches:
            dropped = batch.keys & wanted
            if not dropped:
                continue
            batch.keys -= dropped
            found |= dropped
            if batch.forward is not None:
                batch.forward.drop_rows(dropped)
        self.counts.cancelled += len(found)
        self.counts.unknown_cancels += len(wanted - found)
        self.station.link.send(PrefillCancelled(message.rows))

    def _run_slice(self, batch: _Batch) -> None:
        progress = self.station.progress
        started_ns = progress.begin(batch.num_tokens)
        try:
            if not batch.keys:
                done = PrefillDone(batch.message.batch_id, [], started_ns, started_ns, self.station.boundary.plan_seq)
            else:
                if batch.forward is None:
                    batch.forward = self.executor.begin(self._remaining(batch))
                    batch.started_ns = started_ns
                self.counts.slices += 1
                if not batch.forward.run_slice():
                    progress.end()
                    return
                rows = batch.forward.results()
                finished_ns = progress.end()
                plan_seq = self.station.boundary.plan_seq
                done = PrefillDone(batch.message.batch_id, rows, batch.started_ns, finished_ns, plan_seq)
        except Exception as error:  # the worker outlives any forward; the engine decides what becomes of its rows
            self._fail(batch, error)
            return
        self._batches.popleft()
        self.counts.batches += 1
        self.station.link.send(done)

    def _remaining(self, batch: _Batch) -> PrefillBatch:
        rows = [row for row in batch.message.rows if (row.request_id, row.incarnation) in batch.keys]
        return PrefillBatch(batch.message.batch_id, rows)

    def _fail(self, batch: _Batch, error: Exception) -> None:
        _log.error("prefill batch %d failed", batch.message.batch_id, exc_info=error)
        self._batches.popleft()
        self.counts.failed += 1
        reason = f"{type(error).__name__}: {error}"
        self.station.link.send(BatchFailed(Role.PREFILL, sorted(batch.keys), batch.message.batch_id, reason))
