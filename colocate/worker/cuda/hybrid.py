"""The hybrid worker's executor on a GPU, mode `chunked`: a chunk and the standing rows in one forward.

A forward of standing rows alone is the decode executor's, graph and all; one of a chunk alone is the prefill
executor's. Together they run eagerly, as chunks have no two shapes alike: the tokens of both go through every matrix
product at once, attention takes each part by its own kernel.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

from msgspec import structs
from torch import Tensor

from colocate.device.cuda.lane import Lane
from colocate.errors import InvariantError
from colocate.messages.prefill import PrefillBatch
from colocate.model.cuda.rows import PrefillBatchRows
from colocate.worker.cuda.decode import CudaDecodeExecutor
from colocate.worker.cuda.draws import Draws
from colocate.worker.cuda.gpu_model import GpuModel
from colocate.worker.cuda.prefill import CudaPrefillExecutor, CudaPrefillForward
from colocate.worker.executor import HybridResult, StandingRow, StepTokens

_DEPTH = 2


class CudaHybridExecutor:
    """Implements `HybridExecutor`."""

    depth = _DEPTH

    def __init__(self, gpu: GpuModel, prefill: CudaPrefillExecutor, decode: CudaDecodeExecutor) -> None:
        """Both over this model; nobody else uses them."""
        self._gpu = gpu
        self.prefill = prefill
        self.decode = decode
        self._under_way: deque[_Forward] = deque()

    def units_changed(self, num_units: int) -> None:
        """There is one share."""

    def may_run_ahead(self, batch: PrefillBatch | None, rows: Sequence[StandingRow], version: int) -> bool:
        return not rows or self.decode.may_run_ahead(rows, version)

    def launch(self, batch: PrefillBatch | None, rows: Sequence[StandingRow], version: int) -> None:
        if len(self._under_way) >= _DEPTH:
            raise InvariantError("a forward was launched before an older one was collected")
        if batch is None:
            self.decode.launch(rows, version)
            self._under_way.append(_Forward(None, None))
            return
        step = _Step(self._gpu, self.decode, rows, version) if rows else None
        chunk = CudaPrefillForward(self.prefill, batch.rows, beside=step)
        self._under_way.append(_Forward(chunk, step))
        while not chunk.run_slice(self.prefill.num_layers):
            pass

    def rehearse(self, batch: PrefillBatch, num_rows: int) -> None:
        """Run a chunk, shortened to leave them room, beside so many rows of padding: no KV is stored."""
        first = batch.rows[0]
        row = structs.replace(first, token_ids=first.token_ids[: max(1, len(first.token_ids) - num_rows)])
        padding = _Step(self._gpu, self.decode, [], 0, num_padding=num_rows)
        forward = CudaPrefillForward(self.prefill, [row], beside=padding, writes=False)
        while not forward.run_slice(self.prefill.num_layers):
            pass
        forward.abandon()

    def collect(self) -> HybridResult:
        forward = self._under_way.popleft()
        if forward.chunk is None:
            return HybridResult(self.decode.collect(), [])
        forward.chunk.wait_all()
        done = forward.chunk.results()
        return HybridResult(None if forward.step is None else forward.step.tokens(), done)

    def abandon(self) -> None:
        while self._under_way:
            chunk = self._under_way.popleft().chunk
            if chunk is not None:
                chunk.abandon()
        self.decode.abandon()


class _Step:
    """Implements `StepBeside`. With `num_padding` it is so many entries of padding instead of rows."""

    def __init__(
        self,
        gpu: GpuModel,
        decode: CudaDecodeExecutor,
        rows: Sequence[StandingRow],
        version: int,
        num_padding: int = 0,
    ) -> None:
        self._gpu = gpu
        self._decode = decode
        self._standing = rows
        self._version = version
        self._num_padding = num_padding
        self._index: Tensor | None = None
        self._draws: Draws | None = None

    @property
    def _lane(self) -> Lane:
        return self._gpu.lane

    def embed(self, hidden: Tensor) -> None:
        if self._num_padding:
            index = self._decode.padding(self._num_padding)
        else:
            index = self._decode.seat(self._lane, self._standing, self._version)[: len(self._standing)]
        self._index = index
        self._gpu.model.embed(self._decode.state.token.index_select(0, index), hidden[: len(index)])

    def layers(self, hidden: Tensor, start: int, stop: int, rows: PrefillBatchRows) -> None:
        assert self._index is not None
        both = hidden[: rows.num_tokens + len(self._index)]
        self._gpu.model.hybrid_layers(both, start, stop, rows, self._decode.state, self._index, self._lane.num_sms)

    def draw(self, hidden: Tensor) -> None:
        assert self._index is not None
        logits = self._gpu.model.logits(hidden[: len(self._index)], self._lane.num_sms)
        self._draws = self._decode.draw(self._lane, self._standing, logits)

    def tokens(self) -> StepTokens:
        """Once the forward is done."""
        assert self._draws is not None
        drawn = self._draws.tokens()
        return StepTokens(drawn.token_ids, drawn.logprobs)


class _Forward(NamedTuple):
    """Launched. Without a chunk the decode executor holds the step."""

    chunk: CudaPrefillForward | None
    step: _Step | None
