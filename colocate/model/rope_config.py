"""Rotary embedding as `config.json` describes it. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import log
from typing import Literal

from colocate.errors import ConfigError
from colocate.model.json_fields import JsonFields

RopeType = Literal["default", "linear", "llama3", "yarn"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeConfig:
    """Rotary embedding: the fields of `rope_parameters` that its type reads."""

    type: RopeType = "default"
    theta: float = 10000.0
    factor: float = 1.0
    original_max_position_embeddings: int = 0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    attention_factor: float = 1.0  # multiplies cos and sin


_ROPE_KEYS: Mapping[RopeType, frozenset[str]] = {
    "default": frozenset(),
    "linear": frozenset({"factor"}),
    "llama3": frozenset({"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"}),
    "yarn": frozenset(
        {
            "factor", "original_max_position_embeddings", "attention_factor", "beta_fast", "beta_slow", "mscale",
            "mscale_all_dim", "truncate",
        }
    ),
}  # fmt: skip
_ROPE_COMMON_KEYS = frozenset({"type", "rope_type", "rope_theta", "partial_rotary_factor"})

_OTHER = "serve a model whose config.json asks for none of this"


def parse_rope(fields: JsonFields, max_position_embeddings: int) -> RopeConfig:
    """Both spellings: `rope_parameters` (transformers 5) and `rope_theta` beside `rope_scaling` (before)."""
    key = "rope_parameters" if fields.values.get("rope_parameters") else "rope_scaling"
    values = fields.values.get(key) or {}
    if not isinstance(values, dict):
        raise ConfigError(f"{fields.where}: {key}", f"must be an object, is {values!r}", _OTHER)
    rope = JsonFields(f"{fields.where}: {key}", values)
    if any(isinstance(value, dict) for value in values.values()):
        raise ConfigError(rope.where, "rope parameters per layer type are not supported", _OTHER)
    rope_type = _type_of(rope)
    unknown = sorted(key for key, value in values.items() if value is not None and key not in _ROPE_COMMON_KEYS)
    unknown = [name for name in unknown if name not in _ROPE_KEYS[rope_type] and rope_type != "default"]
    if unknown:
        raise ConfigError(f"{rope.where}.{unknown[0]}", f"is not supported with rope type {rope_type!r}", _OTHER)
    if values.get("partial_rotary_factor") not in (None, 1.0):
        problem = "partial rotary embeddings are not supported"
        raise ConfigError(f"{rope.where}.partial_rotary_factor", problem, _OTHER)
    theta = rope.number("rope_theta", fields.number("rope_theta", 10000.0))
    if rope_type == "default":
        return RopeConfig(theta=theta)
    original = fields.integer("original_max_position_embeddings", max_position_embeddings)
    original = rope.integer("original_max_position_embeddings", original)
    return RopeConfig(
        type=rope_type,
        theta=theta,
        factor=rope.number("factor"),
        original_max_position_embeddings=original,
        low_freq_factor=rope.number("low_freq_factor", 1.0 if rope_type != "llama3" else None),
        high_freq_factor=rope.number("high_freq_factor", 4.0 if rope_type != "llama3" else None),
        beta_fast=rope.number("beta_fast", 32.0),
        beta_slow=rope.number("beta_slow", 1.0),
        truncate=rope.flag("truncate", True),
        attention_factor=_yarn_attention_factor(rope) if rope_type == "yarn" else 1.0,
    )


def _yarn_attention_factor(rope: JsonFields) -> float:
    """YaRN (arXiv 2309.00071) equation 22: 0.1 ln(s) + 1, or the ratio of two such terms where mscale is given."""
    if rope.values.get("attention_factor") is not None:
        return rope.number("attention_factor")
    factor = rope.number("factor")

    def scale(mscale: float) -> float:
        return 0.1 * mscale * log(factor) + 1.0 if factor > 1 else 1.0

    if rope.values.get("mscale") and rope.values.get("mscale_all_dim"):
        return scale(rope.number("mscale")) / scale(rope.number("mscale_all_dim"))
    return scale(1.0)


def _type_of(rope: JsonFields) -> RopeType:
    name = rope.values.get("rope_type") or rope.values.get("type") or "default"
    for rope_type in _ROPE_KEYS:
        if rope_type == name:
            return rope_type
    raise ConfigError(f"{rope.where}.rope_type", f"{name!r} is not supported", f"one of: {', '.join(_ROPE_KEYS)}")
