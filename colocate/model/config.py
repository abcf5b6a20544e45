"""What a Hugging Face `config.json` says about a dense decoder, and nothing this package would ignore in silence.

Llama, Mistral, Qwen2/2.5 and Qwen3 are one architecture with switches: biases, QK-norm, sliding window, rope scaling.
Whatever is none of these is refused by name. Imports no torch: the keeper, the supervisor and the CLI read it too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from colocate.errors import ConfigError
from colocate.model.json_fields import DOWNLOAD_AGAIN, JsonFields, read_json
from colocate.model.rope_config import RopeConfig, parse_rope

DTYPE_BYTES: Mapping[str, int] = {"float32": 4, "bfloat16": 2}

# Fields that change the arithmetic in a way no supported family has; each must be absent or hold one of these values.
_INERT: Mapping[str, tuple[object, ...]] = {
    "quantization_config": (None,),
    "num_experts": (None, 0),
    "num_local_experts": (None, 0),
    "n_routed_experts": (None, 0),
    "num_experts_per_tok": (None, 0),
    "mlp_bias": (None, False),
    "attention_multiplier": (None,),
    "residual_multiplier": (None, 1.0),
    "embedding_multiplier": (None, 1.0),
    "logits_scaling": (None, 1.0),
    "logit_scale": (None, 1.0),
    "attn_logit_softcapping": (None,),
    "final_logit_softcapping": (None,),
    "partial_rotary_factor": (None, 1.0),
    "no_rope_layers": (None,),
    "rope_interleaved": (None, False),
    "attention_sinks": (None, False),
    "position_embedding_type": (None, "rope", "rotary"),
    "is_encoder_decoder": (None, False),
    "vision_config": (None,),
    "pretraining_tp": (None, 1),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """A dense decoder. Sizes are in elements; `sliding_windows[i]` is how many keys layer i sees, itself included."""

    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rms_norm_eps: float
    max_position_embeddings: int
    tie_word_embeddings: bool
    qkv_bias: bool
    o_bias: bool
    qk_norm: bool
    rope: RopeConfig
    sliding_windows: tuple[int | None, ...]
    eos_token_ids: tuple[int, ...]
    checkpoint_dtype: str  # as config.json states it; weights on disk may still differ

    @property
    def q_size(self) -> int:
        return self.num_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        """Width of the keys (or the values) of one token in one layer."""
        return self.num_kv_heads * self.head_dim

    @property
    def num_params(self) -> int:
        """Parameters held in memory; a tied lm_head counts once."""
        qkv_size = self.q_size + 2 * self.kv_size
        per_layer = self.hidden_size * (qkv_size + self.q_size + 3 * self.intermediate_size + 2)
        per_layer += (qkv_size if self.qkv_bias else 0) + (self.hidden_size if self.o_bias else 0)
        per_layer += 2 * self.head_dim if self.qk_norm else 0
        embeddings = self.vocab_size * self.hidden_size * (1 if self.tie_word_embeddings else 2)
        return embeddings + self.num_layers * per_layer + self.hidden_size

    def kv_bytes_per_token(self, dtype: str) -> int:
        return 2 * self.num_layers * self.kv_size * DTYPE_BYTES[dtype]

    def resolve_dtype(self, setting: str) -> str:
        """`auto` is bfloat16 for a bfloat16 checkpoint and float32, which loses nothing, for any other."""
        if setting != "auto":
            return setting
        return "bfloat16" if self.checkpoint_dtype == "bfloat16" else "float32"


@dataclass(frozen=True, slots=True)
class _Family:
    """How one Hugging Face architecture sets the switches; None: `attention_bias` of the config decides."""

    qkv_bias: bool | None
    o_bias: bool | None
    qk_norm: bool
    window: Literal["never", "always", "by layer"]
    default_head_dim: int | None = None


_FAMILIES: Mapping[str, _Family] = {
    "LlamaForCausalLM": _Family(qkv_bias=None, o_bias=None, qk_norm=False, window="never"),
    "MistralForCausalLM": _Family(qkv_bias=False, o_bias=False, qk_norm=False, window="always"),
    "Qwen2ForCausalLM": _Family(qkv_bias=True, o_bias=False, qk_norm=False, window="by layer"),
    "Qwen3ForCausalLM": _Family(qkv_bias=None, o_bias=None, qk_norm=True, window="by layer", default_head_dim=128),
}


def load_model_config(model_dir: Path) -> ModelConfig:
    """Read `config.json` (and `generation_config.json` for end-of-sequence ids) of a Hugging Face directory.

    Raises ConfigError naming the file and the field for anything missing, ill-typed or not supported.
    """
    if not model_dir.is_dir():
        raise ConfigError(
            str(model_dir), "is not a directory", "give a Hugging Face model directory, a hub id, or 'demo'"
        )
    path = model_dir / "config.json"
    fields = JsonFields(str(path), read_json(path))
    family_name, family = _family_of(fields)
    _refuse_unsupported(fields)
    num_heads = fields.integer("num_attention_heads")
    num_kv_heads = fields.integer("num_key_value_heads", num_heads)
    hidden_size = fields.integer("hidden_size")
    head_dim = fields.integer("head_dim", family.default_head_dim or hidden_size // num_heads or 1)
    if num_heads % num_kv_heads:
        problem = f"{num_kv_heads} does not divide {num_heads} heads"
        raise ConfigError(f"{path}: num_key_value_heads", problem, DOWNLOAD_AGAIN)
    if head_dim % 2:
        raise ConfigError(f"{path}: head_dim", f"must be even for rotary embeddings, is {head_dim}", DOWNLOAD_AGAIN)
    num_layers = fields.integer("num_hidden_layers")
    max_position_embeddings = fields.integer("max_position_embeddings", 2048)
    attention_bias = fields.flag("attention_bias")
    return ModelConfig(
        architecture=family_name,
        vocab_size=fields.integer("vocab_size"),
        hidden_size=hidden_size,
        intermediate_size=fields.integer("intermediate_size"),
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        rms_norm_eps=fields.number("rms_norm_eps", 1e-6),
        max_position_embeddings=max_position_embeddings,
        tie_word_embeddings=fields.flag("tie_word_embeddings"),
        qkv_bias=attention_bias if family.qkv_bias is None else family.qkv_bias,
        o_bias=attention_bias if family.o_bias is None else family.o_bias,
        qk_norm=family.qk_norm,
        rope=parse_rope(fields, max_position_embeddings),
        sliding_windows=_sliding_windows(fields, family, num_layers),
        eos_token_ids=_eos_token_ids(model_dir, fields),
        checkpoint_dtype=str(fields.values.get("dtype") or fields.values.get("torch_dtype") or "float32"),
    )


def _family_of(fields: JsonFields) -> tuple[str, _Family]:
    names = fields.values.get("architectures")
    if not isinstance(names, list) or len(names) != 1:
        problem = f"must name exactly one architecture, is {names!r}"
        raise ConfigError(f"{fields.where}: architectures", problem, f"supported: {', '.join(_FAMILIES)}")
    family = _FAMILIES.get(str(names[0]))
    if family is None:
        raise ConfigError(
            f"{fields.where}: architectures", f"{names[0]} is not supported", f"supported: {', '.join(_FAMILIES)}"
        )
    return str(names[0]), family


def _refuse_unsupported(fields: JsonFields) -> None:
    for key, inert in _INERT.items():
        value = fields.values.get(key)
        if value not in inert:
            raise ConfigError(f"{fields.where}: {key}", f"{value!r} is not supported", "use a plain dense checkpoint")
    activation = fields.values.get("hidden_act", "silu")
    if activation not in ("silu", "swish"):
        raise ConfigError(f"{fields.where}: hidden_act", f"{activation!r} is not supported", "only silu is")


def _sliding_windows(fields: JsonFields, family: _Family, num_layers: int) -> tuple[int | None, ...]:
    layer_types = _layer_types(fields, num_layers)
    slides = family.window == "always" or (family.window == "by layer" and fields.flag("use_sliding_window"))
    window = None
    if slides and fields.values.get("sliding_window") is not None:
        window = fields.integer("sliding_window")
    if window is None:
        if "sliding_attention" in layer_types:
            problem = "sliding_attention needs a sliding_window in use"
            raise ConfigError(f"{fields.where}: layer_types", problem, DOWNLOAD_AGAIN)
        return (None,) * num_layers
    if family.window == "always":
        if "full_attention" in layer_types:
            problem = "this family slides in every layer, not in some"
            raise ConfigError(f"{fields.where}: layer_types", problem, DOWNLOAD_AGAIN)
        return (window,) * num_layers
    if layer_types:
        return tuple(window if name == "sliding_attention" else None for name in layer_types)
    first = fields.values.get("max_window_layers", 28)
    if not isinstance(first, int) or first < 0:
        raise ConfigError(f"{fields.where}: max_window_layers", f"must be an integer, is {first!r}", DOWNLOAD_AGAIN)
    return tuple(window if layer >= first else None for layer in range(num_layers))


def _layer_types(fields: JsonFields, num_layers: int) -> list[str]:
    """Empty where the config leaves them out."""
    value = fields.values.get("layer_types")
    if value is None:
        return []
    if not isinstance(value, list) or len(value) != num_layers:
        raise ConfigError(f"{fields.where}: layer_types", f"must list {num_layers} layer types", DOWNLOAD_AGAIN)
    for name in value:
        if name not in ("full_attention", "sliding_attention"):
            remedy = "a model of full_attention and sliding_attention layers"
            raise ConfigError(f"{fields.where}: layer_types", f"{name!r} is not supported", remedy)
    return value


def _eos_token_ids(model_dir: Path, fields: JsonFields) -> tuple[int, ...]:
    path = model_dir / "generation_config.json"
    values: Mapping[str, Any] = read_json(path) if path.exists() else {}
    where, value = str(path), values.get("eos_token_id")
    if value is None:
        where, value = fields.where, fields.values.get("eos_token_id")
    if value is None:
        return ()
    ids = value if isinstance(value, list) else [value]
    if not all(isinstance(token_id, int) and token_id >= 0 for token_id in ids):
        raise ConfigError(
            f"{where}: eos_token_id", f"must be a token id or a list of them, is {value!r}", DOWNLOAD_AGAIN
        )
    return tuple(ids)
