"""The decoder on a GPU: one arena of activations, our kernels, cuBLAS, attention behind its seam.

Every method launches on torch's current stream and returns: no allocation, no synchronisation, nothing read on the
host, so a decode step can be captured in a CUDA graph once it has run before. `num_sms` is the size of the share in
force; 0 means "a few", on an inline lane.

The residual is carried as a pair: `hidden`, and a `delta` that the last product left behind. The next norm adds it in
passing. At the end of a slice it is added by itself, which rounds to the same bits, so a prefill forward may stop after
any layer and go on later, on another share, or not at all.

Imports triton; import this module only where a GPU (or the interpreter) is to be used.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from colocate.errors import InvariantError
from colocate.model.config import ModelConfig
from colocate.model.cuda.activations import INT32, ActivationPlan
from colocate.model.cuda.kernels.activation import gate_
from colocate.model.cuda.kernels.advance import advance
from colocate.model.cuda.kernels.norm import add_rms_norm, rms_norm
from colocate.model.cuda.kernels.rope import HeadFinisher
from colocate.model.cuda.kernels.sampling import RowSampler
from colocate.model.cuda.linear import CublasLinear
from colocate.model.cuda.rows import PrefillBatchRows
from colocate.model.cuda.state import DecodeState, SamplingTable
from colocate.model.llama import TORCH_DTYPES, all_layer_weights

_DTYPES = {**TORCH_DTYPES, INT32: torch.int32}
# Given (layer, qkv of the finished projection, where the result goes): rotate, store KV, attend.
_Attend = Callable[[int, Tensor, Tensor], None]


class ModelAttention(Protocol):
    """What the model asks of attention (`cuda/attention.py`). q [tokens, heads, head_dim], rows may lie apart; out
    [tokens, heads * head_dim]. KV of the tokens themselves is written before."""

    def prefill(self, layer: int, q: Tensor, rows: PrefillBatchRows, out: Tensor, num_sms: int) -> None: ...

    def decode(self, layer: int, q: Tensor, state: DecodeState, index: Tensor, out: Tensor, num_sms: int) -> None: ...


class CudaModel:
    """Owned by one worker and used from one thread, under `torch.inference_mode`. One forward at a time computes in
    its arena; hidden states between slices are the caller's, so forwards may take turns at slice boundaries."""

    def __init__(
        self,
        config: ModelConfig,
        weights: dict[str, Tensor],
        kv_pool: Tensor,
        attention: ModelAttention,
        *,
        max_tokens: int,
        max_rows: int,
        rotary: Tensor,
    ) -> None:
        """`weights` as `llama.map_weights` names them; `kv_pool` as `KVLayout.shape` says; `rotary` from
        `rotary_table`, as many positions as a row may have. `max_tokens` bounds the tokens of a forward, `max_rows`
        the rows of a step or of one call of `logits`."""
        self.config = config
        dtype = str(kv_pool.dtype).removeprefix("torch.")
        self._plan = ActivationPlan.of(config, dtype, max_tokens, max_rows)
        self._arena = torch.zeros(self._plan.nbytes, dtype=torch.uint8, device=kv_pool.device)
        self._buffers = {name: self._view(name) for name in self._plan.buffers}
        self._attention = attention
        self._linear = CublasLinear(kv_pool.device)
        self._embed = weights["embed"]
        self._norm = weights["norm"]
        self._lm_head = weights.get("lm_head", self._embed)
        self._layers = all_layer_weights(config, weights)
        self._qk_norms = [_qk_norm(config, weights, layer) for layer in range(config.num_layers)]
        self._heads = HeadFinisher(config.num_heads, rotary, kv_pool, config.rms_norm_eps)
        self._sampler = RowSampler(self._buffers)

    @property
    def activation_bytes(self) -> int:
        return self._plan.nbytes

    def embed(self, token_ids: Tensor, hidden_out: Tensor) -> None:
        """hidden_out [T, hidden] = embeddings of token_ids int32 [T], each below vocab_size."""
        torch.index_select(self._embed, 0, token_ids, out=hidden_out)

    def prefill_layers(self, hidden: Tensor, start: int, stop: int, rows: PrefillBatchRows, num_sms: int) -> None:
        """Layers start .. stop - 1, in place on hidden [T, hidden]; writes the KV of the rows' tokens there."""

        def attend(layer: int, qkv: Tensor, out: Tensor) -> None:
            self._attend_prefill(layer, qkv, rows, out, num_sms)

        self._slice(hidden, start, stop, attend, num_sms)

    def hybrid_layers(
        self,
        hidden: Tensor,
        start: int,
        stop: int,
        rows: PrefillBatchRows,
        state: DecodeState,
        index: Tensor,
        num_sms: int,
    ) -> None:
        """The same for a chunk and one token of each row of `index` [B] together: hidden [T + B, hidden], the chunk's
        tokens first. Attention runs as each phase's kernel."""
        first = rows.num_tokens

        def attend(layer: int, qkv: Tensor, out: Tensor) -> None:
            self._attend_prefill(layer, qkv[:first], rows, out[:first], num_sms)
            self._attend_decode(layer, qkv[first:], state, index, out[first:], num_sms)

        self._slice(hidden, start, stop, attend, num_sms)

    def logits(self, hidden_rows: Tensor, num_sms: int) -> Tensor:
        """Final norm and lm_head of [N, hidden], N at most max_rows: float32 [N, vocab], valid until the next call."""
        self._linear.use(num_sms)
        normed = self._rows("normed", hidden_rows.shape[0])
        rms_norm(hidden_rows, self._norm, self.config.rms_norm_eps, normed)
        return self._score(normed)

    def sample(
        self,
        logits: Tensor,
        table: SamplingTable,
        index: Tensor,
        drawn: Tensor,
        num_sms: int,
        state: DecodeState | None = None,
    ) -> None:
        """drawn int32 [N] = the token of each row of logits, by slot index[i] of the table (`RowSampler.sample`): -1
        where there is none, -2 for damaged logits. With `state`, rows that are not live draw -1."""
        self._sampler.sample(logits, table, index, drawn, num_sms, state)

    def decode_step(self, state: DecodeState, index: Tensor, drawn: Tensor, num_sms: int) -> None:
        """One token for each slot of `index` int32 [B]: fed, drawn into `drawn` int32 [B], and the rows moved on."""
        logits = self.decode_logits(state, index, num_sms)
        self.sample(logits, state.sampling, index, drawn, num_sms, state)
        self.advance(state, index, drawn)

    def decode_logits(self, state: DecodeState, index: Tensor, num_sms: int) -> Tensor:
        """The first part of a step: KV of the fed tokens is written, logits float32 [B, vocab], valid until the next
        call. Those of rows that are not live mean nothing."""
        self._linear.use(num_sms)
        hidden = self._rows("hidden", index.shape[0])
        token_ids = self._buffers["token_ids"][: index.shape[0]]
        torch.index_select(state.token, 0, index, out=token_ids)
        self.embed(token_ids, hidden)

        def attend(layer: int, qkv: Tensor, out: Tensor) -> None:
            self._attend_decode(layer, qkv, state, index, out, num_sms)

        delta = self._run(hidden, 0, self.config.num_layers, attend)
        normed = self._rows("normed", hidden.shape[0])
        add_rms_norm(hidden, delta, self._norm, self.config.rms_norm_eps, normed)
        return self._score(normed)

    def last_logits(self, num_rows: int) -> Tensor:
        """float32 [num_rows, vocab] of what was scored last, be it by a replayed graph; valid until the next time."""
        return self._rows("logits", num_rows)

    def advance(self, state: DecodeState, index: Tensor, drawn: Tensor) -> None:
        """The last part: drawn tokens are fed next, rows that are over become inactive."""
        advance(state, index, drawn)

    def _slice(self, hidden: Tensor, start: int, stop: int, attend: _Attend, num_sms: int) -> None:
        if start == stop or hidden.shape[0] == 0:
            return
        self._linear.use(num_sms)
        hidden.add_(self._run(hidden, start, stop, attend))

    def _run(self, hidden: Tensor, start: int, stop: int, attend: _Attend) -> Tensor:
        """Layers start .. stop - 1; returns the delta that `hidden` still lacks."""
        config, linear, num_tokens = self.config, self._linear, hidden.shape[0]
        normed, delta = self._rows("normed", num_tokens), self._rows("delta", num_tokens)
        qkv, out = self._rows("qkv", num_tokens), self._rows("attention", num_tokens)
        gate_up = self._rows("gate_up", num_tokens)
        for layer in range(start, stop):
            weights = self._layers[layer]
            if layer == start:
                rms_norm(hidden, weights.input_norm, config.rms_norm_eps, normed)
            else:
                add_rms_norm(hidden, delta, weights.input_norm, config.rms_norm_eps, normed)
            linear.project(normed, weights.qkv, qkv)
            attend(layer, qkv, out)
            linear.project(out, weights.o, delta)
            if weights.o_bias is not None:
                delta.add_(weights.o_bias)
            add_rms_norm(hidden, delta, weights.post_norm, config.rms_norm_eps, normed)
            linear.project(normed, weights.gate_up, gate_up)
            linear.project(gate_(gate_up), weights.down, delta)
        return delta

    def _attend_prefill(self, layer: int, qkv: Tensor, rows: PrefillBatchRows, out: Tensor, num_sms: int) -> None:
        self._heads.prefill(layer, qkv, self._layers[layer].qkv_bias, self._qk_norms[layer], rows)
        self._attention.prefill(layer, self._queries(qkv), rows, out, num_sms)

    def _attend_decode(
        self, layer: int, qkv: Tensor, state: DecodeState, index: Tensor, out: Tensor, num_sms: int
    ) -> None:
        self._heads.decode(layer, qkv, self._layers[layer].qkv_bias, self._qk_norms[layer], state, index)
        self._attention.decode(layer, self._queries(qkv), state, index, out, num_sms)

    def _queries(self, qkv: Tensor) -> Tensor:
        """[tokens, heads, head_dim], a view."""
        return qkv.view(qkv.shape[0], -1, self.config.head_dim)[:, : self.config.num_heads]

    def _score(self, normed: Tensor) -> Tensor:
        logits = self._rows("logits", normed.shape[0])
        self._linear.scores(normed, self._lm_head, logits)
        return logits

    def _rows(self, name: str, num_rows: int) -> Tensor:
        buffer = self._buffers[name]
        if num_rows > buffer.shape[0]:
            raise InvariantError(f"{num_rows} rows of {name} were asked for, planned were {buffer.shape[0]}")
        return buffer[:num_rows]

    def _view(self, name: str) -> Tensor:
        buffer = self._plan.buffers[name]
        return self._arena[buffer.offset_bytes :][: buffer.nbytes].view(_DTYPES[buffer.dtype]).view(buffer.shape)


def _qk_norm(config: ModelConfig, weights: dict[str, Tensor], layer: int) -> Tensor | None:
    """[2, head_dim]: q's weights, then k's. A copy of some hundred bytes."""
    if not config.qk_norm:
        return None
    return torch.stack((weights[f"layers.{layer}.q_norm"], weights[f"layers.{layer}.k_norm"]))
