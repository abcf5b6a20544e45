"""The interpreter itself: what the other files rely on, and the trap they avoid."""

from __future__ import annotations

import torch
import triton
import triton.language as tl


@triton.jit
def _product(a, b, out, UPCAST: tl.constexpr):
    place = tl.arange(0, 16)[:, None] * 16 + tl.arange(0, 16)[None, :]
    left = tl.load(a + place)
    right = tl.load(b + place)
    if UPCAST:
        left = left.to(tl.float32)
        right = right.to(tl.float32)
    tl.store(out + place, tl.dot(left, right, input_precision="ieee"))


def test_products_of_bf16_are_exact_once_cast() -> None:
    a, b = torch.randn(2, 16, 16, dtype=torch.bfloat16)
    out = torch.empty(16, 16)
    _product[(1,)](a, b, out, UPCAST=True)
    torch.testing.assert_close(out.double(), a.double() @ b.double(), rtol=1e-5, atol=1e-5)
