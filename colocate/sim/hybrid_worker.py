"""The simulated worker of mode `chunked`: one waiting prefill batch and the whole standing batch per forward."""

from __future__ import annotations

from collections.abc import Callable

from colocate.messages.decode import DecodeUpdate, StepReport
from colocate.messages.prefill import PrefillBatch, PrefillCancel, PrefillCancelled, PrefillDone
from colocate.sim.prefill_work import PrefillWork, SimBatch, TokenOf
from colocate.sim.standing_rows import StandingRows
from colocate.sim.station import Station


class SimHybridWorker:
    """One process for both phases, on every unit of the device; nothing is cut into slices."""

    __slots__ = ("_batch", "_num_rows", "_report", "_rows", "_station", "_token_of", "_work")

    def __init__(
        self,
        station: Station,
        rows: StandingRows,
        token_of: TokenOf,
        report: Callable[[StepReport, bool], None],
    ) -> None:
        self._station = station
        self._rows = rows
        self._token_of = token_of
        self._report = report
        self._work = PrefillWork(num_layers=1)
        self._batch: SimBatch | None = None  # in the forward that runs
        self._num_rows = 0  # in that forward
        station.turn = self._turn

    def _turn(self, _: None) -> None:
        station, rows = self._station, self._rows
        if station.inbox:
            self._read_inbox()
        may_run = station.settle()
        rows.mask_full()
        batch, num_rows = self._work.head(), rows.num_stepped
        if may_run and (batch is not None or num_rows):
            linear, pairs = (batch.linear, batch.pairs) if batch is not None else (0, 0.0)
            truth = station.truth
            seconds = truth.hybrid_s(station.boundary.num_units, linear, pairs, rows.sum_context, num_rows)
            self._batch, self._num_rows = batch, num_rows
            station.work(seconds * truth.jitter(), self._forward_done)
            return
        self._acknowledge()
        station.rest()

    def _read_inbox(self) -> None:
        station = self._station
        for message in station.inbox:
            if isinstance(message, DecodeUpdate):
                self._rows.apply(message)
            elif isinstance(message, PrefillBatch):
                self._work.add(message)
            elif isinstance(message, PrefillCancel):
                self._work.cancel(message)
                station.send(PrefillCancelled(message.rows))
        station.inbox.clear()

    def _forward_done(self, started_ns: int) -> None:
        station, batch = self._station, self._batch
        now_ns, plan_seq = station.clock.now_ns, station.boundary.plan_seq
        if self._num_rows:
            step_rows, has_ended = self._rows.step(station.clock.now_ns)
            left, masked = self._rows.take_acknowledgements()
            steps = self._rows.num_steps
            self._report(StepReport(steps, step_rows, left, masked, started_ns, now_ns, plan_seq), has_ended)
        else:
            self._acknowledge()
        if batch is not None:
            self._work.pop(batch)
            station.send(PrefillDone(batch.batch_id, batch.results(self._token_of), started_ns, now_ns, plan_seq))
        station.next_turn()

    def _acknowledge(self) -> None:
        """Leaves and masks, where no step carries them."""
        rows = self._rows
        if rows.has_acknowledgements:
            left, masked = rows.take_acknowledgements()
            self._report(StepReport(rows.num_steps, [], left, masked), False)
