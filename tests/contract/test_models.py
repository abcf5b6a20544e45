"""The decoder against transformers: every family, every kernel path, through the executors the workers run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from colocate.messages.prefill import PrefillBatch, PrefillRow
from colocate.messages.sampling import SampleState, TokenLogprob
from tests.checkpoints import make_checkpoint
from tests.model_harness import Harness, greedy

YARN = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 10000.0, "original_max_position_embeddings": 256}
LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "rope_theta": 500000.0,
    "original_max_position_embeddings": 128,
}  # fmt: skip
LINEAR = {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama-tied-biased-mha": ("llama", {"tie_word_embeddings": True, "attention_bias": True, "num_key_value_heads": 4}),
    "llama-wide-heads-llama3": ("llama", {"head_dim": 32, "rope_parameters": LLAMA3}),
    "mistral-window-linear": ("mistral", {"sliding_window": 40, "rope_parameters": LINEAR}),
    "mistral-no-window": ("mistral", {"sliding_window": None, "head_dim": 8}),
    "qwen2": ("qwen2", {"rope_parameters": YARN}),
    "qwen2-window": ("qwen2", {"use_sliding_window": True, "sliding_window": 33, "max_window_layers": 2}),
    "qwen3": ("qwen3", {"head_dim": 32, "tie_word_embeddings": True, "num_key_value_heads": 1}),
    "qwen3-window-biased": (
        "qwen3",
        {
            "head_dim": 16, "attention_bias": True, "use_sliding_window": True, "sliding_window": 64,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
    ),
}  # fmt: skip

PROMPT_LENGTHS = (1, 2, 15, 16, 17, 31, 32, 33, 100, 600)
NUM_NEW_TOKENS = 64

# Both paths share the prefill of this mode, so each takes one way to cut a prompt: into chunks, or not at all.
CHUNKS = {"torch": 50, "native": 1 << 20}

Checkpoint = tuple[Path, Any]


@pytest.fixture(scope="module", params=VARIANTS)
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    family, overrides = VARIANTS[request.param]
    directory = tmp_path_factory.mktemp(request.param)
    return directory, make_checkpoint(directory, family, **overrides)


def prompts_of(lengths: tuple[int, ...], vocab_size: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(7)
    return [torch.randint(0, vocab_size, (length,), generator=generator).tolist() for length in lengths]


def reference_logits(model: Any, tokens: list[int]) -> torch.Tensor:
    with torch.inference_mode():
        logits: torch.Tensor = model(torch.tensor([tokens])).logits[0].float()
        return logits


def as_log_probabilities(scores: list[TokenLogprob], vocab_size: int) -> torch.Tensor:
    rows = torch.empty(len(scores), vocab_size)
    for row, score in zip(rows, scores, strict=True):
        ids, values = zip(*score.top, strict=True)
        row[torch.tensor(ids)] = torch.tensor(values)
    return rows


def log_probabilities(harness: Harness, prompt: list[int], chunk: int) -> torch.Tensor:
    """Of every place of the prompt but the last, by asking for the whole vocabulary as alternatives."""
    vocab_size = harness.config.vocab_size
    blocks = harness.allocate(len(prompt))
    scores: list[TokenLogprob] = []
    for start in range(0, len(prompt), chunk):
        end = min(start + chunk, len(prompt))
        after = prompt[end] if end < len(prompt) else None
        sample = SampleState(greedy(), 0) if after is None else None
        row = PrefillRow(1, 1, prompt[start:end], start, blocks, sample, vocab_size, after)
        scores += harness.run_prefill([row])[0].prompt_logprobs
    harness.free += blocks
    return as_log_probabilities(scores, vocab_size)


def test_logits_match_transformers(checkpoint: Checkpoint, kernels: str) -> None:
    directory, model = checkpoint
    harness = Harness.load(directory)
    for prompt in prompts_of((2, 33, 150), harness.config.vocab_size):
        wanted = reference_logits(model, prompt)[:-1].log_softmax(-1)
        found = log_probabilities(harness, prompt, CHUNKS[kernels])
        assert found.shape == wanted.shape
        error = (found - wanted).abs().max() / wanted.abs().max()
        assert error < 1e-4, f"prompt of {len(prompt)} tokens: relative error {error:.2e}"


def test_greedy_tokens_match_transformers(checkpoint: Checkpoint, kernels: str) -> None:
    """One standing batch of all prompt lengths. Each token must be what transformers finds after the same prefix."""
    directory, model = checkpoint
    harness = Harness.load(directory)
    prompts = prompts_of(PROMPT_LENGTHS, harness.config.vocab_size)
    outputs = harness.generate(prompts, NUM_NEW_TOKENS, CHUNKS[kernels])
    for prompt, output in zip(prompts, outputs, strict=True):
        wanted = reference_logits(model, prompt + output)[len(prompt) - 1 : -1].argmax(-1).tolist()
        assert output == wanted, f"prompt of {len(prompt)} tokens"


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_bfloat16_is_as_close_as_transformers(family: str, kernels: str, tmp_path: Path) -> None:
    model = make_checkpoint(tmp_path, family, dtype="bfloat16", head_dim=16)
    harness = Harness.load(tmp_path, dtype="bfloat16")
    prompt = prompts_of((120,), harness.config.vocab_size)[0]
    rounded = reference_logits(model, prompt)[:-1].log_softmax(-1)
    exact = reference_logits(model.float(), prompt)[:-1].log_softmax(-1)
    found = log_probabilities(harness, prompt, chunk=64)
    assert (found - exact).norm() < 1.5 * (rounded - exact).norm()
    assert len(harness.generate([prompt], 8)[0]) == 8


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    directory = tmp_path_factory.mktemp("llama")
    return directory, make_checkpoint(directory, "llama")


def test_old_spelling_of_rope_scaling_is_the_same_model(tmp_path: Path, kernels: str) -> None:
    model = make_checkpoint(tmp_path, "llama", rope_parameters=YARN)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    rope = config.pop("rope_parameters")
    config["rope_theta"] = rope.pop("rope_theta")
    config["rope_scaling"] = {"type": rope.pop("rope_type"), **rope}
    path.write_text(json.dumps(config))
    harness = Harness.load(tmp_path)
    prompt = prompts_of((300,), harness.config.vocab_size)[0]
    wanted = reference_logits(model, prompt)[:-1].log_softmax(-1)
    assert (log_probabilities(harness, prompt, 1 << 20) - wanted).abs().max() < 1e-4 * wanted.abs().max()


def test_rows_of_one_batch_do_not_disturb_each_other(llama: Checkpoint, kernels: str) -> None:
    """A fresh row, a continued row and a row that ends in one forward, against each alone."""
    harness = Harness.load(llama[0])
    prompts = prompts_of((70, 33, 129), harness.config.vocab_size)
    alone = [harness.prompt(i, prompt, harness.allocate(len(prompt))) for i, prompt in enumerate(prompts)]
    blocks = [harness.allocate(len(prompt)) for prompt in prompts]
    harness.run_prefill([PrefillRow(2, 1, prompts[2][:100], 0, blocks[2])])
    last = SampleState(greedy(), 0)
    done = harness.run_prefill(
        [
            PrefillRow(0, 1, prompts[0], 0, blocks[0], last),
            PrefillRow(1, 1, prompts[1][:20], 0, blocks[1]),
            PrefillRow(2, 1, prompts[2][100:], 100, blocks[2], last),
        ]
    )
    assert [row.token_id for row in done] == [alone[0], None, alone[2]]
    assert harness.run_prefill([PrefillRow(1, 1, prompts[1][20:], 20, blocks[1], last)])[0].token_id == alone[1]


def test_dropped_rows_are_touched_no_more(llama: Checkpoint, kernels: str) -> None:
    harness = Harness.load(llama[0])
    prompts = prompts_of((40, 50, 60), harness.config.vocab_size)
    alone = [harness.prompt(i, prompt, harness.allocate(len(prompt))) for i, prompt in enumerate(prompts)]
    blocks = [harness.allocate(len(prompt)) for prompt in prompts]
    rows = [PrefillRow(i, 1, prompts[i], 0, blocks[i], SampleState(greedy(), 0)) for i in range(3)]
    forward = harness.prefill.begin(PrefillBatch(0, rows))
    assert not forward.run_slice()
    before = harness.stored_kv(blocks[1], 50)
    forward.drop_rows({(1, 1), (9, 9)})
    while not forward.run_slice():
        pass
    assert [(row.request_id, row.token_id) for row in forward.results()] == [(0, alone[0]), (2, alone[2])]
    after = harness.stored_kv(blocks[1], 50)
    assert (before == after).all()
    assert before[0].any()
    assert not after[1:].any(), "later layers of a dropped row were written"


def test_a_forward_that_lost_every_row_ends(llama: Checkpoint) -> None:
    harness = Harness.load(llama[0])
    forward = harness.prefill.begin(PrefillBatch(0, [PrefillRow(1, 1, [1, 2, 3], 0, harness.allocate(3))]))
    forward.run_slice()
    forward.drop_rows({(1, 1)})
    assert forward.run_slice()
    assert forward.results() == []


def test_only_the_rows_own_blocks_are_written(llama: Checkpoint, kernels: str) -> None:
    harness = Harness.load(llama[0], num_blocks=32)
    everything = list(range(32))
    blocks = harness.allocate(40)
    harness.generate_in(blocks, prompts_of((33,), 259)[0], 7)
    others = harness.stored_kv([block for block in everything if block not in blocks], 32 * 16)
    assert not others.any()
    assert not harness.stored_kv(blocks, 48)[:, :, :, 39:].any(), "slots beyond the last token fed were written"


def test_rows_join_leave_and_grow(llama: Checkpoint, kernels: str) -> None:
    harness = Harness.load(llama[0])
    prompts = prompts_of((30, 47, 5, 64), harness.config.vocab_size)
    alone = [harness.generate([prompt], 40)[0] for prompt in prompts]
    rows = []
    for index, prompt in enumerate(prompts):
        blocks = harness.allocate(len(prompt) + 1)  # room for one step: grown below
        rows.append(harness.row(index, prompt, harness.prompt(index, prompt, blocks), blocks))
    standing = rows[:1]
    for step in range(30):
        standing = {0: rows[:1], 5: rows[:3], 12: [rows[2], rows[0], rows[3]], 20: rows[3:]}.get(step, standing)
        for row in standing:
            if row.context_len == len(row.block_table) * harness.block_size:
                row.block_table += harness.allocate(1)
        harness.version += 1
        harness.step(standing, harness.version)
    for row, tokens in zip(rows, alone, strict=True):
        assert len(row.output_token_ids) > 1
        assert row.output_token_ids == tokens[: len(row.output_token_ids)]


@pytest.mark.parametrize("length", [63, 64, 65, 200])
def test_prompts_are_scored_piece_by_piece(llama: Checkpoint, length: int) -> None:
    """Never more than 64 places between two boundaries, and the same scores however rows and pieces fall."""
    harness = Harness.load(llama[0])
    prompt, other = prompts_of((length, 130), harness.config.vocab_size)
    forwards = []
    for after in (None, 5):
        rows = [
            PrefillRow(2, 1, other, 0, harness.allocate(len(other)), None, 3),
            PrefillRow(1, 1, prompt, 0, harness.allocate(length), None, 3, after),
        ]
        forward = harness.prefill.begin(PrefillBatch(1, rows))
        num_slices = 1
        while not forward.run_slice():
            num_slices += 1
        num_targets = length if after is not None else length - 1
        assert num_slices == harness.config.num_layers + 3 + -(-num_targets // 64)
        forwards.append({row.request_id: row.prompt_logprobs for row in forward.results()})
    assert len(forwards[0][1]) == length - 1 and len(forwards[1][1]) == length
    forward = harness.prefill.begin(PrefillBatch(2, rows))
    for _ in range(harness.config.num_layers + 1):
        assert not forward.run_slice()
    forward.drop_rows({(2, 1)})  # after one piece of it: the other row moves to the front
    while not forward.run_slice():
        pass
    [alone] = forward.results()
    assert len(alone.prompt_logprobs) == length
    for kept, scored in zip(alone.prompt_logprobs, forwards[1][1], strict=True):
        assert kept.logprob == pytest.approx(scored.logprob, abs=1e-5)
    wanted = reference_logits(llama[1], prompt)[:-1].log_softmax(-1)
    for place, scored in enumerate(forwards[0][1]):
        assert scored.logprob == pytest.approx(float(wanted[place, prompt[place + 1]]), abs=1e-3)
