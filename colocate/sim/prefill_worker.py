"""The simulated prefill worker: layer slices of at most `max_slice_ms`, a boundary between two of them."""

from __future__ import annotations

from collections.abc import Callable

from colocate.messages.prefill import PrefillBatch, PrefillCancel, PrefillCancelled, PrefillDone
from colocate.sim.prefill_work import PrefillWork, SimBatch, TokenOf
from colocate.sim.station import Station


class SimPrefillWorker:
    """Follows the protocol of `worker/prefill_loop.py`. `peer_units` answers what decode works on now."""

    __slots__ = ("_batch", "_layers", "_max_slice_s", "_peer_units", "_station", "_token_of", "_work")

    def __init__(self, station: Station, token_of: TokenOf, peer_units: Callable[[], int], max_slice_s: float) -> None:
        self._station = station
        self._token_of = token_of
        self._peer_units = peer_units
        self._max_slice_s = max_slice_s
        self._work = PrefillWork(station.truth.num_layers)
        self._batch: SimBatch | None = None  # in the slice that runs
        self._layers = 0  # of that slice
        station.turn = self._turn

    def _turn(self, _: None) -> None:
        station = self._station
        if station.inbox:
            self._read_inbox()
        batch = self._work.head()
        if not station.settle() or batch is None:
            station.rest()
            return
        truth = station.truth
        if batch.is_void:
            self._layers = batch.layers_left
            self._batch = batch
            station.work(0.0, self._slice_done)
            return
        units = station.boundary.num_units
        layer_s = truth.forward_s(units, batch.linear, batch.pairs, self._peer_units()) / truth.num_layers
        self._layers = max(1, min(int(self._max_slice_s / layer_s), batch.layers_left))
        self._batch = batch
        station.work(layer_s * self._layers * truth.jitter(), self._slice_done)

    def _read_inbox(self) -> None:
        station, work = self._station, self._work
        for message in station.inbox:
            if isinstance(message, PrefillBatch):
                work.add(message)
            elif isinstance(message, PrefillCancel):
                work.cancel(message)
                station.send(PrefillCancelled(message.rows))
        station.inbox.clear()

    def _slice_done(self, started_ns: int) -> None:
        station, batch = self._station, self._batch
        assert batch is not None
        batch.started_ns = batch.started_ns or started_ns
        batch.layers_left -= self._layers
        if batch.layers_left == 0:
            self._work.pop(batch)
            rows = batch.results(self._token_of)
            now_ns, plan_seq = station.clock.now_ns, station.boundary.plan_seq
            station.send(PrefillDone(batch.batch_id, rows, batch.started_ns, now_ns, plan_seq))
        station.next_turn()
