"""The prefill worker's loop: one layer slice per turn, a boundary between slices, urgent batches before the others.

An urgent batch also goes between two slices of the forward under way, which is set aside and resumes at the same layer:
so answers may come in another order than the batches did.

On a GPU a slice is launched before the one ahead of it is done (`executor.depth`), the first of the next forward before
the last one of this, so the device has no pause between them. A boundary then acts on what is launched after it.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

from colocate.errors import DeviceLost
from colocate.messages.prefill import BatchFailed, PrefillBatch, PrefillCancel, PrefillDone
from colocate.types import Role
from colocate.worker.engine_link import Order
from colocate.worker.executor import PrefillExecutor
from colocate.worker.flight import Flight
from colocate.worker.prefill_queue import HeldBatch, PrefillQueue
from colocate.worker.slice_pace import SlicePace
from colocate.worker.station import Station, Turn

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class PrefillCounts:
    batches: int = 0
    slices: int = 0
    failed: int = 0
    set_aside: int = 0  # forwards that an urgent batch interrupted


@dataclass(slots=True)
class LaunchedSlice:
    """A slice under way, as it was launched: rows may be dropped meanwhile."""

    batch: HeldBatch
    num_layers: int
    num_tokens: int
    context_len: int
    plan_seq: int
    is_last: bool = False


@dataclass(slots=True)
class PrefillLoop:
    """Owns its queue and the forwards under way. `turn` never blocks for longer than one slice, and those launched
    before it."""

    station: Station
    executor: PrefillExecutor
    pace: SlicePace
    counts: PrefillCounts = field(default_factory=PrefillCounts)
    queue: PrefillQueue = field(default_factory=PrefillQueue)
    _flight: Flight[LaunchedSlice] = field(init=False)

    def __post_init__(self) -> None:
        self._flight = Flight(self.station.progress)

    def turn(self) -> Turn:
        order = self.station.orders(self._let_go)
        if order is Order.LEAVE:
            return Turn.LEFT
        self._read_inbox()
        batch = self.queue.head() if self.station.settle() else None
        if batch is not None and not batch.keys:
            self._give_back(batch)
            return Turn.WORKED
        is_launched = batch is not None and self._launch(batch)
        if self._flight and (not is_launched or len(self._flight) >= self.executor.depth):
            self._finish_slice()
            return Turn.WORKED
        return Turn.WORKED if batch is not None else Turn.WAITING

    def _read_inbox(self) -> None:
        while (message := self.station.link.recv()) is not None:
            if isinstance(message, PrefillBatch):
                self.queue.add(message)
            elif isinstance(message, PrefillCancel):
                self.station.link.send(self.queue.cancel(message))

    def _give_back(self, batch: HeldBatch) -> None:
        """Nobody wants any row of it."""
        self._forget(batch)
        now_ns, plan_seq = self.station.now_ns(), self.station.boundary.plan_seq
        self.counts.batches += 1
        self.station.link.send(PrefillDone(batch.message.batch_id, [], now_ns, now_ns, plan_seq))

    def _launch(self, batch: HeldBatch) -> bool:
        """The next slice of this batch. False where it failed."""
        if batch.forward is None:
            batch.layers_left = self.executor.num_layers
        # No layer is left where a scored prompt has pieces to go, which are like layers in their length.
        layers = max(1, min(self.pace.layers(batch.num_tokens, batch.context_len), batch.layers_left))
        num_layers = min(layers, batch.layers_left)
        plan_seq = self.station.boundary.plan_seq
        piece = LaunchedSlice(batch, num_layers, batch.num_tokens, batch.context_len, plan_seq)
        self._flight.add(piece, batch.num_tokens * layers)
        try:
            if batch.forward is None:
                self.counts.set_aside += self.queue.set_aside()
                batch.forward = self.executor.begin(batch.remaining())
            batch.is_aside = False
            self.counts.slices += 1
            piece.is_last = batch.forward.run_slice(layers)
        except DeviceLost:
            raise
        except Exception as error:  # the worker outlives any forward; the engine decides what becomes of its rows
            self._fail(batch, error)
            return False
        batch.layers_left -= num_layers
        if piece.is_last:
            self.queue.all_launched()
        return True

    def _finish_slice(self) -> None:
        """Wait for the oldest slice. With the last one of its forward, answer."""
        piece = self._flight.oldest
        batch = piece.batch
        assert batch.forward is not None
        try:
            batch.forward.wait_slice()
            rows = batch.forward.results() if piece.is_last else []
        except DeviceLost:
            raise
        except Exception as error:
            self._fail(batch, error)
            return
        started_ns, finished_ns = self._flight.land()
        batch.started_ns = batch.started_ns or started_ns
        self.pace.observe(piece.num_tokens, piece.context_len, piece.num_layers, (finished_ns - started_ns) / 1e9)
        if piece.is_last:
            self.queue.remove(batch)
            self.counts.batches += 1
            batch_id = batch.message.batch_id
            self.station.link.send(PrefillDone(batch_id, rows, batch.started_ns, finished_ns, piece.plan_seq))

    def _let_go(self) -> None:
        """What is under way ends, and nobody hears of it."""
        self.queue.clear()
        self._flight.clear()

    def _forget(self, batch: HeldBatch) -> None:
        batch.abandon()
        self.queue.remove(batch)
        self._flight.withdraw(lambda piece: piece.batch is batch)

    def _fail(self, batch: HeldBatch, error: Exception) -> None:
        _log.error("prefill batch %d failed", batch.message.batch_id, exc_info=error)
        self._forget(batch)
        self.counts.failed += 1
        reason = f"{type(error).__name__}: {error}"
        self.station.link.send(BatchFailed(Role.PREFILL, sorted(batch.keys), batch.message.batch_id, reason))
