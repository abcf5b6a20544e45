"""How a GPU's memory is divided: nothing is promised twice, and a refusal says which number to change."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from colocate.config.sizes import parse_size
from colocate.core.plan import build_plan_table
from colocate.errors import ConfigError
from colocate.model.config import load_model_config
from colocate.model.layout import KVLayout, WeightLayout
from colocate.runtime.gpu_budget import GRANULARITY_BYTES, MIB, GpuNeeds, divide, num_lanes_of
from colocate.types import Role

GIB = 1 << 30
DEMO = load_model_config(Path(__file__).parents[2] / "colocate" / "model" / "demo")
LLAMA_8B = dataclasses.replace(
    DEMO,
    vocab_size=128256,
    hidden_size=4096,
    intermediate_size=14336,
    num_layers=32,
    num_heads=32,
    num_kv_heads=8,
    head_dim=128,
    tie_word_embeddings=False,
    sliding_windows=(None,) * 32,
    max_position_embeddings=131072,
)


def needs(**changes: object) -> GpuNeeds:
    """An 8B model on an H200."""
    return dataclasses.replace(
        GpuNeeds(
            total_bytes=139 * GIB,
            free_bytes=138 * GIB,
            utilization=0.9,
            weights_bytes=WeightLayout.of(LLAMA_8B, "bfloat16").nbytes,
            bytes_per_block=KVLayout(LLAMA_8B, "bfloat16", 1, 16).nbytes,
            kv_memory=None,
            graph_bytes=2 * GIB,
            num_lanes=9,
            mode="colocated",
            single_process=False,
            model=LLAMA_8B,
            dtype="bfloat16",
            max_num_batched_tokens=8192,
            max_num_seqs=256,
            max_model_len=131072,
            block_size=16,
            num_sms=132,
        ),
        **changes,  # type: ignore[arg-type]
    )


def test_an_8b_model_leaves_most_of_an_h200_to_the_pool() -> None:
    budget = divide(needs())
    assert budget.num_blocks * 16 > 700_000, "tokens"
    assert 0 <= budget.left_bytes < 2 * GRANULARITY_BYTES + needs().bytes_per_block
    assert budget.graph_bytes == 2 * GIB
    assert {line.owner for line in budget.lines} == {None, Role.PREFILL, Role.DECODE}


@given(
    total=st.integers(1 * GIB, 200 * GIB),
    utilization=st.floats(0.05, 1.0),
    kv_memory=st.none() | st.integers(1, 200 * GIB),
    graphs=st.integers(0, 8 * GIB),
    lanes=st.integers(1, 17),
    tokens=st.integers(1, 65536),
    rows=st.integers(1, 2048),
    block_size=st.sampled_from([1, 16, 256]),
    mode=st.sampled_from(["colocated", "shared", "chunked"]),
    single=st.booleans(),
)
def test_a_budget_never_exceeds_what_may_be_used(
    total: int,
    utilization: float,
    kv_memory: int | None,
    graphs: int,
    lanes: int,
    tokens: int,
    rows: int,
    block_size: int,
    mode: str,
    single: bool,
) -> None:
    wanted = needs(
        total_bytes=total,
        free_bytes=0,
        utilization=utilization,
        kv_memory=kv_memory,
        graph_bytes=graphs,
        num_lanes=lanes,
        max_num_batched_tokens=tokens,
        max_num_seqs=rows,
        bytes_per_block=KVLayout(LLAMA_8B, "bfloat16", 1, block_size).nbytes,
        mode=mode,
        single_process=single,
    )
    try:
        budget = divide(wanted)
    except ConfigError as error:
        assert error.where in ("kv_memory", "gpu_memory_utilization") and error.remedy
        return
    assert budget.planned_bytes <= budget.usable_bytes <= total
    assert budget.kv_bytes == budget.num_blocks * wanted.bytes_per_block and budget.num_blocks >= 1
    assert all(line.num_bytes >= 0 for line in budget.lines)
    if kv_memory is not None:
        assert budget.num_blocks == kv_memory // wanted.bytes_per_block
    else:
        assert budget.left_bytes < wanted.bytes_per_block + 2 * GRANULARITY_BYTES, "room for more blocks was left"


def test_other_programs_on_the_gpu_are_named_with_a_share_that_fits() -> None:
    with pytest.raises(ConfigError, match="only 40 GiB are free") as caught:
        divide(needs(free_bytes=40 * GIB))
    share = float(re.findall(r"utilization ([\d.]+)", caught.value.remedy)[0])
    assert divide(needs(free_bytes=40 * GIB, utilization=share)).usable_bytes <= 40 * GIB


def test_a_pool_that_does_not_fit_is_refused_with_the_size_that_does() -> None:
    with pytest.raises(ConfigError) as caught:
        divide(needs(kv_memory=120 * GIB))
    assert caught.value.where == "kv_memory"
    fits = parse_size(re.findall(r"--kv-memory (\w+)", caught.value.remedy)[0])
    assert divide(needs(kv_memory=fits)).num_blocks > divide(needs()).num_blocks * 0.99


def test_a_model_that_does_not_fit_says_what_can_give_way() -> None:
    with pytest.raises(ConfigError) as caught:
        divide(needs(total_bytes=20 * GIB, free_bytes=0))
    assert caught.value.where == "gpu_memory_utilization"
    for word in ("--gpu-memory-utilization", "--graph-memory", "--max-num-seqs"):
        assert word in caught.value.remedy
    with pytest.raises(ConfigError) as caught:
        divide(needs(total_bytes=16 * GIB, free_bytes=0, kv_memory=GIB, graph_bytes=0))
    assert "--graph-memory" not in caught.value.remedy, "there are none"


def test_a_pool_of_less_than_a_block_is_refused() -> None:
    with pytest.raises(ConfigError, match="one KV block"):
        divide(needs(kv_memory=MIB))


def test_one_process_has_one_context() -> None:
    two, one = divide(needs(kv_memory=GIB)), divide(needs(kv_memory=GIB, single_process=True))
    assert one.planned_bytes < two.planned_bytes
    assert [line.name for line in one.lines if "context" in line.name] == ["gpu-owner: context"]
    chunked = divide(needs(kv_memory=GIB, mode="chunked"))
    assert chunked.of(Role.HYBRID) > 0 and chunked.of(Role.PREFILL) == 0


def test_a_worker_has_a_lane_per_share() -> None:
    armed = build_plan_table(132, 8, (16, 24, 48))
    assert num_lanes_of(armed, "colocated") == 4, "three splits, and the whole device"
    assert num_lanes_of(armed, "shared") == num_lanes_of(armed, "chunked") == 1
    assert num_lanes_of(build_plan_table(4, 8), "colocated") == 1
