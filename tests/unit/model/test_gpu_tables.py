"""What the GPU's model is told by the host: sampling rows, the plan of its arena, the library of its products."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch

import colocate.model
from colocate.messages.sampling import SampleState, SamplingParams
from colocate.model import noise
from colocate.model.config import load_model_config
from colocate.model.cuda.activations import ActivationPlan, hidden_bytes
from colocate.model.cuda.linear import CublasLinear, _loaded_cublas
from colocate.model.cuda.rotary import rotary_table
from colocate.model.cuda.sampling import TABLE_ROW, needs_host, table_row
from colocate.model.cuda.state import MAX_ENDS, DecodeState, SamplingTable, StepRows
from colocate.model.rope import RotaryTable

DEMO = load_model_config(Path(colocate.model.__file__).parent / "demo")


def row(position: int = 0, vocab_size: int | None = None, **params: object) -> np.ndarray:
    return table_row(SampleState(SamplingParams(max_tokens=9, **params), position), vocab_size)  # type: ignore[arg-type]


def test_ends_say_what_masks_and_what_finishes() -> None:
    ignoring = row(eos_token_ids=(1, 2), stop_token_ids=(5, 2), ignore_eos=True)
    assert ignoring["ends"].tolist() == [1, 2, 5, -1, -1, -1, -1, -1]
    assert ignoring["end_finishes"].tolist() == [0, 1, 1, 0, 0, 0, 0, 0], "a stop token ends even if it is EOS"
    assert row(eos_token_ids=(1,), stop_token_ids=(99,), vocab_size=50)["ends"].tolist() == [1] + [-1] * 7


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        ({}, False),
        ({"temperature": 0.3, "top_k": 4, "top_p": 0.5, "min_p": 0.1, "min_tokens": 3}, False),
        ({"repetition_penalty": 1.1}, True),
        ({"presence_penalty": 0.1}, True),
        ({"frequency_penalty": -0.1}, True),
        ({"logit_bias": {3: 1.0}}, True),
        ({"logprobs": 0}, True),
        ({"stop_token_ids": tuple(range(MAX_ENDS))}, False),
        ({"stop_token_ids": tuple(range(MAX_ENDS)), "eos_token_ids": (3,)}, False),
        ({"stop_token_ids": tuple(range(MAX_ENDS)), "eos_token_ids": (70,)}, True),
        ({"stop_token_ids": tuple(range(MAX_ENDS)), "eos_token_ids": (1000,)}, False),
    ],
)
def test_who_needs_the_host(params: dict[str, object], expected: bool) -> None:
    sample = SampleState(SamplingParams(max_tokens=9, **params), 0)  # type: ignore[arg-type]
    assert needs_host(sample, 100) is expected


def test_extreme_parameters_fit_the_table() -> None:
    extreme = row(temperature=1e308, top_k=2**40, min_tokens=2**40, min_p=1e-310)
    assert np.isfinite(extreme["temperature"]) and extreme["min_p"] == 0.0
    assert extreme["top_k"] == extreme["min_tokens"] == 2**31 - 1
    assert row(temperature=1e-6)["temperature"] == 0.0, "greedy, as the host's sampler takes it"


@pytest.mark.parametrize(("seed", "choice", "position"), [(0, 0, 0), (2**63 - 1, 3, 17), (12345, 1, 2**31 - 1)])
def test_the_chain_before_the_position_is_the_hosts(seed: int, choice: int, position: int) -> None:
    chain = int(row(position, seed=seed, choice=choice)["seed_key"]) % 2**64
    assert noise.mix(((chain ^ position) + noise.GAMMA) % 2**64) == noise.noise_key(seed, choice, position)


def test_a_record_is_a_slot_of_the_table() -> None:
    table = SamplingTable.allocate(3, "cpu")
    for name in TABLE_ROW.names or ():
        column = getattr(table, name)
        assert column.shape == (3, *TABLE_ROW[name].shape)
        assert column.numpy().dtype == TABLE_ROW[name].base
    assert table.nbytes == 3 * TABLE_ROW.itemsize and table.capacity == 3


def test_state_has_a_slot_for_padding() -> None:
    state = DecodeState.allocate(4, 6, "cpu")
    assert (state.capacity, state.padding_slot, state.block_table.shape) == (5, 4, (5, 6))
    assert StepRows.allocate(state, 2).index.tolist() == [4, 4]
    assert state.nbytes == 5 * (4 * 4 + 6 * 4) + state.sampling.nbytes


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("max_tokens", "max_rows"), [(64, 4), (8, 8), (1, 300)])
def test_only_buffers_of_different_stages_overlap(dtype: str, max_tokens: int, max_rows: int) -> None:
    plan = ActivationPlan.of(DEMO, dtype, max_tokens, max_rows)
    overlapping = {
        tuple(sorted((a, b)))
        for (a, x), (b, y) in combinations(plan.buffers.items(), 2)
        if x.offset_bytes < y.offset_bytes + y.nbytes and y.offset_bytes < x.offset_bytes + x.nbytes
    }
    assert overlapping <= {("attention", "gate_up"), ("gate_up", "qkv")}
    assert all(buffer.offset_bytes % 256 == 0 for buffer in plan.buffers.values())
    assert plan.nbytes >= max(buffer.offset_bytes + buffer.nbytes for buffer in plan.buffers.values())
    assert plan.buffers["normed"].nbytes == hidden_bytes(DEMO, dtype, max(max_tokens, max_rows))


def test_the_table_of_rotations_is_the_cpus() -> None:
    ours, theirs = rotary_table(DEMO, 300, "cpu"), RotaryTable(DEMO.rope, DEMO.head_dim, 300, torch.float32)
    cos, sin = theirs.at(torch.arange(300))
    half = DEMO.head_dim // 2
    assert torch.equal(ours[:, :half], cos[:, 0, :half]) and torch.equal(ours[:, half:], sin[:, 0, half:])


def test_cublas_is_found_among_the_libraries_of_a_process() -> None:
    maps = """7f00-7f01 r-xp 00000000 00:1f 11 /opt/v/nvidia/cu13/lib/libcublasLt.so.13
7f02-7f03 r--p 00000000 00:1f 12 /opt/v/nvidia/cu13/lib/libcublas.so.13
7f04-7f05 rw-p 00000000 00:00 0 [heap]
"""
    assert _loaded_cublas(maps) == "/opt/v/nvidia/cu13/lib/libcublas.so.13"
    assert _loaded_cublas(maps.replace("libcublas.so", "libother.so")) is None


def test_products_keep_float32_scores_of_bf16() -> None:
    linear = CublasLinear(torch.device("cpu"))
    linear.use(24)
    x, weight = torch.randn(3, 64).bfloat16(), torch.randn(5, 64).bfloat16()
    scores = torch.empty(3, 5)
    linear.scores(x, weight, scores)
    torch.testing.assert_close(scores.double(), x.double() @ weight.double().t(), rtol=1e-5, atol=1e-5)
    apart, out = torch.randn(3, 128)[:, :64], torch.empty(3, 5)
    linear.project(apart, weight.float(), out)
    torch.testing.assert_close(out, apart @ weight.float().t())
