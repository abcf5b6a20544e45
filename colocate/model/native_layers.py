"""A decoder's layers as one native call: the decode step where a compiler is present, and the deterministic forward.

Every sum of these kernels is taken in an order of its own (see native/cpu/simd.h), so a token's hidden state has the
same bits whatever else is in the batch, however the prompt was cut, and however many threads ran: prefill and decode by
this path are one arithmetic.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from colocate.model.attention.seam import DecodeRows, HybridRows, PrefillRows
from colocate.model.config import ModelConfig
from colocate.model.kv import KVPool
from colocate.model.llama import LayerWeights, Packed, all_layer_weights
from colocate.model.native_kernels import DecodeBatch, DecoderShape, LayerPointers, NativeKernels, kernels_for

# Where torch's matrix product catches up. Measured on one Zen 4 core with 125M fp32 parameters, milliseconds of torch
# and native: 8 tokens 56 and 33, 16: 72 and 51, 32: 107 and 94, 48: 138 and 133, 64: 176 and 178, 96: 238 and 264. A
# decode step has more to gain: torch's attention copies the KV of every row.
_MAX_DECODE_ROWS = 64
_MAX_PREFILL_TOKENS = 48


def native_layers_for(
    config: ModelConfig, weights: dict[str, Tensor], pool: KVPool, deterministic: bool
) -> NativeLayers | None:
    """The native path of this model, or None where the machine or the model's shape has none."""
    kernels = kernels_for(config.head_dim)
    if kernels is None:
        return None
    lm_head = weights.get("lm_head", weights["embed"])
    layers = all_layer_weights(config, weights)
    return NativeLayers(kernels, config, layers, weights["norm"], lm_head, pool, takes_everything=deterministic)


def decoder_shape(config: ModelConfig, block_size: int) -> DecoderShape:
    return DecoderShape(
        config.hidden_size, config.intermediate_size, config.num_heads, config.num_kv_heads, config.head_dim,
        block_size, config.rms_norm_eps, config.head_dim**-0.5,
    )  # fmt: skip


class NativeLayers:
    """Implements `llama.FusedLayers`. Holds addresses of weights and pool, which must outlive it unmoved."""

    def __init__(
        self,
        kernels: NativeKernels,
        config: ModelConfig,
        layers: Sequence[LayerWeights],
        norm: Tensor,
        lm_head: Tensor,
        pool: KVPool,
        takes_everything: bool,
    ) -> None:
        self._kernels = kernels
        self._shape = decoder_shape(config, pool.block_size)
        self._keep_alive = (list(layers), pool, norm, lm_head)
        self._norm, self._lm_head = norm, lm_head
        self._dtype = lm_head.dtype
        self._layers = (LayerPointers * len(layers))(
            *(
                layer_pointers(weights, pool.pool[index], config.sliding_windows[index])
                for index, weights in enumerate(layers)
            )
        )
        self._takes_everything = takes_everything
        self._workspace = torch.empty(0)

    def takes(self, packed: Packed, num_tokens: int) -> bool:
        """Whether this forward is for these kernels: small ones, or all of them when deterministic."""
        limit = _MAX_DECODE_ROWS if isinstance(packed.rows, DecodeRows) else _MAX_PREFILL_TOKENS
        return self._takes_everything or num_tokens <= limit

    def takes_logits(self, num_rows: int) -> bool:
        return self._takes_everything or num_rows <= _MAX_PREFILL_TOKENS

    def run(self, hidden: Tensor, start: int, stop: int, packed: Packed) -> None:
        """Layers start .. stop - 1, in place on `hidden` [tokens, hidden_size]; writes the tokens' KV."""
        rows = packed.rows
        tables, context_lens, longest = _as_single_rows(rows)
        state = hidden if hidden.dtype is torch.float32 else hidden.float()
        cos, sin = packed.cos.float(), packed.sin.float()
        num_threads = torch.get_num_threads()
        needed = self._kernels.workspace_floats(self._shape, len(state), num_threads, longest) + 16
        if self._workspace.numel() < needed:
            self._workspace = torch.empty(needed)
        base = self._workspace.data_ptr()
        batch = DecodeBatch(
            len(state), num_threads, tables.stride(0), state.data_ptr(), cos.data_ptr(), sin.data_ptr(),
            rows.slots.data_ptr(), tables.data_ptr(), context_lens.data_ptr(), base + -base % 64, longest,
            not isinstance(rows, DecodeRows),
        )  # fmt: skip
        address = ctypes.addressof(self._layers) + start * ctypes.sizeof(LayerPointers)
        self._kernels.decode_layers(self._shape, address, stop - start, batch, self._dtype)
        if state is not hidden:
            hidden.copy_(state)

    def logits(self, hidden: Tensor) -> Tensor:
        """Final norm and lm_head: float32 [rows, vocab_size], owned by the caller."""
        state = hidden.float().contiguous()
        out = torch.empty(len(state), len(self._lm_head))
        self._kernels.logits(self._shape, state, self._norm, self._lm_head, torch.empty_like(state), out)
        return out


def layer_pointers(weights: LayerWeights, layer_pool: Tensor, window: int | None) -> LayerPointers:
    def address(tensor: Tensor | None) -> int | None:
        if tensor is None:
            return None
        assert tensor.is_contiguous()
        return tensor.data_ptr()

    return LayerPointers(
        address(weights.input_norm), address(weights.qkv), address(weights.qkv_bias), address(weights.qk_norm),
        address(weights.o), address(weights.o_bias), address(weights.post_norm), address(weights.gate_up),
        address(weights.down), layer_pool[0].data_ptr(), layer_pool[1].data_ptr(), window or 0,
    )  # fmt: skip


def _as_single_rows(rows: PrefillRows | DecodeRows | HybridRows) -> tuple[Tensor, Tensor, int]:
    """Every token as a row of its own: block tables [tokens, most blocks], context lengths [tokens], the longest."""
    if isinstance(rows, DecodeRows):
        return rows.tables.block_tables, rows.context_lens, rows.max_context_len
    if isinstance(rows, HybridRows):
        chunk_tables, chunk_lens, chunk_longest = _as_single_rows(rows.prefill)
        own = rows.decode
        num_tokens, width = chunk_tables.shape
        both = torch.zeros(num_tokens + len(own.slots), max(width, own.tables.block_tables.shape[1]), dtype=torch.int64)
        both[:num_tokens, :width] = chunk_tables
        both[num_tokens:, : own.tables.block_tables.shape[1]] = own.tables.block_tables
        return both, torch.cat((chunk_lens, own.context_lens)), max(chunk_longest, own.max_context_len)
    width = max(len(span.block_table) for span in rows.spans)
    num_tokens = sum(span.num_tokens for span in rows.spans)
    tables = torch.zeros(num_tokens, width, dtype=torch.int64)
    context_lens = torch.empty(num_tokens, dtype=torch.int64)
    for span in rows.spans:
        places = slice(span.first, span.first + span.num_tokens)
        tables[places, : len(span.block_table)] = span.block_table
        context_lens[places] = torch.arange(span.start + 1, span.context_len + 1)
    return tables, context_lens, max(span.context_len for span in rows.spans)
