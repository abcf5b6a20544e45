"""Where every tensor lies in the two shared segments. Computed alike by the keeper, which fills them, and the workers.

Weights: q, k and v are one matrix, gate and up are one, a tied lm_head is the embedding. All matrices keep the
checkpoint's [out, in] order.

KV pool: `[layer, key or value, block, kv_head, slot, head_dim]`. The keys of one head in one block are one contiguous
run of block_size * head_dim elements, so a decode kernel streams them, and gathering whole blocks moves long runs.

Imports no torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

from colocate.errors import ConfigError
from colocate.model.config import DTYPE_BYTES, ModelConfig

ALIGNMENT_BYTES = 64  # a cache line, and the widest vector


@dataclass(frozen=True, slots=True)
class Part:
    """One checkpoint tensor and the rows of the entry it fills."""

    checkpoint_name: str
    first_row: int
    num_rows: int


@dataclass(frozen=True, slots=True)
class WeightEntry:
    """One tensor of the weights segment. `parts` are stacked along dimension 0."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    offset_bytes: int
    parts: tuple[Part, ...]

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * DTYPE_BYTES[self.dtype]


@dataclass(frozen=True, slots=True)
class WeightLayout:
    """All entries in ascending offset. Layer tensors are named `layers.N.qkv` and so on."""

    entries: tuple[WeightEntry, ...]
    nbytes: int

    @staticmethod
    def of(config: ModelConfig, dtype: str) -> WeightLayout:
        entries: list[WeightEntry] = []
        offset_bytes = 0
        for name, row_shape, sources in _tensors(config):
            parts: list[Part] = []
            num_rows = 0
            for checkpoint_name, rows in sources:
                parts.append(Part(checkpoint_name, num_rows, rows))
                num_rows += rows
            entry = WeightEntry(name, (num_rows, *row_shape), dtype, offset_bytes, tuple(parts))
            entries.append(entry)
            offset_bytes += -(-entry.nbytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
        return WeightLayout(tuple(entries), offset_bytes)


_Source = tuple[str, int]


def _tensors(config: ModelConfig) -> Iterator[tuple[str, tuple[int, ...], tuple[_Source, ...]]]:
    """(name, shape of one row, checkpoint tensors stacked along the rows), in the order a forward reads them."""
    hidden = (config.hidden_size,)
    yield "embed", hidden, (("model.embed_tokens.weight", config.vocab_size),)
    for layer in range(config.num_layers):
        prefix = f"model.layers.{layer}"
        qkv = (("q", config.q_size), ("k", config.kv_size), ("v", config.kv_size))
        yield f"layers.{layer}.input_norm", (), ((f"{prefix}.input_layernorm.weight", config.hidden_size),)
        yield f"layers.{layer}.qkv", hidden, tuple((f"{prefix}.self_attn.{n}_proj.weight", size) for n, size in qkv)
        if config.qkv_bias:
            yield f"layers.{layer}.qkv_bias", (), tuple((f"{prefix}.self_attn.{n}_proj.bias", s) for n, s in qkv)
        if config.qk_norm:
            yield f"layers.{layer}.q_norm", (), ((f"{prefix}.self_attn.q_norm.weight", config.head_dim),)
            yield f"layers.{layer}.k_norm", (), ((f"{prefix}.self_attn.k_norm.weight", config.head_dim),)
        yield f"layers.{layer}.o", (config.q_size,), ((f"{prefix}.self_attn.o_proj.weight", config.hidden_size),)
        if config.o_bias:
            yield f"layers.{layer}.o_bias", (), ((f"{prefix}.self_attn.o_proj.bias", config.hidden_size),)
        yield f"layers.{layer}.post_norm", (), ((f"{prefix}.post_attention_layernorm.weight", config.hidden_size),)
        gate_up = tuple((f"{prefix}.mlp.{n}_proj.weight", config.intermediate_size) for n in ("gate", "up"))
        yield f"layers.{layer}.gate_up", hidden, gate_up
        yield (
            f"layers.{layer}.down",
            (config.intermediate_size,),
            ((f"{prefix}.mlp.down_proj.weight", config.hidden_size),),
        )
    yield "norm", (), (("model.norm.weight", config.hidden_size),)
    if not config.tie_word_embeddings:
        yield "lm_head", hidden, (("lm_head.weight", config.vocab_size),)


@dataclass(frozen=True, slots=True)
class KVLayout:
    """The KV pool: `shape` is [layer, 2, block, kv_head, slot, head_dim], keys at index 0 of dimension 1."""

    config: ModelConfig
    dtype: str
    num_blocks: int
    block_size: int

    @property
    def shape(self) -> tuple[int, int, int, int, int, int]:
        config = self.config
        return (config.num_layers, 2, self.num_blocks, config.num_kv_heads, self.block_size, config.head_dim)

    @property
    def nbytes(self) -> int:
        return self.num_blocks * self.bytes_per_block

    @property
    def bytes_per_block(self) -> int:
        """Of one block over all layers."""
        return self.config.kv_bytes_per_token(self.dtype) * self.block_size

    @staticmethod
    def num_blocks_for(nbytes: int, config: ModelConfig, dtype: str, block_size: int) -> int:
        """How many blocks fit into `nbytes`. Raises ConfigError where not even one does."""
        num_blocks = nbytes // (config.kv_bytes_per_token(dtype) * block_size)
        if num_blocks < 1:
            need = config.kv_bytes_per_token(dtype) * block_size
            raise ConfigError("memory.kv_memory", f"{nbytes} bytes do not hold one KV block", f"give at least {need}")
        return num_blocks
