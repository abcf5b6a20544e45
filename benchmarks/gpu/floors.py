"""The least time that a piece of work can take on a device: bytes over bandwidth, or FLOPs over the matrix rate.

Sizes come from the model's shape alone. Activations are left out: at these shapes they are under 1% of the bytes. The
ceilings are measured on the device in the same run (`ceilings.py`); the datasheet's figures stand beside them.
Formulas: bytes and FLOPs of a dense decoder as counted by its matrix shapes (Kaplan et al. 2020, table 1, with
grouped-query attention); the roofline is Williams et al. 2009.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from colocate.model.config import DTYPE_BYTES, ModelConfig

# NVIDIA H200 SXM datasheet: HBM3e bytes per second, dense bf16 FLOPs per second.
H200_BYTES_PER_S = 4.8e12
H200_FLOPS_PER_S = 989e12


@dataclass(frozen=True, slots=True)
class Ceilings:
    """Measured on this device: `bytes_per_s` of a large copy (reads and writes counted), `flops_per_s` of a large bf16
    matrix product."""

    bytes_per_s: float
    flops_per_s: float


@dataclass(frozen=True, slots=True)
class Chunk:
    """New tokens of one row and the tokens before them whose KV exists."""

    num_new: int
    num_cached: int = 0

    @property
    def num_pairs(self) -> int:
        """Queries times the keys that each one sees (causal, itself included)."""
        return self.num_new * self.num_cached + self.num_new * (self.num_new + 1) // 2


def matrix_params(config: ModelConfig) -> int:
    """Parameters that every token is multiplied with in the layers; without embedding, norms, biases and lm_head."""
    qkv = config.hidden_size * (config.q_size + 2 * config.kv_size)
    out = config.q_size * config.hidden_size
    return config.num_layers * (qkv + out + 3 * config.hidden_size * config.intermediate_size)


def decode_weight_bytes(config: ModelConfig, dtype: str) -> int:
    """Weights that one decode step reads whatever its batch: all matrices of the layers and lm_head, once."""
    return (matrix_params(config) + config.hidden_size * config.vocab_size) * DTYPE_BYTES[dtype]


def decode_kv_bytes(config: ModelConfig, dtype: str, batch: int, context: int) -> int:
    """KV that one step touches: `context` tokens read per row, one written. Full attention in every layer."""
    return batch * (context + 1) * config.kv_bytes_per_token(dtype)


def decode_bytes(config: ModelConfig, dtype: str, batch: int, context: int) -> int:
    return decode_weight_bytes(config, dtype) + decode_kv_bytes(config, dtype, batch, context)


def decode_flops(config: ModelConfig, batch: int, context: int) -> int:
    """2 per parameter and row, and 4 per query element and key (scores and values)."""
    dense = 2 * batch * (matrix_params(config) + config.hidden_size * config.vocab_size)
    return dense + 4 * config.num_layers * config.q_size * batch * (context + 1)


def prefill_flops(config: ModelConfig, chunks: Sequence[Chunk]) -> int:
    """One forward. Causal attention counts the pairs that are looked at; lm_head runs for one token per row."""
    num_new = sum(chunk.num_new for chunk in chunks)
    dense = 2 * num_new * matrix_params(config) + 2 * len(chunks) * config.hidden_size * config.vocab_size
    return dense + 4 * config.num_layers * config.q_size * sum(chunk.num_pairs for chunk in chunks)


def prefill_bytes(config: ModelConfig, dtype: str, chunks: Sequence[Chunk]) -> int:
    """Weights once, KV of the cached tokens read, of the new ones written."""
    num_tokens = sum(chunk.num_new + chunk.num_cached for chunk in chunks)
    return decode_weight_bytes(config, dtype) + num_tokens * config.kv_bytes_per_token(dtype)


def attention_flops(num_heads: int, head_dim: int, chunks: Sequence[Chunk]) -> int:
    """Scores and values of one layer: 4 per pair, head and element."""
    return 4 * num_heads * head_dim * sum(chunk.num_pairs for chunk in chunks)


def gemm_flops(m: int, n: int, k: int) -> int:
    return 2 * m * n * k


def gemm_bytes(m: int, n: int, k: int, element_bytes: int = 2) -> int:
    """Each matrix once."""
    return (m * k + k * n + m * n) * element_bytes


def floor_s(num_bytes: float, num_flops: float, ceilings: Ceilings) -> float:
    """The larger of the two times: neither memory nor matrix units can do better."""
    return max(num_bytes / ceilings.bytes_per_s, num_flops / ceilings.flops_per_s)


def decode_floor_s(config: ModelConfig, dtype: str, batch: int, context: int, ceilings: Ceilings) -> float:
    num_bytes = decode_bytes(config, dtype, batch, context)
    return floor_s(num_bytes, decode_flops(config, batch, context), ceilings)


def prefill_floor_s(config: ModelConfig, dtype: str, chunks: Sequence[Chunk], ceilings: Ceilings) -> float:
    return floor_s(prefill_bytes(config, dtype, chunks), prefill_flops(config, chunks), ceilings)
