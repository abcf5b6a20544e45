# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
"""What lies between the fused qkv projection and attention, in one pass over its output.

Bias (Qwen2), RMSNorm per head (Qwen3), rotation (arXiv 2104.09864, halves convention), and the write of keys and values
into the paged pool. The bias is added here and not by the product: `addmm` with a bias takes cublasLt, which does not
know how many SMs the share has.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from colocate.model.cuda.rows import PrefillBatchRows
from colocate.model.cuda.state import DecodeState

_HEADS_PER_PROGRAM = 8


@triton.jit
def _finish_heads(
    qkv, bias, qk_norm, rotary, pool, token, position, slot, kv_stride, eps,
    NUM_HEADS: tl.constexpr, NUM_KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_SIZE: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_NORM: tl.constexpr, HEADS: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    """HEADS heads of one token: q in place, k and v to the pool (nowhere with a negative slot: warm-up and padding).
    `token`, `position` and `slot` are int64."""
    ALL_HEADS: tl.constexpr = NUM_HEADS + 2 * NUM_KV_HEADS
    heads = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    columns = tl.arange(0, HALF)[None, :]
    mask = (heads < ALL_HEADS)[:, None] & (columns < HEAD_DIM // 2)
    within = heads[:, None] * HEAD_DIM + columns
    place = qkv + token * (ALL_HEADS * HEAD_DIM) + within
    x1 = tl.load(place, mask=mask, other=0.0).to(tl.float32)
    x2 = tl.load(place + HEAD_DIM // 2, mask=mask, other=0.0).to(tl.float32)
    if HAS_BIAS:
        x1 += tl.load(bias + within, mask=mask, other=0.0).to(tl.float32)
        x2 += tl.load(bias + within + HEAD_DIM // 2, mask=mask, other=0.0).to(tl.float32)
    rotates = (heads < NUM_HEADS + NUM_KV_HEADS)[:, None]
    if HAS_NORM:
        scale = tl.rsqrt((tl.sum(x1 * x1, axis=1) + tl.sum(x2 * x2, axis=1)) / HEAD_DIM + eps)[:, None]
        weight = qk_norm + (heads >= NUM_HEADS).to(tl.int32)[:, None] * HEAD_DIM + columns
        w1 = tl.load(weight, mask=mask & rotates, other=0.0).to(tl.float32)
        w2 = tl.load(weight + HEAD_DIM // 2, mask=mask & rotates, other=0.0).to(tl.float32)
        x1 = tl.where(rotates, x1 * scale * w1, x1)
        x2 = tl.where(rotates, x2 * scale * w2, x2)
    angles = rotary + position * HEAD_DIM + columns
    cos = tl.load(angles, mask=columns < HEAD_DIM // 2, other=0.0)
    sin = tl.load(angles + HEAD_DIM // 2, mask=columns < HEAD_DIM // 2, other=0.0)
    y1 = tl.where(rotates, x1 * cos - x2 * sin, x1).to(qkv.dtype.element_ty)
    y2 = tl.where(rotates, x2 * cos + x1 * sin, x2).to(qkv.dtype.element_ty)
    is_query = mask & (heads < NUM_HEADS)[:, None]
    tl.store(place, y1, mask=is_query)
    tl.store(place + HEAD_DIM // 2, y2, mask=is_query)
    is_value = (heads >= NUM_HEADS + NUM_KV_HEADS).to(tl.int64)
    kv_head = heads - NUM_HEADS - is_value * NUM_KV_HEADS
    line = ((slot // BLOCK_SIZE) * NUM_KV_HEADS + kv_head) * BLOCK_SIZE + slot % BLOCK_SIZE
    stored = pool + (is_value * kv_stride + line * HEAD_DIM)[:, None] + columns
    is_stored = mask & (heads >= NUM_HEADS)[:, None] & (slot >= 0)
    tl.store(stored, y1.to(pool.dtype.element_ty), mask=is_stored)
    tl.store(stored + HEAD_DIM // 2, y2.to(pool.dtype.element_ty), mask=is_stored)


@triton.jit
def prefill_rope_kernel(
    qkv, bias, qk_norm, rotary, pool, positions, slots, kv_stride, eps,
    NUM_HEADS: tl.constexpr, NUM_KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_SIZE: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_NORM: tl.constexpr, HEADS: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    position = tl.load(positions + token).to(tl.int64)
    slot = tl.load(slots + token)
    _finish_heads(
        qkv, bias, qk_norm, rotary, pool, token, position, slot, kv_stride, eps,
        NUM_HEADS, NUM_KV_HEADS, HEAD_DIM, BLOCK_SIZE, HAS_BIAS, HAS_NORM, HEADS, HALF,
    )  # fmt: skip


@triton.jit
def decode_rope_kernel(
    qkv, bias, qk_norm, rotary, pool, index, active, context_len, granted_len, block_table, table_width, kv_stride, eps,
    NUM_HEADS: tl.constexpr, NUM_KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_SIZE: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_NORM: tl.constexpr, HEADS: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    row = tl.load(index + token).to(tl.int64)
    position = tl.load(context_len + row).to(tl.int64)
    live = (tl.load(active + row) != 0) & (position < tl.load(granted_len + row))
    if live:
        block = tl.load(block_table + row * table_width + position // BLOCK_SIZE).to(tl.int64)
        _finish_heads(
            qkv, bias, qk_norm, rotary, pool, token, position, block * BLOCK_SIZE + position % BLOCK_SIZE, kv_stride,
            eps, NUM_HEADS, NUM_KV_HEADS, HEAD_DIM, BLOCK_SIZE, HAS_BIAS, HAS_NORM, HEADS, HALF,
        )  # fmt: skip


class HeadFinisher:
    """Launches the kernels above for one model.

    `rotary` float32 [positions, head_dim]: cos in the first half of a row, sin in the second. `pool` is the whole KV
    pool as `KVLayout.shape` says. `bias` [(H + 2 Hkv) * D] or None; `qk_norm` [2, D], q's weights first, or None.
    """

    def __init__(self, num_heads: int, rotary: Tensor, pool: Tensor, eps: float) -> None:
        self._rotary, self._pool, self._eps = rotary, pool, eps
        num_kv_heads, self._block_size, head_dim = pool.shape[3:]
        self._grid_heads = triton.cdiv(num_heads + 2 * num_kv_heads, _HEADS_PER_PROGRAM)
        self._shape = {
            "NUM_HEADS": num_heads, "NUM_KV_HEADS": num_kv_heads, "HEAD_DIM": head_dim, "BLOCK_SIZE": self._block_size,
            "HEADS": _HEADS_PER_PROGRAM, "HALF": triton.next_power_of_2(head_dim // 2), "num_warps": 4,
        }  # fmt: skip

    def prefill(
        self, layer: int, qkv: Tensor, bias: Tensor | None, qk_norm: Tensor | None, rows: PrefillBatchRows
    ) -> None:
        """qkv [T, (H + 2 Hkv) * D], contiguous: q rotated in place, k and v of tokens with a slot to the pool."""
        if qkv.shape[0] == 0:
            return
        pool = self._pool[layer]
        prefill_rope_kernel[(qkv.shape[0], self._grid_heads)](
            qkv, qkv if bias is None else bias, qkv if qk_norm is None else qk_norm, self._rotary, pool,
            rows.positions, rows.slots, pool.stride(0), self._eps,
            HAS_BIAS=bias is not None, HAS_NORM=qk_norm is not None, **self._shape,
        )  # fmt: skip

    def decode(
        self,
        layer: int,
        qkv: Tensor,
        bias: Tensor | None,
        qk_norm: Tensor | None,
        state: DecodeState,
        index: Tensor,
    ) -> None:
        """The same for one token of each row of `index` [B]; nothing at all happens to rows that are not live."""
        if qkv.shape[0] == 0:
            return
        pool = self._pool[layer]
        decode_rope_kernel[(qkv.shape[0], self._grid_heads)](
            qkv, qkv if bias is None else bias, qkv if qk_norm is None else qk_norm, self._rotary, pool,
            index, state.active, state.context_len, state.granted_len, state.block_table, state.block_table.shape[1],
            pool.stride(0), self._eps,
            HAS_BIAS=bias is not None, HAS_NORM=qk_norm is not None, **self._shape,
        )  # fmt: skip
