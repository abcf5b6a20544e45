"""The executors of a GPU against those of a CPU, in Triton's interpreter: the same model, prompts and tokens.

Greedy tokens of a float32 model whose margins are far above rounding; sampled ones where the noise is the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch

from colocate.device.cuda.backend import FakeBackend
from colocate.device.cuda.fake import FakeDriver
from colocate.device.cuda.partition import CudaPartition
from colocate.errors import DeviceLost
from colocate.messages.decode import DecodeRow, DecodeUpdate, StepReport
from colocate.messages.prefill import PrefillBatch, PrefillCancel, PrefillDone, PrefillRow
from colocate.messages.sampling import SampleState, SamplingParams
from colocate.model.llama import bytes_tensor
from colocate.types import FinishReason, Role
from colocate.worker.cuda.decode import CudaDecodeExecutor
from colocate.worker.cuda.gpu_model import GpuModel
from colocate.worker.cuda.hybrid import CudaHybridExecutor
from colocate.worker.cuda.prefill import CudaPrefillExecutor
from colocate.worker.executor import StandingRow
from tests.checkpoints import make_checkpoint
from tests.model_harness import Harness, facts_for, greedy
from tests.worker_harness import BLOCK_SIZE, Bench

MAX_ROWS, MAX_TOKENS, MAX_LEN = 4, 64, 64
SMALL, WHOLE = tuple(range(32)), tuple(range(132))
NUM_TOKENS = 5


class Gpu:
    """Executors over one pool, and the CPU's over a pool of their own."""

    def __init__(self, directory: Path) -> None:
        self.cpu = Harness.load(directory, block_size=BLOCK_SIZE, num_blocks=128)
        self.driver = FakeDriver()
        self.backend = FakeBackend(self.driver)
        self.partition = CudaPartition(self.backend, 0, Role.DECODE, [SMALL, WHOLE])
        self.partition.apply(SMALL)
        self.kv = torch.zeros(self.cpu.kv_layout.nbytes, dtype=torch.uint8)
        self.before = self.kv.clone()

    def model(self) -> GpuModel:
        facts = facts_for(self.cpu.config, "float32", 128, BLOCK_SIZE)
        weights = bytes_tensor(memoryview(self.cpu.weights))
        return GpuModel(
            self.backend, self.partition, self.cpu.config, facts, weights, self.kv,
            max_tokens=MAX_TOKENS, max_rows=MAX_ROWS,
        )  # fmt: skip

    def prefill(self) -> CudaPrefillExecutor:
        return CudaPrefillExecutor(self.model(), MAX_TOKENS, MAX_LEN)

    def decode(self, graph_bytes: int = 0) -> CudaDecodeExecutor:
        return CudaDecodeExecutor(self.model(), MAX_ROWS, MAX_LEN, graph_bytes)

    def hybrid(self) -> CudaHybridExecutor:
        gpu = self.model()
        decode = CudaDecodeExecutor(gpu, MAX_ROWS, MAX_LEN, 0)
        return CudaHybridExecutor(gpu, CudaPrefillExecutor(gpu, MAX_TOKENS, MAX_LEN), decode)

    def close(self) -> None:
        self.partition.close()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("model")
    make_checkpoint(directory, "qwen3", num_hidden_layers=2, hidden_size=32, intermediate_size=48, head_dim=16)
    return directory


@pytest.fixture
def gpu(checkpoint: Path) -> Iterator[Gpu]:
    gpu = Gpu(checkpoint)
    yield gpu
    gpu.close()


def prompt(seed: int, length: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, 259, (length,), generator=generator).tolist()


def prompt_row(
    request_id: int, tokens: list[int], blocks: list[int], params: SamplingParams | None = None, **more: object
) -> PrefillRow:
    return PrefillRow(request_id, 1, tokens, 0, blocks, SampleState(params or greedy(), 0), **more)  # type: ignore[arg-type]


def standing(request_id: int, tokens: list[int], first: int, blocks: list[int], params: SamplingParams) -> DecodeRow:
    return DecodeRow(request_id, 1, first, len(tokens), blocks, SampleState(params, 1, tokens, [first]))


def done(messages: Sequence[object]) -> list[PrefillDone]:
    return [message for message in messages if isinstance(message, PrefillDone)]


def tokens_of(messages: Sequence[object], request_id: int) -> list[int]:
    steps = [message for message in messages if isinstance(message, StepReport)]
    return [row.token_id for report in steps for row in report.rows if row.request_id == request_id]


class Served:
    """Prompts of a CPU's prefill, whose KV lies in the pool of the GPU's decode worker as well."""

    def __init__(self, gpu: Gpu, lengths: Sequence[int], params: Sequence[SamplingParams]) -> None:
        self.gpu, self.params = gpu, params
        self.prompts = [prompt(seed, length) for seed, length in enumerate(lengths)]
        cpu = gpu.cpu
        self.blocks = [cpu.allocate(length + 24) for length in lengths]
        self.first = [
            cpu.prompt(index, self.prompts[index], self.blocks[index], params=params[index])
            for index in range(len(lengths))
        ]
        gpu.kv.copy_(bytes_tensor(memoryview(cpu.kv)))

    def expected(self, index: int, num_tokens: int) -> list[int]:
        """Of the CPU, alone, after the first."""
        cpu = self.gpu.cpu
        row = cpu.row(index, self.prompts[index], self.first[index], self.blocks[index], self.params[index])
        row.sample = SampleState(self.params[index], 1, self.prompts[index])
        for _ in range(num_tokens):
            cpu.version += 1
            cpu.step([row], cpu.version)
        return row.output_token_ids[1:]

    def join(self, index: int, num_blocks: int | None = None) -> DecodeRow:
        blocks = self.blocks[index][:num_blocks]
        return standing(index, self.prompts[index], self.first[index], blocks, self.params[index])


def test_prompts_alone_together_and_in_slices_draw_the_cpus_tokens(gpu: Gpu) -> None:
    prompts = [prompt(seed, length) for seed, length in enumerate((21, 3, 9))]
    blocks = [gpu.cpu.allocate(len(each)) for each in prompts]
    params = [greedy(), SamplingParams(max_tokens=9, temperature=0.8, seed=3, ignore_eos=True), greedy(logprobs=2)]
    wanted = [
        gpu.cpu.run_prefill([prompt_row(index, each, blocks[index], params[index])])[0]
        for index, each in enumerate(prompts)
    ]
    bench = Bench(Role.PREFILL, prefill=gpu.prefill())
    rows = [prompt_row(index, each, blocks[index], params[index]) for index, each in enumerate(prompts)]
    bench.say(PrefillBatch(1, rows[:1]))
    bench.say(PrefillBatch(2, rows[1:]))
    first, second = done(bench.settle())
    bench.close()
    found = [*first.rows, *second.rows]
    assert [row.token_id for row in found] == [row.token_id for row in wanted]
    assert found[2].logprob is not None and wanted[2].logprob is not None and found[0].logprob is None
    assert found[2].logprob.logprob == pytest.approx(wanted[2].logprob.logprob, abs=1e-4)
    ours = gpu.kv.view(torch.float32).view(gpu.cpu.kv_layout.shape)
    theirs = bytes_tensor(memoryview(gpu.cpu.kv)).view(torch.float32).view(gpu.cpu.kv_layout.shape)
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def test_a_chunked_prompt_with_scores(gpu: Gpu) -> None:
    tokens = prompt(5, 20)
    blocks = gpu.cpu.allocate(len(tokens))
    (wanted,) = gpu.cpu.run_prefill([prompt_row(1, tokens, blocks, prompt_logprobs=1)])
    executor, scores, found = gpu.prefill(), [], None
    for start, end in ((0, 8), (8, 20)):
        last = end == len(tokens)
        sample = SampleState(greedy(), 0) if last else None
        row = PrefillRow(1, 1, tokens[start:end], start, blocks, sample, 1, None if last else tokens[end])
        forward = executor.begin(PrefillBatch(start, [row]))
        while not forward.run_slice(1):
            forward.wait_slice()
        forward.wait_slice()
        (found,) = forward.results()
        scores += found.prompt_logprobs
    assert found is not None and found.token_id == wanted.token_id
    assert [each.logprob for each in scores] == pytest.approx(
        [each.logprob for each in wanted.prompt_logprobs], abs=1e-4
    )


def test_rows_dropped_between_slices_leave_the_others_as_they_are(gpu: Gpu) -> None:
    prompts = [prompt(seed, length) for seed, length in enumerate((7, 12, 5))]
    blocks = [gpu.cpu.allocate(len(each)) for each in prompts]
    wanted = [gpu.cpu.prompt(index, each, blocks[index]) for index, each in enumerate(prompts)]
    bench = Bench(Role.PREFILL, prefill=gpu.prefill())
    bench.say(PrefillBatch(1, [prompt_row(index, each, blocks[index]) for index, each in enumerate(prompts)]))
    bench.turn()
    bench.say(PrefillCancel([(1, 1)]))
    (answer,) = done(bench.settle())
    assert [(row.request_id, row.token_id) for row in answer.rows] == [(0, wanted[0]), (2, wanted[2])]
    bench.close()


def test_a_forward_set_aside_goes_on_where_it_was(gpu: Gpu) -> None:
    prompts = [prompt(seed, length) for seed, length in enumerate((18, 6, 4))]
    blocks = [gpu.cpu.allocate(len(each)) for each in prompts]
    wanted = [gpu.cpu.prompt(index, each, blocks[index]) for index, each in enumerate(prompts)]
    executor = gpu.prefill()
    bench = Bench(Role.PREFILL, prefill=executor)
    bench.say(PrefillBatch(1, [prompt_row(0, prompts[0], blocks[0])]))
    bench.turn()
    gpu.partition.apply(WHOLE)
    for index in (1, 2):
        bench.say(PrefillBatch(1 + index, [prompt_row(index, prompts[index], blocks[index])], urgent=True))
    answers = done(bench.settle())
    assert [(each.batch_id, each.rows[0].token_id) for each in answers] == [
        (2, wanted[1]),
        (3, wanted[2]),
        (1, wanted[0]),
    ]
    assert len(executor.desks) == 3 and len(executor.hidden) == 2, "everything was given back"
    bench.close()


def test_a_rehearsal_leaves_the_pool_as_it_is(gpu: Gpu) -> None:
    gpu.kv.random_(0, 60)
    before = gpu.kv.clone()
    gpu.prefill().rehearse(PrefillBatch(1, [prompt_row(1, prompt(1, 9), [0, 1, 2])]))
    decode = gpu.decode()
    with torch.inference_mode():
        decode.graphs.warm([gpu.partition.lane_of(SMALL)])
    gpu.hybrid().rehearse(PrefillBatch(1, [prompt_row(1, prompt(1, 9), [0, 1, 2])]), 2)
    assert torch.equal(gpu.kv, before)


@pytest.mark.parametrize("graph_bytes", [0, 1 << 30])
def test_rows_join_and_leave_at_any_step_and_shares_change(gpu: Gpu, graph_bytes: int) -> None:
    params = [greedy(20), SamplingParams(max_tokens=20, temperature=1.0, top_p=0.9, seed=9, ignore_eos=True), greedy(4)]
    served = Served(gpu, (6, 9, 5), params)
    decode = gpu.decode(graph_bytes)
    lanes = [gpu.partition.lane_of(share) for share in (SMALL, WHOLE)]
    if graph_bytes:
        with torch.inference_mode():
            decode.graphs.warm(lanes)
            decode.graphs.capture_all(lanes, lambda detail: None)
        assert decode.graphs.num_graphs == 2 * 3
    bench = Bench(Role.DECODE, decode=decode)
    bench.settle()
    bench.say(DecodeUpdate(joins=[served.join(0)]))
    bench.turn(2)
    bench.say(DecodeUpdate(joins=[served.join(1), served.join(2)]))
    bench.turn(2)
    gpu.partition.apply(WHOLE)
    bench.turn(3)
    bench.say(DecodeUpdate(leaves=[(0, 1)]))
    bench.turn(2)
    bench.say(DecodeUpdate(leaves=[(1, 1)]))
    messages = bench.settle()
    found = {index: tokens_of(messages, index) for index in range(3)}
    assert len(found[0]) >= 5 and len(found[1]) >= 5 and len(found[2]) == 3
    for index, tokens in found.items():
        assert tokens == served.expected(index, len(tokens))
    bench.close()


def test_ends_are_seen_on_the_device_and_full_rows_wait(gpu: Gpu) -> None:
    served = Served(gpu, (6, 6), [greedy(20), greedy(20)])
    stop = served.expected(0, 4)[3]
    served.params = [greedy(20, stop_token_ids=(stop,)), greedy(20)]
    bench = Bench(Role.DECODE, decode=gpu.decode())
    bench.settle()
    bench.say(DecodeUpdate(joins=[served.join(0), served.join(1, num_blocks=2)]))
    messages = bench.settle()
    rows = [row for report in messages if isinstance(report, StepReport) for row in report.rows]
    assert [row.finish for row in rows if row.request_id == 0][-1] is FinishReason.STOP
    assert tokens_of(messages, 1) == served.expected(1, 2), "two slots were left"
    bench.say(DecodeUpdate(grows=[(1, 1, served.blocks[1][2:3])]))
    assert tokens_of(bench.settle(), 1) == served.expected(1, 6)[2:]
    bench.close()


@pytest.mark.parametrize("graph_bytes", [0, 1 << 30])
def test_rows_of_the_host_mix_with_others(gpu: Gpu, graph_bytes: int) -> None:
    asked = SamplingParams(
        max_tokens=6, temperature=0.7, seed=4, ignore_eos=True, repetition_penalty=1.3, presence_penalty=0.4, logprobs=2
    )
    served = Served(gpu, (6, 9), [greedy(12), asked])
    decode = gpu.decode(graph_bytes)
    if graph_bytes:
        with torch.inference_mode():
            decode.graphs.capture_all([gpu.partition.lane_of(SMALL)], lambda detail: None)
    bench = Bench(Role.DECODE, decode=decode)
    bench.settle()
    bench.say(DecodeUpdate(joins=[served.join(0)]))
    bench.turn(3)
    bench.say(DecodeUpdate(joins=[served.join(1)]))
    messages = bench.settle()
    assert tokens_of(messages, 0) == served.expected(0, 11)
    assert tokens_of(messages, 1) == served.expected(1, 5)
    rows = [row for report in messages if isinstance(report, StepReport) for row in report.rows]
    assert all((row.logprob is not None) == (row.request_id == 1) for row in rows)
    bench.close()


def test_a_chunk_beside_standing_rows_yields_what_both_yield_alone(gpu: Gpu) -> None:
    served = Served(gpu, (6, 9), [greedy(12), greedy(12)])
    chunk = prompt(9, 11)
    blocks = gpu.cpu.allocate(len(chunk))
    wanted = gpu.cpu.prompt(7, chunk, blocks)
    hybrid = gpu.hybrid()
    rows = [cpu_row(served, index) for index in range(2)]
    found: list[list[int]] = [[], []]
    for step, batch in enumerate((None, PrefillBatch(1, [prompt_row(7, chunk, blocks)]), None)):
        hybrid.launch(batch, rows, 1)
        result = hybrid.collect()
        assert result.tokens is not None and [row.token_id for row in result.done] == ([wanted] if batch else [])
        for row, tokens, token_id in zip(rows, found, result.tokens.token_ids, strict=True):
            tokens.append(token_id)
            row.last_token_id, row.context_len, row.position = token_id, row.context_len + 1, row.position + 1
        assert step < 3
    assert found == [served.expected(0, 3), served.expected(1, 3)]
    hybrid.launch(PrefillBatch(2, [prompt_row(7, chunk, blocks)]), [], 2)
    assert hybrid.collect().done[0].token_id == wanted


def cpu_row(served: Served, index: int) -> StandingRow:
    return served.gpu.cpu.row(index, served.prompts[index], served.first[index], served.blocks[index], greedy(12))


def test_a_faulted_device_passes_through_the_loop(gpu: Gpu) -> None:
    served = Served(gpu, (6,), [greedy(12)])
    bench = Bench(Role.DECODE, decode=gpu.decode())
    bench.settle()
    bench.say(DecodeUpdate(joins=[served.join(0)]))
    bench.turn(2)
    gpu.driver.fault()
    with pytest.raises(DeviceLost):
        bench.turn(2)
    bench.close()


def test_steps_are_waited_for_when_the_share_in_force_is_empty_by_then(gpu: Gpu) -> None:
    """Else their blocks would be given away while they still write."""
    served = Served(gpu, (6,), [greedy(12)])
    decode = gpu.decode()
    decode.launch([cpu_row(served, 0)], 1)
    gpu.partition.apply(())
    gpu.driver.fault()
    with pytest.raises(DeviceLost):
        decode.abandon()
