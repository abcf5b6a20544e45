"""A chunk and the standing batch in one forward yield what the two executors of their own yield."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from colocate.messages.prefill import PrefillBatch, PrefillRow
from colocate.messages.sampling import SampleState, SamplingParams
from colocate.worker.executor import StandingRow
from colocate.worker.hybrid_executor import ModelHybridExecutor
from colocate.worker.mapped_model import MappedModel
from tests.checkpoints import make_checkpoint
from tests.model_harness import Harness, facts_for, greedy

NUM_TOKENS = 12


@pytest.fixture(scope="module", params=["llama", "qwen3-window"])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp(request.param)
    if request.param == "llama":
        make_checkpoint(directory, "llama", tie_word_embeddings=True, attention_bias=True)
    else:
        layers = ["sliding_attention", "full_attention", "sliding_attention"]
        make_checkpoint(directory, "qwen3", use_sliding_window=True, sliding_window=64, layer_types=layers)
    return directory


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Two OpenMP threads on a core that is busy otherwise make these tests ten times slower."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def prompts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(0, 259, (length,), generator=generator).tolist() for length in (40, 7, 150, 90, 16)]


def hybrid_over(harness: Harness, deterministic: bool) -> ModelHybridExecutor:
    facts = facts_for(harness.config, harness.kv_layout.dtype, harness.kv_layout.num_blocks, harness.block_size)
    weights = memoryview(harness.weights).toreadonly()
    return ModelHybridExecutor(MappedModel(harness.config, facts, weights, memoryview(harness.kv), deterministic))


def serve(
    harness: Harness, executor: ModelHybridExecutor, chunk: int, params: SamplingParams
) -> tuple[list[list[int]], list[list[int]]]:
    """Every prompt in chunks, each chunk in one forward with the rows that decode already. Tokens and blocks."""
    rows: list[StandingRow] = []
    blocks = [harness.allocate(len(prompt) + NUM_TOKENS) for prompt in prompts()]
    version = 0

    def forward(batch: PrefillBatch | None) -> int | None:
        standing = [row for row in rows if len(row.output_token_ids) < NUM_TOKENS]
        result = executor.step(batch, standing, version + len(standing))
        assert (result.tokens is None) == (not standing)
        for row, token_id in zip(standing, result.tokens.token_ids if result.tokens else [], strict=True):
            row.last_token_id = token_id
            row.context_len += 1
            row.position += 1
            row.output_token_ids.append(token_id)
        assert len(result.done) == (batch is not None)
        return result.done[0].token_id if batch is not None else None

    for index, prompt in enumerate(prompts()):
        for start in range(0, len(prompt), chunk):
            end = min(start + chunk, len(prompt))
            sample = SampleState(params, 0) if end == len(prompt) else None
            row = PrefillRow(index, 1, prompt[start:end], start, blocks[index], sample)
            version += 100
            first = forward(PrefillBatch(index, [row]))
        assert first is not None
        rows.append(harness.row(index, prompt, first, blocks[index], params))
    while any(len(row.output_token_ids) < NUM_TOKENS for row in rows):
        version += 100
        forward(None)
    return [row.output_token_ids for row in rows], blocks


@pytest.mark.parametrize("chunk", [8, 64, 1 << 20])
def test_greedy_tokens_are_those_of_the_two_executors(checkpoint: Path, kernels: str, chunk: int) -> None:
    harness = Harness.load(checkpoint)
    wanted = harness.generate(prompts(), NUM_TOKENS)
    found, _ = serve(harness, hybrid_over(harness, False), chunk, greedy())
    assert found == wanted


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_deterministic_forwards_write_and_draw_the_same_bits(checkpoint: Path, kernels: str, dtype: str) -> None:
    """Sampled tokens, where a different last bit of a logit can show."""
    params = SamplingParams(max_tokens=1 << 20, temperature=1.0, seed=5, ignore_eos=True)
    harness = Harness.load(checkpoint, dtype=dtype, deterministic=True)
    rows = []
    for index, prompt in enumerate(prompts()):
        blocks = harness.allocate(len(prompt) + NUM_TOKENS)
        rows.append(harness.row(index, prompt, harness.prompt(index, prompt, blocks, params=params), blocks, params))
    for version in range(1, NUM_TOKENS):
        harness.step(rows, version)
    found, tables = serve(harness, hybrid_over(harness, True), 24, params)
    assert found == [row.output_token_ids for row in rows]
    for prompt, row, own in zip(prompts(), rows, tables, strict=True):
        num_written = len(prompt) + NUM_TOKENS - 1
        assert (harness.stored_kv(own, num_written) == harness.stored_kv(row.block_table, num_written)).all()


def test_scores_and_alternatives_of_both_parts(checkpoint: Path) -> None:
    harness = Harness.load(checkpoint)
    executor = hybrid_over(harness, False)
    prompt, other = prompts()[2], prompts()[0]
    asked = greedy(logprobs=3)
    row = PrefillRow(1, 1, prompt, 0, harness.allocate(len(prompt)), SampleState(asked, 0), 2)
    [alone] = executor.step(PrefillBatch(1, [row]), [], 1).done

    blocks = harness.allocate(len(other) + 2)
    first = harness.prompt(2, other, blocks)
    standing = harness.row(2, other, first, blocks, asked)
    lone = executor.step(None, [standing], 2).tokens
    again = PrefillRow(1, 1, prompt, 0, harness.allocate(len(prompt)), SampleState(asked, 0), 2)
    quiet = PrefillRow(3, 1, other, 0, harness.allocate(len(other)), None)
    both = executor.step(PrefillBatch(1, [quiet, again]), [standing], 2)
    assert both.tokens is not None and lone is not None
    assert both.tokens.token_ids == lone.token_ids
    assert both.tokens.logprobs is not None and both.tokens.logprobs[0] is not None
    assert len(both.tokens.logprobs[0].top) == 3
    skipped, done = both.done
    assert (skipped.token_id, skipped.prompt_logprobs) == (None, [])
    assert done.token_id == alone.token_id and done.logprob is not None
    assert len(done.prompt_logprobs) == len(prompt) - 1
    for ours, theirs in zip(done.prompt_logprobs, alone.prompt_logprobs, strict=True):
        assert ours.logprob == pytest.approx(theirs.logprob, abs=1e-4)
