# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
"""Attention of one new token per row over a paged KV cache, split over keys (Triton).

A decode step reads every visible key and value once and does almost nothing with them, so what counts is that all SMs
of the share read, all the time, whatever the contexts are. Three kernels, none of which needs the host to know a
context length, so that a CUDA graph that advances rows on the device can hold them:

* `attention_plan_kernel`, once per step: cuts the rows into ITEMS, runs of whole key tiles of about equal length. The
  grid is fixed by (rows, SMs): `slots` equal parts are aimed at, each row's last part may be short, so there are never
  more than slots + rows items; what is not needed is marked empty. Splitting each row into a fixed number of parts
  would be simpler, but one context of 32k among short ones would then keep a few SMs busy long after the others.
* `attention_decode_kernel`, grid (items, kv_heads): one item for one KV head. The query heads of the group are padded
  to 16 rows and multiplied on the tensor cores. That wastes flops nobody needs: the sums without tensor cores cost
  about (group + 1) instructions per element read, at a group of 4 a third of an SM's rate, for nothing.
  A row of a single item is finished here.
* `attention_merge_kernel`, grid (rows, heads): joins the parts of rows that were split (Flash-Decoding).

Floor: visible keys * num_kv_heads * head_dim * 2 * bytes of an element per layer at the copy bandwidth: batch 64 at
context 2k of Llama-3.1-8B reads 537 MB per layer, 0.13 ms at 4.1 TB/s. In flight per SM must be bandwidth * latency,
about 35 GB/s * 1 us = 35 KB on a whole device and twice that on a share that is to saturate memory: two programs with
two tiles of 64 keys and values of 128 (32 KB each) ahead have that. On an H200 look first at achieved bandwidth of the
decode kernel alone for that shape, then at batch 1 with 32k, then at the time of plan and merge. Unproven without a
GPU: every speed.
"""

from __future__ import annotations

import triton
import triton.language as tl

from colocate.model.cuda.kernels.attention_tile import UNSEEN, fold_tile, tile_scores


# What changes from step to step must not make another variant of a kernel: that would be compiled while serving.
@triton.jit(
    do_not_specialize=["num_rows", "slots", "num_items"],
    do_not_specialize_on_alignment=["index_ptr"],
)
def attention_plan_kernel(
    index_ptr,
    active_ptr,
    context_len_ptr,
    granted_len_ptr,
    num_rows,
    slots,
    num_items,
    items_ptr,
    parts_ptr,
    WINDOW: tl.constexpr,
    BLOCK_N: tl.constexpr,
    MIN_TILES: tl.constexpr,
    ROWS: tl.constexpr,
    ITEMS: tl.constexpr,
):
    """Grid (cdiv(num_items, ITEMS)): each program sums over all rows and writes ITEMS items.

    items int32 [num_items, 8]: row (-1: empty), slot, first key, end key, parts of its row. parts int32 [rows, 2]: the
    row's first item and how many. A row that is skipped has one item without keys. ROWS: a power of two >= num_rows.
    """
    rows = tl.arange(0, ROWS)
    real = rows < num_rows
    state_slots = tl.load(index_ptr + rows, mask=real, other=0)
    context, low_tile, num_tiles = _tiles_of(
        state_slots, real, active_ptr, context_len_ptr, granted_len_ptr, WINDOW, BLOCK_N
    )
    per_part = tl.maximum(tl.cdiv(tl.sum(num_tiles), slots), MIN_TILES)
    parts = tl.where(real, tl.maximum(tl.cdiv(num_tiles, per_part), 1), 0)
    ends = tl.cumsum(parts)
    if tl.program_id(0) == 0:
        tl.store(parts_ptr + rows * 2, ends - parts, mask=real)
        tl.store(parts_ptr + rows * 2 + 1, parts, mask=real)

    # Item i belongs to the first row whose parts end behind i.
    items = tl.program_id(0) * ITEMS + tl.arange(0, ITEMS)
    before = (ends[None, :] <= items[:, None]) & real[None, :]
    row = tl.sum(before.to(tl.int32), axis=1)
    part = items - tl.sum(tl.where(before, parts[None, :], 0), axis=1)
    used = row < num_rows
    slot = tl.load(index_ptr + row, mask=used, other=0)
    context, low_tile, num_tiles = _tiles_of(slot, used, active_ptr, context_len_ptr, granted_len_ptr, WINDOW, BLOCK_N)
    count = tl.maximum(tl.cdiv(num_tiles, per_part), 1)
    first = (low_tile + part * num_tiles // count) * BLOCK_N
    end = tl.minimum((low_tile + (part + 1) * num_tiles // count) * BLOCK_N, context)
    if WINDOW > 0:
        first = tl.maximum(first, context - WINDOW)
    place = items_ptr + items * 8
    written = items < num_items
    tl.store(place, tl.where(used, row, -1), mask=written)
    tl.store(place + 1, slot, mask=written)
    tl.store(place + 2, first, mask=written)
    tl.store(place + 3, end, mask=written)
    tl.store(place + 4, count, mask=written)


@triton.jit
def _tiles_of(slots, real, active_ptr, context_len_ptr, granted_len_ptr, WINDOW: tl.constexpr, BLOCK_N: tl.constexpr):
    """(keys, first visible tile, visible tiles) of state slots; all 0 where the step skips the row."""
    written = tl.load(context_len_ptr + slots, mask=real, other=0)
    active = tl.load(active_ptr + slots, mask=real, other=0)
    granted = tl.load(granted_len_ptr + slots, mask=real, other=0)
    context = tl.where(real & (active != 0) & (written < granted), written + 1, 0)
    low_tile = context * 0
    if WINDOW > 0:
        low_tile = tl.maximum(context - WINDOW, 0) // BLOCK_N
    return context, low_tile, tl.cdiv(context, BLOCK_N) - low_tile


@triton.jit(do_not_specialize=["table_stride"])
def attention_decode_kernel(
    q_ptr,
    q_stride,
    k_ptr,
    v_ptr,
    block_stride,
    head_stride,
    tables_ptr,
    table_stride,
    items_ptr,
    out_ptr,
    out_stride,
    part_out_ptr,
    part_lse_ptr,
    scale_log2,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """Grid (items, KV_HEADS). Strides in elements. BLOCK_M: a power of two, at least GROUP and 16.

    A row of one item goes to out; else part_out float32 [items, heads, HEAD_DIM] gets the normalised part and part_lse
    [items, heads] the binary logarithm of its weight. A row without keys gets zeros.
    """
    item = tl.program_id(0).to(tl.int64)
    kv_head = tl.program_id(1)
    item_ptr = items_ptr + item * 8
    row = tl.load(item_ptr).to(tl.int64)
    slot = tl.load(item_ptr + 1).to(tl.int64)
    first = tl.load(item_ptr + 2)
    end = tl.load(item_ptr + 3)
    parts = tl.load(item_ptr + 4)
    if row < 0:
        return
    rows_m = tl.arange(0, BLOCK_M)
    offsets_d = tl.arange(0, BLOCK_D)
    real_d = offsets_d < HEAD_DIM
    heads = kv_head * GROUP + rows_m
    mask_q = (rows_m < GROUP)[:, None] & real_d[None, :]
    place_q = (heads * HEAD_DIM)[:, None] + offsets_d[None, :]
    q = tl.load(q_ptr + row * q_stride + place_q, mask=mask_q, other=0.0)
    table_ptr = tables_ptr + slot * table_stride
    k_ptr += kv_head * head_stride
    v_ptr += kv_head * head_stride

    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    peak = tl.full([BLOCK_M], UNSEEN, tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    for key in tl.range(first // BLOCK_N * BLOCK_N, end, BLOCK_N):
        keys = key + tl.arange(0, BLOCK_N)
        real_n = (keys >= first) & (keys < end)
        blocks = tl.load(table_ptr + keys // BLOCK_SIZE, mask=real_n, other=0)
        place = (blocks.to(tl.int64) * block_stride + (keys % BLOCK_SIZE) * HEAD_DIM)[:, None] + offsets_d[None, :]
        mask = real_n[:, None] & real_d[None, :]
        k = tl.load(k_ptr + place, mask=mask, other=0.0)
        v = tl.load(v_ptr + place, mask=mask, other=0.0)
        scores = tl.where(real_n[None, :], tile_scores(q, k, scale_log2, UPCAST), UNSEEN)
        acc, peak, total = fold_tile(acc, peak, total, scores, v, UPCAST)

    total = tl.where(total > 0.0, total, 1.0)
    result = acc / total[:, None]
    if parts == 1:
        tl.store(out_ptr + row * out_stride + place_q, result.to(out_ptr.dtype.element_ty), mask=mask_q)
    else:
        tl.store(part_out_ptr + item * (KV_HEADS * GROUP * HEAD_DIM) + place_q, result, mask=mask_q)
        lse = peak + tl.log2(total)
        tl.store(part_lse_ptr + item * (KV_HEADS * GROUP) + heads, lse, mask=rows_m < GROUP)


@triton.jit
def attention_merge_kernel(
    parts_ptr,
    part_out_ptr,
    part_lse_ptr,
    out_ptr,
    out_stride,
    HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """Grid (rows, HEADS): out = sum of parts, weighted by 2^lse, CHUNK parts at a time. Rows of one part are done."""
    row = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    first = tl.load(parts_ptr + row * 2).to(tl.int64)
    count = tl.load(parts_ptr + row * 2 + 1)
    if count == 1:
        return
    offsets_d = tl.arange(0, BLOCK_D)
    real_d = offsets_d < HEAD_DIM
    acc = tl.zeros([BLOCK_D], tl.float32)
    peak = -1.0e30
    total = 0.0
    for chunk in tl.range(0, count, CHUNK):
        part = chunk + tl.arange(0, CHUNK)
        real = part < count
        place = (first + part) * HEADS + head
        lse = tl.load(part_lse_ptr + place, mask=real, other=-1.0e30)
        new_peak = tl.maximum(peak, tl.max(lse))
        weights = tl.where(real, tl.exp2(lse - new_peak), 0.0)
        values = tl.load(
            part_out_ptr + (place * HEAD_DIM)[:, None] + offsets_d[None, :],
            mask=real[:, None] & real_d[None, :],
            other=0.0,
        )
        fade = tl.exp2(peak - new_peak)
        acc = acc * fade + tl.sum(values * weights[:, None], axis=0)
        total = total * fade + tl.sum(weights)
        peak = new_peak
    out = (acc / total).to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + row * out_stride + head * HEAD_DIM + offsets_d, out, mask=real_d)
