"""The simulated decode worker: steps of the standing batch, back to back, without waiting for anyone."""

from __future__ import annotations

from collections.abc import Callable

from colocate.messages.decode import DecodeUpdate, StepReport
from colocate.sim.standing_rows import StandingRows
from colocate.sim.station import Station


class SimDecodeWorker:
    """Follows the protocol of `worker/decode_loop.py`. `peer_units` answers what prefill works on now; `report` takes a
    step report and whether a row ended with it."""

    __slots__ = ("_peer_units", "_report", "_rows", "_station")

    def __init__(
        self,
        station: Station,
        rows: StandingRows,
        peer_units: Callable[[], int],
        report: Callable[[StepReport, bool], None],
    ) -> None:
        self._station = station
        self._rows = rows
        self._peer_units = peer_units
        self._report = report
        station.turn = self._turn

    def _turn(self, _: None) -> None:
        station, rows = self._station, self._rows
        if station.inbox:
            for message in station.inbox:
                if isinstance(message, DecodeUpdate):
                    rows.apply(message)
            station.inbox.clear()
        may_step = station.settle()
        rows.mask_full()
        num_rows = rows.num_stepped
        if may_step and num_rows:
            truth = station.truth
            seconds = truth.step_s(station.boundary.num_units, rows.sum_context, num_rows, self._peer_units())
            station.work(seconds * truth.jitter(), self._step_done)
            return
        if rows.has_acknowledgements:
            left, masked = rows.take_acknowledgements()
            self._report(StepReport(rows.num_steps, [], left, masked), False)
        station.rest()

    def _step_done(self, started_ns: int) -> None:
        station, rows = self._station, self._rows
        step_rows, has_ended = rows.step(station.clock.now_ns)
        left, masked = rows.take_acknowledgements()
        now_ns, plan_seq = station.clock.now_ns, station.boundary.plan_seq
        self._report(StepReport(rows.num_steps, step_rows, left, masked, started_ns, now_ns, plan_seq), has_ended)
        station.next_turn()
