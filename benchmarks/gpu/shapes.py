"""Model directories of published 8B shapes without weights, for `--load-format dummy`.

Sizes: config.json of meta-llama/Llama-3.1-8B and of Qwen/Qwen3-8B. The tokenizer is the demo model's, which is far
smaller than the vocabulary: prompts are token ids, and what is drawn need not be text.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

DEMO = Path(__file__).parents[2] / "colocate" / "model" / "demo"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")

LLAMA_8B: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-05,
    "rope_theta": 500000.0,
    "rope_scaling": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
}
QWEN3_8B: dict[str, Any] = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "hidden_size": 4096,
    "intermediate_size": 12288,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 151936,
    "max_position_embeddings": 40960,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "rope_scaling": None,
    "use_sliding_window": False,
    "sliding_window": None,
    "max_window_layers": 36,
}
# Both families' paths in the interpreter in seconds: two layers, grouped queries, a head of 32.
_TINY: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "vocab_size": 2048,
    "max_position_embeddings": 1024,
}
_COMMON: dict[str, Any] = {
    "hidden_act": "silu",
    "attention_bias": False,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "bos_token_id": 0,
    "eos_token_id": 1,
}
SHAPES: dict[str, dict[str, Any]] = {
    "llama-3.1-8b": LLAMA_8B,
    "qwen3-8b": QWEN3_8B,
    "llama-tiny": {**LLAMA_8B, **_TINY, "torch_dtype": "float32", "rope_scaling": None},
    "qwen3-tiny": {**QWEN3_8B, **_TINY, "torch_dtype": "float32", "max_window_layers": 2},
}
FULL = ("llama-3.1-8b", "qwen3-8b")
TINY = ("llama-tiny", "qwen3-tiny")


def make_shapes(directory: Path, names: tuple[str, ...] = FULL) -> dict[str, Path]:
    """Write a model directory for each name; what exists is written anew. No weights."""
    found: dict[str, Path] = {}
    for name in names:
        target = directory / name
        target.mkdir(parents=True, exist_ok=True)
        (target / "config.json").write_text(json.dumps({**_COMMON, **SHAPES[name]}, indent=1) + "\n")
        (target / "generation_config.json").write_text(json.dumps({"eos_token_id": 1, "bos_token_id": 0}) + "\n")
        for file in TOKENIZER_FILES:
            shutil.copyfile(DEMO / file, target / file)
        found[name] = target
    return found
