"""Which attention kernel a measured table chooses, and what stands where no table or no FlashInfer is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from colocate.errors import ConfigError
from colocate.model.cuda.attention import attention_for
from colocate.model.cuda.flashinfer import why_not_flashinfer
from colocate.model.cuda.kernel_table import AttentionShape, KernelTable, KernelTiming
from colocate.model.cuda.kernels.attention_shapes import AttentionShapes
from tests.cuda.paged_world import PagedWorld, heads_config

_TABLE = KernelTable(
    device="NVIDIA H200",
    head_dim=128,
    num_heads=32,
    num_kv_heads=8,
    dtype="bfloat16",
    timings=(
        KernelTiming(AttentionShape("prefill", 1, 512, 512, 132), {"triton": 1e-4, "flashinfer": 2e-4, "sdpa": 5e-5}),
        KernelTiming(AttentionShape("prefill", 1, 8192, 8192, 132), {"triton": 4e-3, "flashinfer": 2e-3}),
        KernelTiming(AttentionShape("decode", 64, 64, 2048, 132), {"triton": 2e-4}),
        KernelTiming(AttentionShape("prefill", 64, 8192, 128, 132), {"sdpa": 1e-3}),
    ),
)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        (AttentionShape("prefill", 1, 600, 600, 132), "triton"),
        (AttentionShape("prefill", 2, 9000, 4500, 64), "flashinfer"),
        (AttentionShape("prefill", 16, 8192, 700, 132), "flashinfer"),  # the entry without either does not count
        (AttentionShape("decode", 1, 1, 100, 0), "triton"),
    ],
)
def test_the_nearest_shape_of_the_phase_decides(shape: AttentionShape, expected: str) -> None:
    assert _TABLE.fastest(shape, ("triton", "flashinfer")) == expected


def test_nothing_is_chosen_that_was_not_measured() -> None:
    assert _TABLE.fastest(AttentionShape("decode", 1, 1, 100, 132), ("flashinfer",)) is None


def test_a_table_survives_its_file(tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    _TABLE.dump(path)
    assert KernelTable.load(path) == _TABLE
    assert _TABLE.fits(heads_config(32, 8, 128, [None]), "bfloat16")
    assert not _TABLE.fits(heads_config(28, 4, 128, [None]), "bfloat16")
    assert not _TABLE.fits(heads_config(32, 8, 128, [None]), "float32")


@pytest.mark.parametrize("damage", ["missing", "no json", "no timings", "a negative time", "another phase"])
def test_a_damaged_table_names_its_file(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "table.json"
    if damage != "missing":
        _TABLE.dump(path)
        values = json.loads(path.read_text())
        if damage == "no timings":
            del values["timings"]
        elif damage == "a negative time":
            values["timings"][0]["seconds"]["triton"] = -1.0
        elif damage == "another phase":
            values["timings"][0]["phase"] = "both"
        path.write_text("{" if damage == "no json" else json.dumps(values))
    with pytest.raises(ConfigError, match=r"table\.json"):
        KernelTable.load(path)


def test_a_table_of_another_device_or_model_is_refused(tmp_path: Path) -> None:
    path, config = tmp_path / "table.json", heads_config(32, 8, 128, [None])
    _TABLE.dump(path)
    assert KernelTable.load_for(path, "NVIDIA H200", config, "bfloat16") == _TABLE
    with pytest.raises(ConfigError, match="measured on 'NVIDIA H200', this is 'NVIDIA H100'"):
        KernelTable.load_for(path, "NVIDIA H100", config, "bfloat16")
    with pytest.raises(ConfigError, match="32/8 heads of 128 in bfloat16, the model has 28/4 of 128"):
        KernelTable.load_for(path, "NVIDIA H200", heads_config(28, 4, 128, [None]), "bfloat16")


def test_flashinfer_that_cannot_run_is_refused_with_the_remedy() -> None:
    config = heads_config(2, 1, 64, [None])
    world = PagedWorld.make(config, [3], block_size=16, dtype=torch.bfloat16)
    with pytest.raises(ConfigError, match="attention-backend triton"):
        attention_for(config, world.pool, max_rows=1, max_tokens=16, backend="flashinfer")
    assert why_not_flashinfer(config, torch.bfloat16, torch.device("cpu")) is not None


def test_a_head_without_a_kernel_is_refused() -> None:
    with pytest.raises(ConfigError, match="head_dim 512"):
        AttentionShapes.of(512, 2)
