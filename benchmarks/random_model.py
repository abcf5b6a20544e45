"""Random-weight Llama checkpoints of a stated size, with the demo model's tokenizer: for speed, never for quality.

python benchmarks/random_model.py 30M models/random-30M [--max-model-len 8192]
"""

from __future__ import annotations

import argparse
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

DEMO = Path(__file__).parent.parent / "colocate" / "model" / "demo"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "generation_config.json")


@dataclass(frozen=True)
class Shape:
    """A Llama of `num_parameters`, tied embeddings, one KV head per query head unless said otherwise."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    intermediate: int
    vocab: int

    @property
    def num_parameters(self) -> int:
        head_dim = self.hidden // self.heads
        attention = 2 * self.hidden * self.hidden + 2 * self.hidden * self.kv_heads * head_dim
        return self.vocab * self.hidden + self.layers * (attention + 3 * self.hidden * self.intermediate)


SHAPES = {
    # Nothing is computed from it on the emulated device: a tokenizer, a longest prompt, and 1 KiB of KV per token.
    "tiny": Shape(hidden=64, layers=2, heads=2, kv_heads=2, intermediate=128, vocab=2048),
    "30M": Shape(hidden=512, layers=8, heads=8, kv_heads=8, intermediate=1408, vocab=8192),
    "125M": Shape(hidden=768, layers=12, heads=12, kv_heads=12, intermediate=2560, vocab=32000),
}


def write_random_model(directory: Path, shape: Shape, *, seed: int = 0, max_model_len: int = 8192) -> Path:
    """A Hugging Face directory of float32 weights, normal with the usual 0.02."""
    directory.mkdir(parents=True, exist_ok=True)
    for name in TOKENIZER_FILES:
        shutil.copy(DEMO / name, directory / name)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": shape.hidden,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "intermediate_size": shape.intermediate,
        "vocab_size": shape.vocab,
        "max_position_embeddings": max_model_len,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": True,
        "torch_dtype": "float32",
        "eos_token_id": 2,
    }
    (directory / "config.json").write_text(json.dumps(config, indent=1))
    save_file(_weights(shape, seed), directory / "model.safetensors", metadata={"format": "pt"})
    return directory


def _weights(shape: Shape, seed: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    head_dim = shape.hidden // shape.heads

    def normal(*dims: int) -> np.ndarray:
        return random.standard_normal(dims, dtype=np.float32) * np.float32(0.02)

    weights = {
        "model.embed_tokens.weight": normal(shape.vocab, shape.hidden),
        "model.norm.weight": np.ones(shape.hidden, np.float32),
    }
    for layer in range(shape.layers):
        prefix = f"model.layers.{layer}"
        weights |= {
            f"{prefix}.self_attn.q_proj.weight": normal(shape.hidden, shape.hidden),
            f"{prefix}.self_attn.k_proj.weight": normal(shape.kv_heads * head_dim, shape.hidden),
            f"{prefix}.self_attn.v_proj.weight": normal(shape.kv_heads * head_dim, shape.hidden),
            f"{prefix}.self_attn.o_proj.weight": normal(shape.hidden, shape.hidden),
            f"{prefix}.mlp.gate_proj.weight": normal(shape.intermediate, shape.hidden),
            f"{prefix}.mlp.up_proj.weight": normal(shape.intermediate, shape.hidden),
            f"{prefix}.mlp.down_proj.weight": normal(shape.hidden, shape.intermediate),
            f"{prefix}.input_layernorm.weight": np.ones(shape.hidden, np.float32),
            f"{prefix}.post_attention_layernorm.weight": np.ones(shape.hidden, np.float32),
        }
    return weights


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--max-model-len", type=int, default=8192, metavar="N")
    options = parser.parse_args()
    print(write_random_model(options.directory, SHAPES[options.shape], max_model_len=options.max_model_len))


if __name__ == "__main__":
    main()
