# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
"""RMSNorm (arXiv 1910.07467, equation 4), alone and behind the addition of what a layer's half produced.

Arithmetic in float32, storage in the tensors' own type. The sum is rounded to that type before it is normalised, so
the result does not depend on whether the addition was fused or came before (a forward may stop between two layers).
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def norm_kernel(
    residual, delta, weight, out, num_columns, residual_stride, eps, HAS_DELTA: tl.constexpr, BLOCK: tl.constexpr
):
    """One program per row. With HAS_DELTA, `residual` becomes residual + delta; `delta` and `out` are contiguous."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    mask = columns < num_columns
    place = residual + row * residual_stride + columns
    x = tl.load(place, mask=mask, other=0.0).to(tl.float32)
    if HAS_DELTA:
        x += tl.load(delta + row * num_columns + columns, mask=mask, other=0.0).to(tl.float32)
        rounded = x.to(residual.dtype.element_ty)
        tl.store(place, rounded, mask=mask)
        x = rounded.to(tl.float32)
    scale = tl.rsqrt(tl.sum(x * x, axis=0) / num_columns + eps)
    y = x * scale * tl.load(weight + columns, mask=mask, other=0.0).to(tl.float32)
    tl.store(out + row * num_columns + columns, y.to(out.dtype.element_ty), mask=mask)


def rms_norm(x: Tensor, weight: Tensor, eps: float, out: Tensor) -> None:
    """out [rows, hidden] = x / rms(x) * weight; rows of `x` may lie apart."""
    _launch(x, x, weight, eps, out, has_delta=False)


def add_rms_norm(residual: Tensor, delta: Tensor, weight: Tensor, eps: float, out: Tensor) -> None:
    """residual += delta; out = residual / rms(residual) * weight. All [rows, hidden]."""
    _launch(residual, delta, weight, eps, out, has_delta=True)


def _launch(x: Tensor, delta: Tensor, weight: Tensor, eps: float, out: Tensor, has_delta: bool) -> None:
    rows, columns = x.shape
    if rows == 0:
        return
    block = triton.next_power_of_2(columns)
    # 16 elements per thread: two 16-byte loads of bf16
    num_warps = min(max(block // 512, 1), 16)
    norm_kernel[(rows,)](
        x, delta, weight, out, columns, x.stride(0), eps, HAS_DELTA=has_delta, BLOCK=block, num_warps=num_warps
    )
