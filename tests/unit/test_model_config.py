"""What `config.json` is understood to say, and what is refused by name."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from colocate.errors import ConfigError
from colocate.model.config import load_model_config
from colocate.model.layout import KVLayout, WeightLayout

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 128, "hidden_size": 64,
    "intermediate_size": 96, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 512, "rms_norm_eps": 1e-5, "hidden_act": "silu", "eos_token_id": 2,
}  # fmt: skip
QWEN2 = {**LLAMA, "architectures": ["Qwen2ForCausalLM"]}
MISTRAL = {**LLAMA, "architectures": ["MistralForCausalLM"]}


def write(directory: Path, config: dict[str, Any]) -> Path:
    (directory / "config.json").write_text(json.dumps(config))
    return directory


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"architectures": ["MixtralForCausalLM"]}, "MixtralForCausalLM"),
        ({"architectures": None}, "architectures"),
        ({"architectures": ["LlamaForCausalLM", "Other"]}, "architectures"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantization_config"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"mlp_bias": True}, "mlp_bias"),
        ({"num_experts": 8}, "num_experts"),
        ({"num_local_experts": 8}, "num_local_experts"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "dynamic"),
        ({"rope_scaling": {"rope_type": "longrope", "factor": 2.0}}, "longrope"),
        ({"rope_parameters": {"rope_type": "linear", "factor": 2.0, "short_factor": [1.0]}}, "short_factor"),
        ({"rope_parameters": {"rope_type": "linear"}}, "factor"),
        ({"rope_parameters": {"full_attention": {"rope_type": "default"}}}, "layer type"),
        ({"rope_scaling": [1]}, "rope_scaling"),
        ({"num_key_value_heads": 3}, "num_key_value_heads"),
        ({"head_dim": 15}, "head_dim"),
        ({"hidden_size": "64"}, "hidden_size"),
        ({"num_hidden_layers": 0}, "num_hidden_layers"),
        ({"tie_word_embeddings": 1}, "tie_word_embeddings"),
        ({"eos_token_id": "end"}, "eos_token_id"),
        ({"layer_types": ["full_attention"] * 3}, "layer_types"),
        ({"layer_types": ["chunked_attention"] * 4}, "chunked_attention"),
        ({"layer_types": ["sliding_attention"] * 4}, "layer_types"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(tmp_path: Path, change: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_model_config(write(tmp_path, {**LLAMA, **change}))
    assert named in str(caught.value)
    assert "config.json" in caught.value.where


def test_a_missing_directory_and_a_broken_file_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not a directory"):
        load_model_config(tmp_path / "absent")
    with pytest.raises(ConfigError, match=r"config\.json: is missing"):
        load_model_config(tmp_path)
    (tmp_path / "config.json").write_text('{"architectures": ')
    with pytest.raises(ConfigError, match=r"config\.json: cannot be read"):
        load_model_config(tmp_path)


def test_both_spellings_of_rope_scaling_agree(tmp_path: Path) -> None:
    rope = {
        "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64,
    }  # fmt: skip
    new = {**LLAMA, "rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5, **rope}}
    old = {**LLAMA, "rope_theta": 5e5, "rope_scaling": {"type": "llama3", **rope}}
    found = load_model_config(write(tmp_path, new)).rope
    assert found == load_model_config(write(tmp_path, old)).rope
    assert (found.type, found.theta, found.factor) == ("llama3", 5e5, 8.0)


def test_windows_follow_family_and_layer(tmp_path: Path) -> None:
    def windows(config: dict[str, Any]) -> tuple[int | None, ...]:
        return load_model_config(write(tmp_path, config)).sliding_windows

    assert windows({**MISTRAL, "sliding_window": 7}) == (7,) * 4
    assert windows({**MISTRAL, "sliding_window": None}) == (None,) * 4
    assert windows({**QWEN2, "sliding_window": 7, "max_window_layers": 2}) == (None,) * 4
    sliding = {**QWEN2, "use_sliding_window": True, "sliding_window": 7, "max_window_layers": 3}
    assert windows(sliding) == (None, None, None, 7)
    named = ["sliding_attention", "full_attention"] * 2
    assert windows({**sliding, "layer_types": named}) == (7, None, 7, None)


def test_eos_ids_come_from_the_generation_config_first(tmp_path: Path) -> None:
    write(tmp_path, {**LLAMA, "eos_token_id": [5, 6]})
    assert load_model_config(tmp_path).eos_token_ids == (5, 6)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": 9}')
    assert load_model_config(tmp_path).eos_token_ids == (9,)
    (tmp_path / "generation_config.json").write_text('{"temperature": 0.7}')
    assert load_model_config(tmp_path).eos_token_ids == (5, 6)


def test_auto_dtype_never_loses_bits(tmp_path: Path) -> None:
    for stored, dtype in (("bfloat16", "bfloat16"), ("float16", "float32"), ("float32", "float32")):
        config = load_model_config(write(tmp_path, {**LLAMA, "torch_dtype": stored}))
        assert config.resolve_dtype("auto") == dtype
        assert config.resolve_dtype("float32") == "float32"


@pytest.mark.parametrize(
    "change", [{}, {"tie_word_embeddings": True}, {"attention_bias": True}, {"architectures": ["Qwen3ForCausalLM"]}]
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weights_lie_aligned_and_apart(tmp_path: Path, change: dict[str, Any], dtype: str) -> None:
    config = load_model_config(write(tmp_path, {**LLAMA, **change}))
    layout = WeightLayout.of(config, dtype)
    end = 0
    for entry in layout.entries:
        assert entry.offset_bytes % 64 == 0
        assert entry.offset_bytes >= end
        assert sum(part.num_rows for part in entry.parts) == entry.shape[0]
        end = entry.offset_bytes + entry.nbytes
    assert end <= layout.nbytes < end + 64
    itemsize = 4 if dtype == "float32" else 2
    assert config.num_params == sum(entry.nbytes for entry in layout.entries) // itemsize
    assert len({entry.name for entry in layout.entries}) == len(layout.entries)


def test_a_pool_has_as_many_blocks_as_fit(tmp_path: Path) -> None:
    config = load_model_config(write(tmp_path, LLAMA))
    block = KVLayout(config, "float32", 1, 16)
    assert block.nbytes == block.bytes_per_block == config.kv_bytes_per_token("float32") * 16 == 4 * 2 * 2 * 16 * 16 * 4
    assert KVLayout.num_blocks_for(10 * block.nbytes - 1, config, "float32", 16) == 9
    with pytest.raises(ConfigError, match=str(block.nbytes)):
        KVLayout.num_blocks_for(block.nbytes - 1, config, "float32", 16)


def test_the_keeper_side_imports_no_torch() -> None:
    code = "import sys, colocate.model.loader, colocate.model.config; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
