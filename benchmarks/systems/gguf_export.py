"""A Llama checkpoint of safetensors as one GGUF file of the same float32 weights, for llama.cpp.

    PYTHON benchmarks/systems/gguf_export.py MODEL_FOLDER FILE.gguf

PYTHON is an interpreter with the packages `gguf`, `safetensors` and `numpy`; nothing else is imported. Only what the
benchmarks write is read: one model.safetensors of a Llama without biases and a byte-level BPE tokenizer.json.

llama.cpp turns neighbouring elements of a head (x0, x1) where Hugging Face turns halves (x0, x[d/2]), so the rows of
the query and key projections change places (`rotary_rows`); every other tensor is taken as it is. Norms and weights
stay float32: nothing is rounded.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

ARCHITECTURE = "llama"
# Names within a layer. q and k are the ones whose rows change places.
LAYER_TENSORS = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
OTHER_TENSORS = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",  # absent where embeddings are tied: llama.cpp ties them then, too
}
NORMAL, UNUSED, CONTROL = 1, 5, 3  # token types of the GGUF specification


def rotary_rows(rows: NDArray[np.float32], num_heads: int) -> NDArray[np.float32]:
    """Rows [num_heads * head_dim, hidden]: within a head, halves become neighbours."""
    halves = rows.reshape(num_heads, 2, -1, rows.shape[1])
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(rows.shape))


def gguf_name(name: str) -> str:
    """Raises ValueError for a tensor that a Llama does not have."""
    if name in OTHER_TENSORS:
        return OTHER_TENSORS[name]
    words = name.split(".")
    part = ".".join(words[3:-1])
    if words[:2] != ["model", "layers"] or words[-1] != "weight" or part not in LAYER_TENSORS:
        raise ValueError(f"{name} is not a tensor of a Llama without biases")
    return f"blk.{words[2]}.{LAYER_TENSORS[part]}.weight"


def vocabulary(tokenizer: dict[str, Any], size: int) -> tuple[list[str], list[int]]:
    """Every id's token and type; ids that the tokenizer does not name are unused."""
    tokens = [f"[unused{index}]" for index in range(size)]
    types = [UNUSED] * size
    for token, index in tokenizer["model"]["vocab"].items():
        tokens[index], types[index] = token, NORMAL
    for added in tokenizer["added_tokens"]:
        tokens[added["id"]], types[added["id"]] = added["content"], CONTROL if added["special"] else NORMAL
    return tokens, types


def merges(tokenizer: dict[str, Any]) -> list[str]:
    """As GGUF has them: both parts with a space between."""
    return [pair if isinstance(pair, str) else " ".join(pair) for pair in tokenizer["model"]["merges"]]


def export(folder: Path, file: Path) -> None:
    from gguf import GGUFWriter
    from safetensors.numpy import load_file

    config = json.loads((folder / "config.json").read_text())
    if config["architectures"] != ["LlamaForCausalLM"]:
        raise ValueError(f"{folder} is {config['architectures']}, not a Llama")
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    writer = GGUFWriter(file, ARCHITECTURE)
    writer.add_name(folder.name)
    writer.add_file_type(0)  # all float32
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_rope_dimension_count(config.get("head_dim") or config["hidden_size"] // heads)
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    _add_tokenizer(writer, folder, config["vocab_size"])
    for name, tensor in sorted(load_file(folder / "model.safetensors").items()):
        if name.endswith((".q_proj.weight", ".k_proj.weight")):
            tensor = rotary_rows(tensor, heads if ".q_proj." in name else kv_heads)
        writer.add_tensor(gguf_name(name), tensor.astype(np.float32, copy=False))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_tokenizer(writer: Any, folder: Path, size: int) -> None:
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    tokens, types = vocabulary(tokenizer, size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges(merges(tokenizer))
    for key, add in (
        ("bos_token", writer.add_bos_token_id),
        ("eos_token", writer.add_eos_token_id),
        ("pad_token", writer.add_pad_token_id),
    ):
        if settings.get(key) in tokens:
            add(tokens.index(settings[key]))
    writer.add_add_bos_token(bool(settings.get("add_bos_token")))
    if settings.get("chat_template"):
        writer.add_chat_template(settings["chat_template"])


if __name__ == "__main__":
    export(Path(sys.argv[1]), Path(sys.argv[2]))
