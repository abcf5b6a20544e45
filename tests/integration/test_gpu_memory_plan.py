"""From settings to the memory plan of a GPU (the fake one, asked in its own process): sizes, notes and refusals."""

from __future__ import annotations

import pytest

from colocate.config.load import load_config
from colocate.errors import ConfigError
from colocate.runtime.startup import Startup, prepare
from colocate.types import Role

GIB = 1 << 30


@pytest.fixture(autouse=True)
def fake_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLOCATE_FAKE_CUDA", "1")
    monkeypatch.setenv("COLOCATE_FAKE_CUDA_BYTES", str(16 * GIB))


def prepared(**settings: str) -> Startup:
    return prepare(load_config(None, {}, {"device": "cuda", **settings}))


def test_the_pool_is_what_is_left_and_dtype_is_bfloat16() -> None:
    startup = prepared()
    budget = startup.budget
    assert budget is not None and budget.planned_bytes <= budget.usable_bytes == int(0.9 * 16 * GIB)
    assert startup.facts.num_blocks == budget.num_blocks and startup.kv_bytes == budget.kv_bytes
    assert startup.facts.dtype == "bfloat16" and any("bfloat16" in note for note in startup.notes)
    assert startup.facts.graph_bytes == 2 * GIB
    assert startup.facts.decode_shares, "the armed splits"


def test_without_graphs_their_memory_is_the_pools() -> None:
    eager, graphs = prepared(enforce_eager="true"), prepared()
    assert eager.facts.graph_bytes == 0
    assert eager.kv_bytes - graphs.kv_bytes > 1.9 * GIB


def test_a_pool_that_is_named_is_kept() -> None:
    startup = prepared(kv_memory="64MiB", mode="chunked")
    assert startup.budget is not None
    assert 63 << 20 < startup.kv_bytes <= 64 << 20
    assert startup.budget.of(Role.HYBRID) > 0


@pytest.mark.parametrize(
    ("settings", "where", "remedy"),
    [
        ({"kv_memory": "64GiB"}, "kv_memory", "give --kv-memory "),
        ({"gpu_memory_utilization": "0.2"}, "gpu_memory_utilization", "raise --gpu-memory-utilization"),
        ({"kv_memory": "1MiB", "max_model_len": "1000"}, "kv_memory", "--max-model-len"),
        ({"kv_memory": "1KiB"}, "kv_memory", "give at least"),
    ],
)
def test_what_does_not_fit_is_refused_with_a_remedy(settings: dict[str, str], where: str, remedy: str) -> None:
    with pytest.raises(ConfigError) as caught:
        prepared(**settings)
    assert caught.value.where == where and remedy in caught.value.remedy


def test_identical_bits_are_not_promised_on_a_gpu() -> None:
    with pytest.raises(ConfigError, match="not offered on a GPU"):
        prepared(deterministic="true")
