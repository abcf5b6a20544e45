"""Checkpoints into a segment: fused, converted, sharded; and every way a checkpoint can be broken, refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from colocate.errors import ConfigError
from colocate.model.config import load_model_config
from colocate.model.layout import WeightLayout
from colocate.model.llama import bytes_tensor, map_weights
from colocate.model.loader import HostMemory, load_weights
from tests.checkpoints import make_checkpoint


def load(directory: Path, dtype: str = "float32") -> dict[str, torch.Tensor]:
    config = load_model_config(directory)
    layout = WeightLayout.of(config, dtype)
    buffer = bytearray(layout.nbytes)
    steps: list[tuple[int, int]] = []
    into = HostMemory(memoryview(buffer))
    load_weights(directory, config, layout, into, lambda done, total: steps.append((done, total)))
    done = [step[0] for step in steps]
    assert done == sorted(done)
    assert layout.nbytes - 64 * len(layout.entries) < done[-1] <= layout.nbytes
    return map_weights(layout, bytes_tensor(memoryview(buffer)))


def test_projections_are_fused_in_order(tmp_path: Path) -> None:
    model = make_checkpoint(tmp_path, "qwen2")
    weights = load(tmp_path)
    attention, mlp = model.model.layers[1].self_attn, model.model.layers[1].mlp
    qkv = [attention.q_proj, attention.k_proj, attention.v_proj]
    assert torch.equal(weights["layers.1.qkv"], torch.cat([part.weight for part in qkv]))
    assert torch.equal(weights["layers.1.qkv_bias"], torch.cat([part.bias for part in qkv]))
    assert torch.equal(weights["layers.1.gate_up"], torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight]))
    assert torch.equal(weights["lm_head"], model.lm_head.weight)
    assert torch.equal(weights["norm"], model.model.norm.weight)


def test_a_tied_head_is_not_stored_twice(tmp_path: Path) -> None:
    make_checkpoint(tmp_path, "llama", tie_word_embeddings=True)
    assert "lm_head" not in load(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()  # as some exporters write it
    save_file(tensors, tmp_path / "model.safetensors")
    load(tmp_path)


def test_shards_are_joined(tmp_path: Path) -> None:
    (tmp_path / "whole").mkdir()
    make_checkpoint(tmp_path / "whole", "llama")
    make_checkpoint(tmp_path / "parts", "llama", shard_size="100KB")
    assert len(list((tmp_path / "parts").glob("*.safetensors"))) > 2
    whole, parts = load(tmp_path / "whole"), load(tmp_path / "parts")
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


@pytest.mark.parametrize("stored", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_dtypes_convert_as_torch_converts(tmp_path: Path, stored: str, dtype: str) -> None:
    model = make_checkpoint(tmp_path, "llama", dtype=stored)
    wanted = model.model.embed_tokens.weight.to(getattr(torch, dtype))
    assert torch.equal(load(tmp_path, dtype)["embed"], wanted)


def test_special_values_round_to_bfloat16_as_torch_rounds(tmp_path: Path) -> None:
    make_checkpoint(tmp_path, "llama")
    tensors = load_file(tmp_path / "model.safetensors")
    special = torch.tensor([float("inf"), -float("inf"), 0.0, -0.0, 1e-40, 3.3895e38, 1.00390625, 1.01171875])
    tensors["model.norm.weight"][:8] = special
    tensors["model.norm.weight"][8] = float("nan")
    save_file(tensors, tmp_path / "model.safetensors")
    found = load(tmp_path, "bfloat16")["norm"]
    assert torch.equal(found[:8].view(torch.int16), special.bfloat16().view(torch.int16))
    assert found[8].isnan()


def remove_weights(directory: Path) -> None:
    (directory / "model.safetensors").unlink()


def truncate(directory: Path) -> None:
    path = directory / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def cut_the_header(directory: Path) -> None:
    path = directory / "model.safetensors"
    path.write_bytes(path.read_bytes()[:50])


def replace_with_text(directory: Path) -> None:
    (directory / "model.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1\n" * 3)


def replace_with_nothing(directory: Path) -> None:
    (directory / "model.safetensors").write_bytes(b"")


def edit(change: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], None]:
    def apply(directory: Path) -> None:
        tensors = load_file(directory / "model.safetensors")
        change(tensors)
        save_file(tensors, directory / "model.safetensors")

    return apply


UP = "model.layers.0.mlp.up_proj.weight"


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (remove_weights, ["no *.safetensors"]),
        (truncate, ["model.safetensors", "truncated", "100 bytes"]),
        (cut_the_header, ["model.safetensors", "truncated"]),
        (replace_with_text, ["model.safetensors", "truncated"]),
        (replace_with_nothing, ["model.safetensors", "truncated"]),
        (edit(lambda tensors: tensors.pop(UP)), [UP, "missing"]),
        (edit(lambda tensors: tensors.update({"model.layers.9.extra": torch.ones(1)})), ["model.layers.9.extra"]),
        (edit(lambda tensors: tensors.update({UP: torch.ones(3, 5)})), [UP, "[3, 5]", "[112, 64]"]),
        (edit(lambda tensors: tensors.update({UP: torch.ones(112, 64, dtype=torch.int8)})), [UP, "I8"]),
    ],
)
def test_broken_checkpoints_are_refused_by_name(
    tmp_path: Path, spoil: Callable[[Path], None], named: list[str]
) -> None:
    make_checkpoint(tmp_path, "llama")
    spoil(tmp_path)
    with pytest.raises(ConfigError) as caught:
        load(tmp_path)
    assert all(name in str(caught.value) for name in named), str(caught.value)
    assert caught.value.remedy


def test_a_missing_shard_and_a_broken_index_are_named(tmp_path: Path) -> None:
    make_checkpoint(tmp_path, "llama", shard_size="100KB")
    index = tmp_path / "model.safetensors.index.json"
    name = sorted(set(json.loads(index.read_text())["weight_map"].values()))[1]
    (tmp_path / name).unlink()
    with pytest.raises(ConfigError, match=f"{name}: shard is missing"):
        load(tmp_path)
    index.write_text("[]")
    with pytest.raises(ConfigError, match=r"index\.json"):
        load(tmp_path)
