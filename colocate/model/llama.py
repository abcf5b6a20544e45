"""The decoder of the Llama family, as functions over mapped memory.

No modules and no copies of weights: `WeightView`s of the keeper's segment, a KV pool, and scratch that is reused from
layer to layer. One code path serves prefill, decode and both in one forward; only the attention call differs.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from math import prod
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import rms_norm

from colocate.model.attention.seam import Attention, DecodeRows, HybridRows, PrefillRows
from colocate.model.config import DTYPE_BYTES, ModelConfig
from colocate.model.layout import KVLayout, WeightLayout
from colocate.model.linear import Linear
from colocate.model.rope import rotate_
from colocate.model.scratch import Scratch

TORCH_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def bytes_tensor(buffer: memoryview) -> Tensor:
    """Host memory as a uint8 tensor over it, no copy. A read-only buffer stays read-only: a write would fault."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given buffer is not writable")
        return torch.frombuffer(buffer, dtype=torch.uint8)


def map_weights(layout: WeightLayout, data: Tensor) -> dict[str, Tensor]:
    """Every entry as a view of `data`, the segment's bytes (uint8, any device), which must outlive them. Never
    written. The segment may be longer than the layout."""
    return {entry.name: _view(data, entry.offset_bytes, entry.shape, entry.dtype) for entry in layout.entries}


def map_kv(layout: KVLayout, data: Tensor) -> Tensor:
    """The pool as one tensor over `data`, the segment's bytes (uint8, any device), writable and longer-lived."""
    return _view(data, 0, layout.shape, layout.dtype)


def _view(data: Tensor, offset_bytes: int, shape: tuple[int, ...], dtype: str) -> Tensor:
    part = data.narrow(0, offset_bytes, prod(shape) * DTYPE_BYTES[dtype])
    return part.view(TORCH_DTYPES[dtype]).view(shape)


@dataclass(frozen=True, slots=True)
class LayerWeights:
    input_norm: Tensor
    qkv: Tensor
    qkv_bias: Tensor | None
    qk_norm: Tensor | None  # [num_heads + num_kv_heads, head_dim]: the weight each head is scaled by
    o: Tensor
    o_bias: Tensor | None
    post_norm: Tensor
    gate_up: Tensor
    down: Tensor


@dataclass(frozen=True, slots=True)
class Packed:
    """Tokens of one forward, packed: their rotation (each [tokens, 1, head_dim]) and how they attend."""

    cos: Tensor
    sin: Tensor
    rows: PrefillRows | DecodeRows | HybridRows


class FusedLayers(Protocol):
    """Whole layers as one call, for the forwards that it takes; writes the pool exactly as the layers would."""

    def takes(self, packed: Packed, num_tokens: int) -> bool: ...

    def run(self, hidden: Tensor, start: int, stop: int, packed: Packed) -> None:
        """Layers start .. stop - 1, in place on `hidden`."""
        ...

    def takes_logits(self, num_rows: int) -> bool: ...

    def logits(self, hidden: Tensor) -> Tensor:
        """As `LlamaModel.logits`."""
        ...


class LlamaModel:
    """Arithmetic of one worker; used from one thread, under `torch.inference_mode`."""

    def __init__(
        self,
        config: ModelConfig,
        weights: dict[str, Tensor],
        attention: Attention,
        linear: Linear,
        fused: FusedLayers | None = None,
        hidden_dtype: torch.dtype | None = None,
    ) -> None:
        """`hidden_dtype` is that of the hidden states between layers; by default the weights' own."""
        self.config = config
        self._fused = fused
        self._attention = attention
        self._linear = linear
        self._embed = weights["embed"]
        self._norm = weights["norm"]
        self._lm_head = weights.get("lm_head", self._embed)
        self._layers = all_layer_weights(config, weights)
        self._scratch = Scratch(self._embed.dtype)
        self._hidden_dtype = hidden_dtype or self._embed.dtype

    def embed(self, token_ids: Tensor) -> Tensor:
        """token_ids int64 [tokens] -> hidden states [tokens, hidden_size], owned by the caller."""
        return self._embed.index_select(0, token_ids).to(self._hidden_dtype)

    def run_layers(self, hidden: Tensor, start: int, stop: int, packed: Packed) -> None:
        """Layers start .. stop - 1, in place on `hidden`; writes the KV of the packed tokens in those layers."""
        if self._fused is not None and self._fused.takes(packed, hidden.shape[0]):
            self._fused.run(hidden, start, stop, packed)
            return
        for layer in range(start, stop):
            self._attend(layer, hidden, packed)
            self._feed_forward(layer, hidden)

    def logits(self, hidden: Tensor) -> Tensor:
        """Final norm and lm_head of [rows, hidden_size]: float32 [rows, vocab_size], valid until the next call."""
        if self._fused is not None and self._fused.takes_logits(hidden.shape[0]):
            return self._fused.logits(hidden)
        x = rms_norm(hidden, (self.config.hidden_size,), self._norm, self.config.rms_norm_eps)
        out = self._scratch.take("logits", hidden.shape[0], self.config.vocab_size)
        self._linear.project(x, self._lm_head, None, out)
        return out.float()

    def _attend(self, layer: int, hidden: Tensor, packed: Packed) -> None:
        config, weights, num_tokens = self.config, self._layers[layer], hidden.shape[0]
        x = rms_norm(hidden, (config.hidden_size,), weights.input_norm, config.rms_norm_eps)
        qkv = self._scratch.take("qkv", num_tokens, config.q_size + 2 * config.kv_size)
        self._linear.project(x, weights.qkv, weights.qkv_bias, qkv)
        heads = qkv.view(num_tokens, config.num_heads + 2 * config.num_kv_heads, config.head_dim)
        qk = heads[:, : config.num_heads + config.num_kv_heads]
        if weights.qk_norm is not None:
            qk.copy_(rms_norm(qk, (config.head_dim,), None, config.rms_norm_eps).mul_(weights.qk_norm))
        rotated = self._scratch.take("rotated", num_tokens, config.q_size + config.kv_size)
        rotate_(qk, packed.cos, packed.sin, rotated.view(qk.shape))
        q = heads[:, : config.num_heads]
        kv = heads[:, config.num_heads :].view(num_tokens, 2, config.num_kv_heads, config.head_dim)
        self._attention.write(layer, kv, packed.rows.slots)
        out = self._scratch.take("attention", num_tokens, config.q_size)
        if isinstance(packed.rows, DecodeRows):
            self._attention.decode(layer, q, packed.rows, out)
        elif isinstance(packed.rows, PrefillRows):
            self._attention.prefill(layer, q, kv, packed.rows, out)
        else:
            both, first = packed.rows, len(packed.rows.prefill.slots)  # the first place of a standing row
            self._attention.prefill(layer, q[:first], kv[:first], both.prefill, out[:first])
            self._attention.decode(layer, q[first:], both.decode, out[first:])
        self._linear.add_project(hidden, out, weights.o, weights.o_bias)

    def _feed_forward(self, layer: int, hidden: Tensor) -> None:
        config, weights = self.config, self._layers[layer]
        x = rms_norm(hidden, (config.hidden_size,), weights.post_norm, config.rms_norm_eps)
        gate_up = self._scratch.take("gate_up", hidden.shape[0], 2 * config.intermediate_size)
        self._linear.project(x, weights.gate_up, None, gate_up)
        gate, up = gate_up[:, : config.intermediate_size], gate_up[:, config.intermediate_size :]
        self._linear.gate(gate, up)
        self._linear.add_project(hidden, gate, weights.down, None)


def all_layer_weights(config: ModelConfig, weights: dict[str, Tensor]) -> list[LayerWeights]:
    return [_layer_weights(config, weights, layer) for layer in range(config.num_layers)]


def _layer_weights(config: ModelConfig, weights: dict[str, Tensor], layer: int) -> LayerWeights:
    prefix = f"layers.{layer}."
    qk_norm = None
    if config.qk_norm:
        q_norm, k_norm = weights[prefix + "q_norm"], weights[prefix + "k_norm"]
        qk_norm = torch.cat((q_norm.expand(config.num_heads, -1), k_norm.expand(config.num_kv_heads, -1)))
    return LayerWeights(
        input_norm=weights[prefix + "input_norm"],
        qkv=weights[prefix + "qkv"],
        qkv_bias=weights.get(prefix + "qkv_bias"),
        qk_norm=qk_norm,
        o=weights[prefix + "o"],
        o_bias=weights.get(prefix + "o_bias"),
        post_norm=weights[prefix + "post_norm"],
        gate_up=weights[prefix + "gate_up"],
        down=weights[prefix + "down"],
    )
