"""The decode worker's executor on a GPU: one graph per step, tokens out by one copy, two steps under way.

A step is launched with nothing of the step before but what the device has: token, length and end of every row are
advanced there. The host sends differences (`deltas.py`), replays the graph of the share and bucket, and has the drawn
tokens copied to pinned memory behind it. Rows that need the host's sampler (`needs_host`) make the next step wait:
their logits come to the host, and all rows are stated anew from what the host says.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from colocate.device.cuda.device_lost import device_lost_raised
from colocate.device.cuda.lane import Lane, Mark
from colocate.errors import InvariantError
from colocate.model.cuda.state import DecodeState
from colocate.worker.cuda.deltas import Seats, StateArena, table_width
from colocate.worker.cuda.draws import DrawRoom, Draws
from colocate.worker.cuda.gpu_model import GpuModel
from colocate.worker.cuda.graphs import DecodeGraphs
from colocate.worker.executor import StandingRow, StepTokens
from colocate.worker.packed_rows import state_of

_DEPTH = 2


class _Step(NamedTuple):
    """Launched; its draws can be read once `mark` is done."""

    draws: Draws
    mark: Mark


class CudaDecodeExecutor:
    """Implements `DecodeExecutor`."""

    depth = _DEPTH

    def __init__(self, gpu: GpuModel, max_num_seqs: int, max_model_len: int, graph_bytes: int) -> None:
        self._gpu = gpu
        width = table_width(max_model_len, gpu.block_size)
        self._arena = StateArena(max_num_seqs, width, gpu.backend.torch_device)
        self._seats = Seats(gpu.backend, self._arena, gpu.block_size, gpu.config.vocab_size)
        self.graphs = DecodeGraphs(self._decode_step, max_num_seqs, graph_bytes, gpu.used_bytes)
        self._rooms = [DrawRoom(gpu, max_num_seqs) for _ in range(_DEPTH)]
        self._under_way: deque[_Step] = deque()
        self._num_launched = 0
        self._version: int | None = None
        self._has_host_rows = False
        self._is_behind = False  # the device advanced some rows of the last step by tokens that are not theirs
        self._last_lane: Lane | None = None  # that anything was launched on; the share in force may be empty by now

    def units_changed(self, num_units: int) -> None:
        """The partition has chosen another lane, which follows the one before."""

    def may_run_ahead(self, rows: Sequence[StandingRow], version: int) -> bool:
        if self._is_behind:
            return False
        return version == self._version or not self._seats.any_for_host(rows)

    @torch.inference_mode()
    def launch(self, rows: Sequence[StandingRow], version: int) -> None:
        lane = self._gpu.lane
        if len(self._under_way) >= _DEPTH:
            raise InvariantError("a step was launched before an older one was collected")
        with device_lost_raised(), lane.use():
            index = self.seat(lane, rows, version)
            self.graphs.run(lane, len(index))
            logits = self._gpu.model.last_logits(len(rows)) if self._has_host_rows else None
            self._under_way.append(_Step(self._bring_out(rows, logits), lane.mark()))

    def seat(self, lane: Lane, rows: Sequence[StandingRow], version: int) -> Tensor:
        """Bring the device up to date with these rows, on this lane, inside its `use()`: the index of a step."""
        bucket = self.graphs.bucket_of(len(rows))
        self._last_lane = lane
        if self._is_behind:
            self._seats.restate(rows)
        if version != self._version:
            self._seats.seat(rows, bucket)
            self._has_host_rows = self._seats.any_for_host(rows)
            self._version = version
        self._seats.send(lane)
        self._is_behind = self._has_host_rows
        return self._arena.index[:bucket]

    def draw(self, lane: Lane, rows: Sequence[StandingRow], logits: Tensor) -> Draws:
        """The last part of a step beside a chunk, from its logits, float32 [at least rows, vocab_size]."""
        arena, model = self._arena, self._gpu.model
        index, drawn = arena.index[: len(logits)], arena.drawn[: len(logits)]
        model.sample(logits, arena.state.sampling, index, drawn, lane.num_sms, arena.state)
        model.advance(arena.state, index, drawn)
        return self._bring_out(rows, logits if self._has_host_rows else None)

    def padding(self, count: int) -> Tensor:
        """An index of padding, before any row stands."""
        return self._arena.index[:count]

    @property
    def state(self) -> DecodeState:
        return self._arena.state

    def collect(self) -> StepTokens:
        step = self._under_way.popleft()
        with device_lost_raised():
            step.mark.wait()
        drawn = step.draws.tokens()
        return StepTokens(drawn.token_ids, drawn.logprobs)

    def abandon(self) -> None:
        """Also what a launch that raised has left on the lane. That is the last one used, which others follow: with an
        empty share in force there is none to ask."""
        self._under_way.clear()
        with device_lost_raised():
            if self._last_lane is not None:
                self._last_lane.mark().wait()
        self._seats.clear()
        self._version, self._is_behind = None, False

    def _bring_out(self, rows: Sequence[StandingRow], logits: Tensor | None) -> Draws:
        """Rows that the host draws were drawn and moved on by the device as well: nobody asks for those tokens, and the
        next step starts from what the host says."""
        drawn = self._arena.drawn[: len(rows)]
        on_host = {} if logits is None else self._gpu.host_rows([state_of(row) for row in rows])
        return self._room().launch(drawn, logits, on_host)

    def _decode_step(self, bucket: int, num_sms: int) -> None:
        arena = self._arena
        self._gpu.model.decode_step(arena.state, arena.index[:bucket], arena.drawn[:bucket], num_sms)

    def _room(self) -> DrawRoom:
        """Its last user was collected: no more steps are under way than there are rooms."""
        self._num_launched += 1
        return self._rooms[self._num_launched % _DEPTH]
