# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
"""Causal attention of packed prompts over a paged KV cache (Triton).

FlashAttention-2 (Dao 2023, algorithm 1): one program keeps its queries, walks over the keys in tiles, and carries the
running maximum and sum of the softmax, so that no score reaches memory. What differs:

* A tile of queries is `block_m` pairs of (position, query head) of one row and ONE KV head: the heads of a group read
  the same keys, so a prompt of 20 tokens with a group of 4 fills 80 of 128 rows instead of 20, and the diagonal costs
  less, since 128 rows span 32 positions only. The keys read per row of a tile are the same as with one head per
  program. The group need not be a power of two: row m is position m // group, head m % group.
* Keys are gathered through the block table, one block number per key. Neighbouring keys of a block are neighbours in
  memory (`[block, kv_head, slot, head_dim]`), so each thread copies 16 bytes at a time (cp.async).
* The grid needs nothing from the host but T and R: row r owns tiles cu_lens[r] // Q + r and on, Q positions each, and
  a program finds its row by counting. At most R programs find nothing to do. Programs start with the last tiles of
  each row, which see the most keys, and the KV heads of a tile run side by side.
* Three loops: keys that some query may not see on the left (sliding window), keys that all queries see, where nothing
  is masked, and the diagonal. Tiles that nobody sees are not read at all.

Floor: 4 * head_dim * num_heads * (visible query-key pairs) flops per layer at the device's matrix rate. On an H200
look first at achieved flops for 8k new tokens of Llama-3.1-8B (8.8 Tflop over all layers), then at 512 new on 8k
cached, then whether `block_n` 128 with 3 stages beats 64 with 5. Unproven without a GPU: every speed.
"""

from __future__ import annotations

import triton
import triton.language as tl

from colocate.model.cuda.kernels.attention_tile import UNSEEN, fold_tile, tile_scores


# What changes from batch to batch must not make another variant of the kernel: that would be compiled while serving.
@triton.jit(
    do_not_specialize=["table_stride", "num_rows", "num_tiles"],
    do_not_specialize_on_alignment=["tables_ptr", "cu_lens_ptr", "starts_ptr"],
)
def attention_prefill_kernel(
    q_ptr,
    q_stride,
    k_ptr,
    v_ptr,
    block_stride,
    head_stride,
    tables_ptr,
    table_stride,
    cu_lens_ptr,
    starts_ptr,
    num_rows,
    num_tiles,
    out_ptr,
    out_stride,
    scale_log2,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    WINDOW: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    ROWS: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """Grid (num_tiles * KV_HEADS). Shapes in `model.cuda.attention`; strides in elements.

    `scale_log2` is the softmax scale times log2(e). WINDOW 0 is none. ROWS is a power of two, at least num_rows.
    UPCAST multiplies in float32, for the interpreter, which cannot multiply bf16.
    """
    QUERIES: tl.constexpr = BLOCK_M // GROUP  # positions per tile
    tile = num_tiles - 1 - tl.program_id(0) // KV_HEADS
    kv_head = tl.program_id(0) % KV_HEADS

    # The row of this tile: the last one whose first tile is not behind it.
    candidates = tl.arange(0, ROWS)
    firsts = tl.load(cu_lens_ptr + candidates, mask=candidates < num_rows, other=0) // QUERIES + candidates
    row = tl.sum(((firsts <= tile) & (candidates < num_rows)).to(tl.int32)) - 1
    row_first = tl.load(cu_lens_ptr + row)
    row_len = tl.load(cu_lens_ptr + row + 1) - row_first
    first = (tile - (row_first // QUERIES + row)) * QUERIES  # of the tile, within the row
    if first >= row_len:
        return
    last = tl.minimum(first + QUERIES, row_len) - 1
    start = tl.load(starts_ptr + row)
    table_ptr = tables_ptr + row.to(tl.int64) * table_stride

    rows_m = tl.arange(0, BLOCK_M)
    offsets_d = tl.arange(0, BLOCK_D)
    queries = first + rows_m // GROUP
    real_m = queries <= last
    real_d = offsets_d < HEAD_DIM
    heads = kv_head * GROUP + rows_m % GROUP
    tokens = (row_first + queries).to(tl.int64)
    mask_q = real_m[:, None] & real_d[None, :]
    q = tl.load(q_ptr + (tokens * q_stride + heads * HEAD_DIM)[:, None] + offsets_d[None, :], mask=mask_q, other=0.0)
    positions = start + queries

    # Keys [low, high) are seen by some query of the tile, [all_low, all_high) by every one.
    high = start + last + 1
    low = 0
    if WINDOW > 0:
        low = tl.maximum(start + first - WINDOW + 1, 0)
    begin = low // BLOCK_N * BLOCK_N
    all_low = begin
    if WINDOW > 0:
        unseen = tl.maximum(start + last - WINDOW + 1, 0)
        all_low = tl.minimum(tl.cdiv(unseen, BLOCK_N) * BLOCK_N, tl.cdiv(high, BLOCK_N) * BLOCK_N)
        all_low = tl.maximum(all_low, begin)
    all_high = tl.maximum((start + first + 1) // BLOCK_N * BLOCK_N, all_low)

    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    peak = tl.full([BLOCK_M], UNSEEN, tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    k_ptr += kv_head * head_stride
    v_ptr += kv_head * head_stride
    if WINDOW > 0:
        acc, peak, total = _walk(
            acc, peak, total, q, positions, k_ptr, v_ptr, block_stride, table_ptr, begin, all_low, low, high,
            scale_log2, HEAD_DIM, BLOCK_D, BLOCK_SIZE, WINDOW, BLOCK_N, True, UPCAST,
        )  # fmt: skip
    acc, peak, total = _walk(
        acc, peak, total, q, positions, k_ptr, v_ptr, block_stride, table_ptr, all_low, all_high, low, high,
        scale_log2, HEAD_DIM, BLOCK_D, BLOCK_SIZE, WINDOW, BLOCK_N, False, UPCAST,
    )  # fmt: skip
    acc, peak, total = _walk(
        acc, peak, total, q, positions, k_ptr, v_ptr, block_stride, table_ptr, all_high, high, low, high,
        scale_log2, HEAD_DIM, BLOCK_D, BLOCK_SIZE, WINDOW, BLOCK_N, True, UPCAST,
    )  # fmt: skip

    out = acc / total[:, None]
    out_place = (tokens * out_stride + heads * HEAD_DIM)[:, None] + offsets_d[None, :]
    tl.store(out_ptr + out_place, out.to(out_ptr.dtype.element_ty), mask=mask_q)


@triton.jit
def _walk(
    acc,
    peak,
    total,
    q,
    positions,
    k_ptr,
    v_ptr,
    block_stride,
    table_ptr,
    first_key,
    end_key,
    low,
    high,
    scale_log2,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    WINDOW: tl.constexpr,
    BLOCK_N: tl.constexpr,
    MASKED: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """The online softmax over keys first_key .. end_key - 1, whole tiles. Unless MASKED, every query sees all of them.

    Nothing outside [low, high) is read: neither keys nor entries of the block table. Every real row sees at least its
    own key in the end, as UNSEEN asks for.
    """
    offsets_d = tl.arange(0, BLOCK_D)
    real_d = offsets_d < HEAD_DIM
    for key in tl.range(first_key, end_key, BLOCK_N):
        keys = key + tl.arange(0, BLOCK_N)
        if MASKED:
            real_n = (keys >= low) & (keys < high)
            blocks = tl.load(table_ptr + keys // BLOCK_SIZE, mask=real_n, other=0)
        else:
            blocks = tl.load(table_ptr + keys // BLOCK_SIZE)
        place = (blocks.to(tl.int64) * block_stride + (keys % BLOCK_SIZE) * HEAD_DIM)[:, None] + offsets_d[None, :]
        if MASKED:
            k = tl.load(k_ptr + place, mask=real_n[:, None] & real_d[None, :], other=0.0)
            v = tl.load(v_ptr + place, mask=real_n[:, None] & real_d[None, :], other=0.0)
        elif HEAD_DIM == BLOCK_D:
            k = tl.load(k_ptr + place)
            v = tl.load(v_ptr + place)
        else:
            k = tl.load(k_ptr + place, mask=real_d[None, :], other=0.0)
            v = tl.load(v_ptr + place, mask=real_d[None, :], other=0.0)
        scores = tile_scores(q, k, scale_log2, UPCAST)
        if MASKED:
            seen = keys[None, :] <= positions[:, None]
            if WINDOW > 0:
                seen &= keys[None, :] > positions[:, None] - WINDOW
            scores = tl.where(seen, scores, UNSEEN)
        acc, peak, total = fold_tile(acc, peak, total, scores, v, UPCAST)
    return acc, peak, total
