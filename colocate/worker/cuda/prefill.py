"""The prefill worker's executor on a GPU: slices launched without waiting, two of them under way.

A forward owns what it computes: its hidden states, in one of two buffers (the forward under way and the one that an
urgent prompt set aside), and its desk. The hidden states are given back when the last slice is launched, as whatever
uses them next comes later on the lane; the desk when the results are taken.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from colocate.device.cuda.device_lost import device_lost_raised
from colocate.device.cuda.lane import Lane, Mark
from colocate.errors import InvariantError
from colocate.messages.prefill import PrefillBatch, PrefillRow, PrefillRowDone
from colocate.model.cuda.rows import PrefillBatchRows
from colocate.model.sampler import SampledTokens
from colocate.worker.cuda.deltas import table_width
from colocate.worker.cuda.desk import Desk, arrays_of, batch_rows, desk_bytes, sampling_table
from colocate.worker.cuda.draws import Draws
from colocate.worker.cuda.gpu_model import GpuModel
from colocate.worker.packed_rows import PackedChunk, RowKey

_DEPTH = 2
_HIDDEN = 2
_DESKS = 3  # as many forwards, and the one whose results are not taken yet


class CudaPrefillExecutor:
    """Implements `PrefillExecutor`."""

    depth = _DEPTH

    def __init__(self, gpu: GpuModel, max_tokens: int, max_model_len: int) -> None:
        device, config = gpu.backend.torch_device, gpu.config
        self.gpu = gpu
        num_bytes = desk_bytes(max_tokens, gpu.max_rows, table_width(max_model_len, gpu.block_size))
        self.desks = [Desk(gpu, num_bytes) for _ in range(_DESKS)]
        self.hidden = [
            torch.zeros(max_tokens, config.hidden_size, dtype=gpu.dtype, device=device) for _ in range(_HIDDEN)
        ]
        self.last_hidden = torch.zeros(gpu.max_rows, config.hidden_size, dtype=gpu.dtype, device=device)

    @property
    def num_layers(self) -> int:
        return self.gpu.config.num_layers

    def begin(self, batch: PrefillBatch) -> CudaPrefillForward:
        return CudaPrefillForward(self, batch.rows)

    def units_changed(self, num_units: int) -> None:
        """The partition has chosen another lane, which follows the one before."""

    def rehearse(self, batch: PrefillBatch) -> None:
        """Run a forward that stores no KV, to its end, on the share in force."""
        forward = CudaPrefillForward(self, batch.rows, writes=False)
        while not forward.run_slice(self.num_layers):
            pass
        forward.abandon()


class StepBeside(Protocol):
    """Standing rows that take a step in the same forward. Hidden states come after those of the chunk, in one buffer
    that may be longer than both."""

    def embed(self, hidden: Tensor) -> None: ...

    def layers(self, hidden: Tensor, start: int, stop: int, rows: PrefillBatchRows) -> None:
        """Of the chunk `rows` and the standing rows together, `hidden` from the chunk's first token on."""
        ...

    def draw(self, hidden: Tensor) -> None: ...


class CudaPrefillForward:
    """Implements `PrefillForward`."""

    def __init__(
        self,
        executor: CudaPrefillExecutor,
        rows: Sequence[PrefillRow],
        *,
        beside: StepBeside | None = None,
        writes: bool = True,
    ) -> None:
        """`beside` goes through every layer with it; without `writes` no KV of the rows is stored."""
        if not executor.desks or not executor.hidden:
            raise InvariantError("a third prefill forward was begun")
        self._executor = executor
        self._gpu = executor.gpu
        self._beside = beside
        self._writes = writes
        self._chunk = PackedChunk(executor.gpu, rows)
        self._desk: Desk | None = executor.desks.pop()
        self._hidden: Tensor | None = executor.hidden.pop()
        self._rows: PrefillBatchRows | None = None  # as on the device; None: to be sent (again)
        self._views: dict[str, Tensor] = {}
        self._kept: Tensor | None = None  # places of the tokens that stay, where rows were dropped since
        self._next_layer = 0
        self._is_embedded = False
        self._marks: deque[Mark] = deque()
        self._lane: Lane | None = None  # of the last slice
        self._draws: Draws | None = None
        self._is_all_launched = False
        self._dropped: set[RowKey] = set()  # after the last slice was launched

    @torch.inference_mode()
    def run_slice(self, max_layers: int = 1) -> bool:
        """Scoring a prompt waits for the device: its logits are the host's to read."""
        lane = self._lane = self._gpu.lane
        with device_lost_raised(), lane.use():
            self._is_all_launched = self._launch(lane, max_layers)
            self._marks.append(lane.mark())
        if self._is_all_launched:
            self._give_back_hidden()
        return self._is_all_launched

    def wait_slice(self) -> None:
        with device_lost_raised():
            self._marks.popleft().wait()

    def wait_all(self) -> None:
        while self._marks:
            self.wait_slice()

    def drop_rows(self, rows: set[RowKey]) -> None:
        """What stays is moved together by the next slice."""
        with device_lost_raised():
            if self._marks:
                self._marks[-1].wait()
        if self._is_all_launched:
            self._dropped |= rows
            return
        places = self._chunk.drop(rows)
        if places is not None:
            self._kept = places if self._kept is None else self._kept[places]
            self._rows = None

    def results(self) -> list[PrefillRowDone]:
        if not self._is_all_launched:
            raise InvariantError("results of a prefill forward were asked for before its last slice")
        drawn = SampledTokens([]) if self._draws is None else self._draws.tokens()
        self._give_back_desk()
        if any(token_id < 0 for token_id in drawn.token_ids):
            raise InvariantError("the device drew no first token for a row: weights or KV are damaged")
        done = self._chunk.results(drawn)
        return [each for each in done if (each.request_id, each.incarnation) not in self._dropped]

    def abandon(self) -> None:
        with device_lost_raised():
            if self._lane is not None:
                self._lane.mark().wait()
        self._give_back_hidden()
        self._give_back_desk()

    def _launch(self, lane: Lane, max_layers: int) -> bool:
        """True with the last of it."""
        if not self._chunk:
            return True
        whole, num_layers = self._hidden, self._executor.num_layers
        assert whole is not None
        rows = self._rows or self._send()
        hidden, others = whole[: rows.num_tokens], whole[rows.num_tokens :]
        if not self._is_embedded:
            self._gpu.model.embed(self._views["token_ids"], hidden)
            if self._beside is not None:
                self._beside.embed(others)
            self._is_embedded = True
        if self._next_layer < num_layers:
            stop = min(self._next_layer + max_layers, num_layers)
            if self._beside is not None:
                self._beside.layers(whole, self._next_layer, stop, rows)
            else:
                self._gpu.model.prefill_layers(hidden, self._next_layer, stop, rows, lane.num_sms)
            self._next_layer = stop
        elif not self._chunk.is_scored:
            self._chunk.score_piece(hidden)
        if self._next_layer < num_layers or not self._chunk.is_scored:
            return False
        self._draw(lane, hidden)
        if self._beside is not None:
            self._beside.draw(others)
        return True

    def _send(self) -> PrefillBatchRows:
        """The chunk as it is now, and hidden states moved to where its tokens are now."""
        desk, hidden = self._desk, self._hidden
        assert desk is not None and hidden is not None
        arrays = arrays_of(self._chunk, self._gpu.config.vocab_size, writes=self._writes)
        if self._kept is not None and self._is_embedded:
            arrays["kept"] = self._kept.numpy()
        self._views = desk.send(arrays)
        if "kept" in self._views:
            hidden[: len(self._views["kept"])] = hidden.index_select(0, self._views["kept"])
        self._kept = None
        self._rows = batch_rows(self._chunk, self._views)
        return self._rows

    def _draw(self, lane: Lane, hidden: Tensor) -> None:
        """First tokens of the rows that end here."""
        desk, (places, states) = self._desk, self._chunk.to_sample()
        assert desk is not None
        if not places:
            return
        last = self._executor.last_hidden[: len(places)]
        torch.index_select(hidden, 0, self._views["places"], out=last)
        logits = self._gpu.model.logits(last, lane.num_sms)
        index, drawn = self._views["index"], desk.drawn[: len(places)]
        self._gpu.model.sample(logits, sampling_table(self._views), index, drawn, lane.num_sms)
        self._draws = desk.room.launch(drawn, logits, self._gpu.host_rows(states))

    def _give_back_hidden(self) -> None:
        if self._hidden is not None:
            self._executor.hidden.append(self._hidden)
            self._hidden = None

    def _give_back_desk(self) -> None:
        if self._desk is not None:
            self._executor.desks.append(self._desk)
            self._desk = None
