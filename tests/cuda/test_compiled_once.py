"""No kernel is compiled once a worker serves: what its warm-up launches is every variant it will ever need.

Triton compiles anew where an integer argument becomes 1 or a multiple of 16, where a pointer loses its alignment, and
for every other value of a constexpr. In a serving worker that is a pause of a second; inside a capture it is a failure.
Launches are compiled here and not run, so every token drawn is a zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from colocate.device.cuda.backend import FakeBackend
from colocate.device.cuda.fake import FakeDriver
from colocate.device.cuda.partition import CudaPartition
from colocate.messages.prefill import PrefillBatch, PrefillRow
from colocate.messages.sampling import SampleState, SamplingParams
from colocate.model.cuda.activations import ActivationPlan
from colocate.model.cuda.kernels.sampling import RowSampler
from colocate.model.cuda.state import SamplingTable
from colocate.model.llama import bytes_tensor
from colocate.types import Role
from colocate.worker.cuda.decode import CudaDecodeExecutor
from colocate.worker.cuda.gpu_model import GpuModel
from colocate.worker.cuda.hybrid import CudaHybridExecutor
from colocate.worker.cuda.prefill import CudaPrefillExecutor
from colocate.worker.executor import StandingRow
from tests.checkpoints import make_checkpoint
from tests.cuda.aot import Launch, compiled_launches
from tests.cuda.paged_world import heads_config
from tests.model_harness import Harness, facts_for

MAX_ROWS, MAX_TOKENS, MAX_LEN, BLOCK_SIZE, NUM_BLOCKS = 20, 64, 128, 16, 64
WHOLE = tuple(range(132))


class Worker:
    def __init__(self, directory: Path) -> None:
        harness = Harness.load(directory, block_size=BLOCK_SIZE, num_blocks=NUM_BLOCKS)
        backend = FakeBackend(FakeDriver())
        self.partition = CudaPartition(backend, 0, Role.HYBRID, [WHOLE])
        self.partition.apply(WHOLE)
        gpu = GpuModel(
            backend,
            self.partition,
            harness.config,
            facts_for(harness.config, "float32", NUM_BLOCKS, BLOCK_SIZE),
            bytes_tensor(memoryview(harness.weights)),
            torch.zeros(harness.kv_layout.nbytes, dtype=torch.uint8),
            max_tokens=MAX_TOKENS,
            max_rows=MAX_ROWS,
        )
        self.prefill = CudaPrefillExecutor(gpu, MAX_TOKENS, MAX_LEN)
        self.decode = CudaDecodeExecutor(gpu, MAX_ROWS, MAX_LEN, 0)
        self.hybrid = CudaHybridExecutor(gpu, self.prefill, self.decode)

    def warm_up(self) -> None:
        """As `worker/cuda/device.py` does."""
        for lengths in ([MAX_TOKENS], [4] * 16, [1]):
            self.prefill.rehearse(batch(lengths))
        with torch.inference_mode():
            self.decode.graphs.warm([self.partition.lane_of(WHOLE)])
        self.hybrid.rehearse(batch([MAX_TOKENS]), 1)

    def serve_prompts(self, lengths: Sequence[int], start: int = 0) -> None:
        forward = self.prefill.begin(batch(lengths, start))
        while not forward.run_slice(1):
            pass
        forward.wait_slice()
        forward.results()

    def step(self, num_rows: int, version: int, **params: object) -> None:
        self.decode.launch(standing(num_rows, **params), version)
        self.decode.collect()

    def hybrid_step(self, lengths: Sequence[int], num_rows: int, version: int) -> None:
        self.hybrid.launch(batch(lengths), standing(num_rows), version)
        self.hybrid.collect()


def batch(lengths: Sequence[int], start: int = 0) -> PrefillBatch:
    state = SampleState(SamplingParams(max_tokens=2), 0)
    rows = [
        PrefillRow(index, 0, [5] * length, start, list(range(-(-(start + length) // BLOCK_SIZE))), state)
        for index, length in enumerate(lengths)
    ]
    return PrefillBatch(0, rows)


def standing(num_rows: int, **params: object) -> list[StandingRow]:
    state = SampleState(SamplingParams(max_tokens=9, **params), 1, [5], [])  # type: ignore[arg-type]
    return [StandingRow(index, 1, 5, 3 + index, [index, index + 20], state, 1) for index in range(num_rows)]


def variants(launches: Sequence[Launch]) -> set[tuple[str, int]]:
    return {(launch.name, id(launch.kernel)) for launch in launches}


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Worker:
    directory = tmp_path_factory.mktemp("model")
    make_checkpoint(directory, "qwen3", num_hidden_layers=2, hidden_size=64, intermediate_size=48, head_dim=32)
    return Worker(directory)


def test_serving_launches_nothing_that_the_warm_up_did_not(worker: Worker) -> None:
    with compiled_launches() as launches:
        worker.warm_up()
        known = variants(launches)
        assert len(known) > 10
        launches.clear()
        for lengths, start in (([1], 17), ([2, 3], 0), ([5] * 7, 1), ([16], 64), ([33, 16, 15], 32), ([1] * 17, 0)):
            worker.serve_prompts(lengths, start)
        for version, num_rows in enumerate((1, 2, 3, 5, 16, 17, 20, 7)):
            worker.step(num_rows, version)
        worker.step(3, 100, logprobs=2)
        for version, (lengths, num_rows) in enumerate((([1], 1), ([3], 5), ([16, 7], 16), ([9], 17))):
            worker.hybrid_step(lengths, num_rows, 200 + version)
        assert launches
        assert not {name for name, _ in variants(launches) - known}


def test_a_draw_is_compiled_once_whatever_the_rows_and_the_share() -> None:
    most = 40
    config = replace(heads_config(2, 1, 32, [None]), vocab_size=70_001)
    plan = ActivationPlan.of(config, "float32", most, most)
    arena = torch.zeros(plan.nbytes, dtype=torch.uint8)
    types = {"float32": torch.float32, "int32": torch.int32}
    buffers = {
        name: arena[each.offset_bytes :][: each.nbytes].view(types[each.dtype]).view(each.shape)
        for name, each in plan.buffers.items()
    }
    table, index, drawn = SamplingTable.allocate(most, "cpu"), torch.arange(most).int(), torch.zeros(most).int()
    with compiled_launches() as launches:
        for num_rows in (1, 2, 15, 16, 17, 33, 40):
            for num_sms in (0, 8, 24, 132):
                logits = buffers["logits"][:num_rows]
                RowSampler(buffers).sample(logits, table, index[:num_rows], drawn[:num_rows], num_sms)
    found = variants(launches)
    assert len(found) == len({name for name, _ in found}) == 4
