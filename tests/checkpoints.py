"""Small random checkpoints of every supported family, written by transformers itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")

_CLASSES = {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3"}

_SMALL: dict[str, Any] = {
    "vocab_size": 259,
    "hidden_size": 64,
    "intermediate_size": 112,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "bos_token_id": None,
    "eos_token_id": 2,
    "pad_token_id": None,
    "initializer_range": 0.15,  # wide enough that greedy margins are far above rounding
}


def build_model(family: str, seed: int = 0, **overrides: Any) -> Any:
    """A transformers model in eval mode with random weights, biases and norms included."""
    name = _CLASSES[family]
    config = getattr(transformers, f"{name}Config")(**{**_SMALL, **overrides})
    torch.manual_seed(seed)
    model = getattr(transformers, f"{name}ForCausalLM")(config)
    for parameter_name, parameter in model.named_parameters():
        if parameter.dim() == 1:  # transformers starts norms at 1 and biases at 0, which would test neither
            offset = 1.0 if "norm" in parameter_name else 0.0
            torch.nn.init.normal_(parameter, mean=offset, std=0.2)
    return model.eval()


def make_checkpoint(
    directory: Path,
    family: str = "llama",
    seed: int = 0,
    dtype: str = "float32",
    shard_size: str = "1GB",
    **overrides: Any,
) -> Any:
    """Save a random model to `directory` as a Hugging Face checkpoint and return the transformers model."""
    model = build_model(family, seed, **overrides).to(getattr(torch, dtype))
    model.save_pretrained(directory, max_shard_size=shard_size)
    return model
