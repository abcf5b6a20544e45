# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
"""SwiGLU's gate (arXiv 2002.05202, equation 6, with SiLU): silu(gate) * up of the fused projection, in place."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 1024


@triton.jit
def gate_kernel(gate_up, num_columns, BLOCK: tl.constexpr):
    """gate_up [rows, 2 * num_columns], contiguous. The first half of each row is overwritten. float32 arithmetic."""
    first = gate_up + tl.program_id(0).to(tl.int64) * (2 * num_columns)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = columns < num_columns
    gate = tl.load(first + columns, mask=mask, other=0.0).to(tl.float32)
    up = tl.load(first + num_columns + columns, mask=mask, other=0.0).to(tl.float32)
    gated = gate / (1.0 + tl.exp(-gate)) * up
    tl.store(first + columns, gated.to(gate_up.dtype.element_ty), mask=mask)


def gate_(gate_up: Tensor) -> Tensor:
    """[rows, 2 * intermediate] -> its first half, a view [rows, intermediate] with the longer row stride."""
    rows, width = gate_up.shape
    columns = width // 2
    if rows:
        gate_kernel[(rows, triton.cdiv(columns, _BLOCK))](gate_up, columns, BLOCK=_BLOCK, num_warps=4)
    return gate_up[:, :columns]
