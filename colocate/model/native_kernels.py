"""Typed calls into the library that `model.native` builds from `native/cpu`. No state but the library itself."""

from __future__ import annotations

import ctypes
from ctypes import POINTER, Structure, c_float, c_int64, c_void_p

import torch
from torch import Tensor

from colocate.model.native import load_kernels


class LayerPointers(Structure):
    """`LayerPointers` of native/cpu/decode.h; 0 stands for a tensor that the model does not have."""

    _fields_ = (
        ("input_norm", c_void_p),
        ("qkv", c_void_p),
        ("qkv_bias", c_void_p),
        ("qk_norm", c_void_p),
        ("o", c_void_p),
        ("o_bias", c_void_p),
        ("post_norm", c_void_p),
        ("gate_up", c_void_p),
        ("down", c_void_p),
        ("keys", c_void_p),
        ("values", c_void_p),
        ("window", c_int64),
    )


class DecoderShape(Structure):
    """`DecoderShape` of native/cpu/decode.h."""

    _fields_ = (
        ("hidden_size", c_int64),
        ("intermediate_size", c_int64),
        ("num_heads", c_int64),
        ("num_kv_heads", c_int64),
        ("head_dim", c_int64),
        ("block_size", c_int64),
        ("rms_norm_eps", c_float),
        ("scale", c_float),
    )


class DecodeBatch(Structure):
    """`DecodeBatch` of native/cpu/decode.h."""

    _fields_ = (
        ("num_rows", c_int64),
        ("num_threads", c_int64),
        ("table_stride", c_int64),
        ("hidden", c_void_p),
        ("cos", c_void_p),
        ("sin", c_void_p),
        ("slots", c_void_p),
        ("tables", c_void_p),
        ("context_lens", c_void_p),
        ("workspace", c_void_p),
        ("max_context_len", c_int64),
        ("rows_are_related", c_int64),
    )


_HEAD_VECTORS = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 16)  # the cases of attend_chunk in native/cpu/attention.h


def kernels_for(head_dim: int) -> NativeKernels | None:
    """The kernels, or None where this machine has none or their vectors do not fit heads of this size."""
    library = load_kernels()
    if library is None:
        return None
    kernels = NativeKernels(library)
    fits = head_dim % kernels.lanes == 0 and head_dim // kernels.lanes in _HEAD_VECTORS
    return kernels if fits else None


class NativeKernels:
    """Every tensor argument must be dense along its last dimension; weights and KV are float32 or bfloat16, all else
    float32. Nothing is kept after a call returns."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self.lanes: int = library.colocate_lanes()
        self._linear = library.colocate_linear
        self._linear.argtypes = [c_void_p, c_int64, c_int64, c_void_p, *[c_int64] * 2, c_void_p, *[c_int64] * 4]
        self._layers = library.colocate_decode_layers
        self._layers.argtypes = [POINTER(DecoderShape), c_void_p, c_int64, POINTER(DecodeBatch), c_int64]
        self._logits = library.colocate_logits
        self._logits.argtypes = [POINTER(DecoderShape), c_void_p, c_int64, *[c_void_p] * 2, c_int64]
        self._logits.argtypes += [*[c_void_p] * 2, *[c_int64] * 2]
        self._write_kv = library.colocate_write_kv
        self._write_kv.argtypes = [*[c_void_p] * 2, *[c_int64] * 3, c_void_p, c_int64, c_void_p, *[c_int64] * 2]
        self._attention = library.colocate_decode_attention
        self._attention.argtypes = [POINTER(DecoderShape), POINTER(LayerPointers), POINTER(DecodeBatch)]
        self._attention.argtypes += [c_void_p, c_int64, c_void_p, c_int64]
        self._prefill = library.colocate_prefill_attention
        self._prefill.argtypes = [POINTER(DecoderShape), POINTER(LayerPointers), c_void_p, c_int64, c_void_p, c_int64]
        self._prefill.argtypes += [*[c_void_p] * 2, c_int64]
        self._prefill_workspace = library.colocate_prefill_workspace_floats
        self._prefill_workspace.argtypes = [POINTER(DecoderShape)]
        self._prefill_workspace.restype = c_int64
        self._workspace = library.colocate_workspace_floats
        self._workspace.argtypes = [POINTER(DecoderShape), *[c_int64] * 3]
        self._workspace.restype = c_int64
        for call in (self._linear, self._layers, self._logits, self._write_kv, self._attention, self._prefill):
            call.restype = None

    def linear(self, x: Tensor, weight: Tensor, out: Tensor, accumulate: bool = False) -> None:
        """out [rows, N] = x [rows, K] @ weight.T, or += ; x and out float32, rows may be strided."""
        self._linear(
            x.data_ptr(), x.shape[0], x.stride(0), weight.data_ptr(), weight.shape[0], weight.shape[1],
            out.data_ptr(), out.stride(0), accumulate, torch.get_num_threads(), weight.dtype is torch.bfloat16,
        )  # fmt: skip

    def decode_layers(
        self, shape: DecoderShape, first_layer: int, num_layers: int, batch: DecodeBatch, dtype: torch.dtype
    ) -> None:
        """Layers from the array of LayerPointers at `first_layer` (an address), in place on the batch's hidden."""
        self._layers(shape, first_layer, num_layers, batch, dtype is torch.bfloat16)

    def workspace_floats(self, shape: DecoderShape, num_rows: int, num_threads: int, max_context_len: int) -> int:
        return int(self._workspace(shape, num_rows, num_threads, max_context_len))

    def logits(
        self, shape: DecoderShape, hidden: Tensor, norm: Tensor, lm_head: Tensor, normed: Tensor, out: Tensor
    ) -> None:
        """out [rows, vocab_size] = rms_norm(hidden) @ lm_head.T; `normed` is scratch of hidden's shape."""
        self._logits(
            shape, hidden.data_ptr(), hidden.shape[0], norm.data_ptr(), lm_head.data_ptr(), lm_head.shape[0],
            normed.data_ptr(), out.data_ptr(), torch.get_num_threads(), lm_head.dtype is torch.bfloat16,
        )  # fmt: skip

    def write_kv(self, layer_pool: Tensor, kv: Tensor, slots: Tensor) -> None:
        """layer_pool [2, blocks, kv_heads, block_size, head_dim]; kv [tokens, 2, kv_heads, head_dim], same dtype."""
        keys, values = layer_pool[0], layer_pool[1]
        _, num_kv_heads, block_size, head_dim = keys.shape
        self._write_kv(
            keys.data_ptr(), values.data_ptr(), num_kv_heads, block_size, head_dim, kv.data_ptr(), kv.stride(0),
            slots.data_ptr(), slots.shape[0], kv.dtype is torch.bfloat16,
        )  # fmt: skip

    def decode_attention(
        self, shape: DecoderShape, layer: LayerPointers, batch: DecodeBatch, q: Tensor, out: Tensor, dtype: torch.dtype
    ) -> None:
        """q [rows, num_heads, head_dim] float32, rows may be strided; out [rows, q_size] float32, dense."""
        self._attention(shape, layer, batch, q.data_ptr(), q.stride(0), out.data_ptr(), dtype is torch.bfloat16)

    def prefill_workspace_floats(self, shape: DecoderShape) -> int:
        """Scratch of one thread of `prefill_attention`."""
        return int(self._prefill_workspace(shape))

    def prefill_attention(
        self, shape: DecoderShape, layer: LayerPointers, spans: Tensor, q: Tensor, out: Tensor, workspace: int
    ) -> None:
        """Causal attention over a float32 pool. spans int64 [spans, 4]: first, num_tokens, start and the address of the
        block table; q [tokens, num_heads, head_dim], rows may be strided; out [tokens, q_size], dense; workspace: the
        address, a multiple of 64, of `prefill_workspace_floats` for each thread."""
        self._prefill(
            shape, layer, spans.data_ptr(), len(spans), q.data_ptr(), q.stride(0), out.data_ptr(), workspace,
            torch.get_num_threads(),
        )  # fmt: skip
