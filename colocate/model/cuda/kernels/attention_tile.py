# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
"""What both attention kernels do with one tile of keys: two products and the online softmax between them.

UPCAST multiplies in float32, for the interpreter, which cannot multiply bf16. float32 pools are multiplied exactly
(`ieee`), not as tf32.
"""

from __future__ import annotations

import triton
import triton.language as tl

UNSEEN = tl.constexpr(-1.0e30)
"""Score of a key that a query does not see, and the peak of a query that saw none. Finite: the difference of two is 0,
where infinities would give NaN. Such a query adds ones, and exp2(UNSEEN - peak) = 0 removes them with its first key."""


@triton.jit
def tile_scores(q, k, scale_log2, UPCAST: tl.constexpr):
    """Binary logarithms of unnormalised weights: q [M, D] times k [N, D], scaled by the softmax scale times log2(e)."""
    if UPCAST:
        scores = tl.dot(q.to(tl.float32), tl.trans(k.to(tl.float32)), input_precision="ieee")
    else:
        scores = tl.dot(q, tl.trans(k), input_precision="ieee")
    return scores * scale_log2


@triton.jit
def fold_tile(acc, peak, total, scores, v, UPCAST: tl.constexpr):
    """(acc, peak, total) after a tile: acc [M, D] = sum of 2^(score - peak) * v, total [M] the sum of the weights."""
    new_peak = tl.maximum(peak, tl.max(scores, axis=1))
    weights = tl.exp2(scores - new_peak[:, None])
    fade = tl.exp2(peak - new_peak)
    total = total * fade + tl.sum(weights, axis=1)
    acc *= fade[:, None]
    weights = weights.to(v.dtype)
    if UPCAST:
        acc = tl.dot(weights.to(tl.float32), v.to(tl.float32), acc, input_precision="ieee")
    else:
        acc = tl.dot(weights, v, acc, input_precision="ieee")
    return acc, new_peak, total
