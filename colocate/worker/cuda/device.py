"""A worker's equipment on a GPU: a share of its SMs for every plan, the keeper's memory, a model warmed up.

Everything a switch needs is made here, before the worker is ready. Nothing here writes to the KV pool, which may hold
the live blocks of other requests: prompts are rehearsed without storing their KV, steps run over padding.

A worker that is restarted warms up on the share its plan gives it and on no other, so that it serves soon and does not
disturb the phase that goes on; its graphs are captured while it serves (`graphs.py`).
"""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from colocate.config.roles import processes_of
from colocate.core.plan import SHARED, PlanTable, build_plan_table
from colocate.device.cuda.backend import Backend, open_backend
from colocate.device.cuda.device_lost import device_lost_raised
from colocate.device.cuda.lane import Lane
from colocate.device.cuda.mps import assert_mps_client
from colocate.device.cuda.partition import CudaPartition
from colocate.device.partition import Partition
from colocate.messages.prefill import PrefillBatch, PrefillRow
from colocate.messages.sampling import SampleState, SamplingParams
from colocate.messages.spec import ProcessSpec
from colocate.model.config import load_model_config
from colocate.model.cuda.kernel_table import KernelTable
from colocate.transport.board import Board
from colocate.types import Role
from colocate.worker.cuda.attach import attach_cuda
from colocate.worker.cuda.memory_facts import memory_facts

# These import triton, which must not happen before the backend is open: it chooses between GPU and interpreter.
if TYPE_CHECKING:
    from colocate.worker.cuda.decode import CudaDecodeExecutor
    from colocate.worker.cuda.gpu_model import GpuModel
    from colocate.worker.cuda.hybrid import CudaHybridExecutor
    from colocate.worker.cuda.prefill import CudaPrefillExecutor

Share = tuple[int, ...]
_OPENING = threading.Lock()


@functools.cache
def _opened(index: int) -> Backend:
    return open_backend(index)


def backend_of_process(index: int) -> Backend:
    """One per process: in single-process mode the threads of both workers ask for it."""
    with _OPENING:
        return _opened(index)


class CudaDevice:
    """Implements `WorkerDevice`. What it holds is given back with the process."""

    def __init__(self, spec: ProcessSpec, board: Board, announce: Callable[[str, str], object]) -> None:
        facts, mode = spec.facts, spec.config.scheduler.mode
        self._spec = spec
        self._board = board
        self._announce_to = announce
        self._seconds: dict[str, float] = {}
        self._phase = ("", time.monotonic())
        self._decode: CudaDecodeExecutor | None = None
        self._config = load_model_config(Path(facts.model_dir))
        self._table = build_plan_table(facts.total_units, facts.unit_granularity, facts.decode_shares)
        self._announce("gpu", facts.device_name)
        self._backend = backend_of_process(facts.device_index)
        driver = self._backend.driver
        driver.retain_primary(facts.device_index)  # of this thread
        if len(processes_of(mode, spec.config.device.single_process)) > 1:
            assert_mps_client(driver.facts(facts.device_index))
        shares = shares_of(self._table, spec.role, is_split=mode == "colocated")
        self._announce("partition", f"{len(shares)} share(s)")
        self._partition = CudaPartition(self._backend, facts.device_index, spec.role, shares)
        self._announce("attach", "weights and KV")
        self._memory = attach_cuda(spec, self._backend)

    @property
    def partition(self) -> Partition:
        return self._partition

    def facts(self) -> dict[str, int | float | str]:
        self._announce("ready", "")
        graphs = self._decode.graphs if self._decode is not None else None
        sizes = memory_facts(
            self._backend, self._spec.facts.device_index, self._memory, graphs.num_bytes if graphs is not None else 0
        )
        seconds = {f"{phase}_s": round(seconds, 3) for phase, seconds in self._seconds.items()}
        return {**sizes, **seconds, "num_graphs": graphs.num_graphs if graphs is not None else 0}

    def prefill_executor(self) -> CudaPrefillExecutor:
        scheduler = self._spec.config.scheduler
        return self._prefill(self._model(scheduler.max_num_batched_tokens))

    def decode_executor(self) -> CudaDecodeExecutor:
        return self._steps(self._model(self._spec.config.scheduler.max_num_seqs))

    def hybrid_executor(self) -> CudaHybridExecutor:
        from colocate.worker.cuda.hybrid import CudaHybridExecutor

        scheduler = self._spec.config.scheduler
        gpu = self._model(max(scheduler.max_num_batched_tokens, scheduler.max_num_seqs))
        hybrid = CudaHybridExecutor(gpu, self._prefill(gpu), self._steps(gpu))
        self._on_each_share(lambda: hybrid.rehearse(self._batches()[0], 1))
        return hybrid

    def _model(self, max_tokens: int) -> GpuModel:
        from colocate.worker.cuda.gpu_model import GpuModel

        spec, memory = self._spec, self._memory
        self._announce("model", self._spec.facts.model_name)
        return GpuModel(
            self._backend,
            self._partition,
            self._config,
            spec.facts,
            memory.weights,
            memory.kv,
            max_tokens=max_tokens,
            max_rows=spec.config.scheduler.max_num_seqs,
            attention=spec.config.model.attention_backend,
            prefers=self._preferred_kernels(),
        )

    def _preferred_kernels(self) -> KernelTable | None:
        path, model, device = self._spec.config.model.attention_table, self._config, self._spec.facts.device_name
        return None if path is None else KernelTable.load_for(Path(path), device, model, self._spec.facts.dtype)

    def _prefill(self, gpu: GpuModel) -> CudaPrefillExecutor:
        from colocate.worker.cuda.prefill import CudaPrefillExecutor

        facts = self._spec.facts
        prefill = CudaPrefillExecutor(gpu, self._spec.config.scheduler.max_num_batched_tokens, facts.max_model_len)

        def rehearse() -> None:
            for batch in self._batches():
                prefill.rehearse(batch)

        self._announce("warm-up", "prompts")
        self._on_each_share(rehearse)
        return prefill

    def _steps(self, gpu: GpuModel) -> CudaDecodeExecutor:
        from colocate.worker.cuda.decode import CudaDecodeExecutor

        facts, config = self._spec.facts, self._spec.config
        graph_bytes = 0 if config.model.enforce_eager else facts.graph_bytes
        decode = CudaDecodeExecutor(gpu, config.scheduler.max_num_seqs, facts.max_model_len, graph_bytes)
        self._decode = decode
        lanes: list[Lane] = [self._partition.lane_of(share) for share in self._shares_to_warm()]
        self._announce("warm-up", "decode steps")
        with device_lost_raised(), torch.inference_mode():
            self._backend.settle()
            decode.graphs.warm(lanes)
            if self._is_first:
                decode.graphs.capture_all(lanes, lambda detail: self._announce("graphs", detail))
            else:
                decode.graphs.capture_while_serving()
        return decode

    @property
    def _is_first(self) -> bool:
        return self._spec.incarnation <= 1

    def _shares_to_warm(self) -> tuple[Share, ...]:
        shares = self._partition.shares
        if self._is_first:
            return shares
        seq, plan_index = self._board.plan()
        units = self._table.plans[plan_index].units_of(self._spec.role, self._table.total_units) if seq else ()
        return (units,) if units in shares else shares[:1]

    def _on_each_share(self, work: Callable[[], None]) -> None:
        with device_lost_raised():
            self._backend.settle()
            for share in self._shares_to_warm():
                self._partition.apply(share)
                work()
            self._partition.apply(())

    def _batches(self) -> list[PrefillBatch]:
        """The largest forward, one of many rows, and the smallest. Their blocks are read, whatever is in them."""
        facts, scheduler = self._spec.facts, self._spec.config.scheduler
        most = max(1, min(scheduler.max_num_batched_tokens, facts.max_model_len))
        num_rows = max(1, min(scheduler.max_num_seqs, most // 4))
        return [self._batch([most]), self._batch([4] * num_rows), self._batch([1])]

    def _batch(self, lengths: list[int]) -> PrefillBatch:
        facts, state = self._spec.facts, SampleState(SamplingParams(max_tokens=2), 0)
        rows = []
        for index, length in enumerate(lengths):
            blocks = [block % facts.num_blocks for block in range(-(-length // facts.block_size))]
            token_ids = [token % facts.vocab_size for token in range(length)]
            rows.append(PrefillRow(index, 0, token_ids, 0, blocks, state))
        return PrefillBatch(0, rows)

    def _announce(self, phase: str, detail: str) -> None:
        before, since_s = self._phase
        now_s = time.monotonic()
        if before:
            self._seconds[before] = self._seconds.get(before, 0.0) + now_s - since_s
        self._phase = (phase, now_s)
        if phase != "ready":
            self._announce_to(phase, detail)


def shares_of(table: PlanTable, role: Role, *, is_split: bool) -> list[Share]:
    """Every share that a plan may give this worker; the whole device where nothing is split."""
    plans = table.plans if is_split else (table.by_name(SHARED),)
    return [units for plan in plans if (units := plan.units_of(role, table.total_units))]
