"""`--deterministic`: the same bits whatever the batch, the chunking, the thread count and the phase, on both paths."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy.typing as npt
import pytest
import torch

from colocate.errors import ConfigError
from colocate.messages.prefill import PrefillRow
from colocate.messages.sampling import SampleState
from colocate.model.deterministic import stable_tiles
from tests.checkpoints import make_checkpoint
from tests.model_harness import Harness, greedy

PROMPT_LENGTH = 290  # more than one chunk of keys

VARIANTS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("llama", "float32", {}),
    "qwen2-odd-sizes": (
        "qwen2", "float32",
        {"hidden_size": 96, "num_attention_heads": 3, "num_key_value_heads": 1, "intermediate_size": 100},
    ),
    "qwen3-window": (
        "qwen3", "float32",
        {"head_dim": 16, "use_sliding_window": True, "sliding_window": 24, "max_window_layers": 1},
    ),
    "llama-bfloat16": ("llama", "bfloat16", {"attention_bias": True}),
}  # fmt: skip


@pytest.fixture(autouse=True)
def threads_put_back() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module", params=VARIANTS)
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    family, dtype, overrides = VARIANTS[request.param]
    directory = tmp_path_factory.mktemp(request.param)
    make_checkpoint(directory, family, dtype=dtype, **overrides)
    return directory, dtype


@pytest.fixture
def harness(checkpoint: tuple[Path, str], kernels: str) -> Harness:
    return Harness.load(*checkpoint, deterministic=True)


def prompt_of(harness: Harness) -> list[int]:
    generator = torch.Generator().manual_seed(3)
    return torch.randint(0, harness.config.vocab_size, (PROMPT_LENGTH,), generator=generator).tolist()


def prefilled(harness: Harness, prompt: list[int], chunk: int, num_threads: int) -> tuple[npt.NDArray[Any], Any]:
    """KV bits of the prompt, and the log probabilities of every token after its last place."""
    harness.prefill.units_changed(num_threads)
    blocks = harness.allocate(len(prompt))
    start = 0
    for start in range(0, len(prompt), chunk):
        part = prompt[start : start + chunk]
        sample = SampleState(greedy(logprobs=5), 0) if start + chunk >= len(prompt) else None
        done = harness.run_prefill([PrefillRow(1, 1, part, start, blocks, sample)])
    bits = harness.stored_kv(blocks, len(prompt))
    harness.free += blocks
    return bits, (done[0].token_id, done[0].logprob)


def test_chunking_and_threads_change_no_bit(harness: Harness) -> None:
    prompt = prompt_of(harness)
    wanted, first = prefilled(harness, prompt, 1 << 20, 1)
    for chunk, num_threads in ((1 << 20, 2), (9, 2), (64, 1)):
        bits, token = prefilled(harness, prompt, chunk, num_threads)
        assert (bits == wanted).all(), f"chunks of {chunk}, {num_threads} threads"
        assert token == first


def test_companions_change_no_bit(harness: Harness) -> None:
    prompt = prompt_of(harness)
    wanted, _ = prefilled(harness, prompt, 1 << 20, 1)
    for num_others in range(1, 9, 3):
        blocks = harness.allocate(len(prompt))
        others = [PrefillRow(i, 1, prompt[i : 3 * i + 1], 0, harness.allocate(32)) for i in range(2, 2 + num_others)]
        harness.prefill.units_changed(2)
        harness.run_prefill([*others, PrefillRow(1, 1, prompt, 0, blocks)])
        assert (harness.stored_kv(blocks, len(prompt)) == wanted).all(), f"{num_others} other rows"
        harness.free += blocks + [block for row in others for block in row.block_table]


@pytest.mark.parametrize("num_threads", [1, 2])
def test_decode_writes_the_bits_that_prefill_writes(harness: Harness, num_threads: int) -> None:
    """Nine rows fed the prompt token by token from different places, joining one by one, so that every batch size from
    1 to 9 occurs and contexts cross a chunk of keys."""
    prompt = prompt_of(harness)
    wanted, _ = prefilled(harness, prompt, 1 << 20, 2)
    harness.decode.units_changed(num_threads)
    rows = []
    for index in range(9):
        start = 245 - 30 * index
        blocks = harness.allocate(len(prompt))
        if start:
            harness.run_prefill([PrefillRow(index, 1, prompt[:start], 0, blocks)])
        rows.append(harness.row(index, prompt[:start], 0, blocks))
    for step in range(30):
        standing = rows[: 1 + step // 3]
        for row in standing:
            row.last_token_id = prompt[row.context_len]
        harness.version += 1
        harness.step(standing, harness.version)
    for index, row in enumerate(rows):
        bits = harness.stored_kv(row.block_table, row.context_len)
        assert (bits == wanted[:, :, :, : row.context_len]).all(), f"row {index}"


def test_a_library_that_looks_at_the_thread_count_is_refused() -> None:
    weight = torch.randn(24, 16)

    def unsteady(x: torch.Tensor) -> torch.Tensor:
        return x @ weight.t() + 1e-7 * torch.get_num_threads()

    with pytest.raises(ConfigError, match="deterministic"):
        stable_tiles(unsteady, weight, (1, 2))


def test_tiles_that_disagree_are_not_used() -> None:
    weight = torch.randn(24, 16)

    def coarse(x: torch.Tensor) -> torch.Tensor:
        return x @ weight.t() + (1.0 if len(x) > 32 else 0.0)

    assert stable_tiles(coarse, weight, (1, 2)) == (32, 8)
