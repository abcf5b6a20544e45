"""The compile check itself: it must see what it claims to see."""

from __future__ import annotations

import pytest
import triton
import triton.language as tl
from triton.compiler.errors import CompilationError

from tests.cuda.aot import compile_for_h200


@triton.jit
def _gather_product(
    rows, table, out, num_tiles, row_stride, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr, MATRIX: tl.constexpr
):
    """out [M, K] = sum over tiles of rows[table[tile]] [N, K], weighted by a matrix of ones."""
    ones = tl.full([M, N], 1.0, tl.bfloat16)
    total = tl.zeros([M, K], tl.float32)
    offsets_k = tl.arange(0, K)
    for tile in range(num_tiles):
        first = tl.load(table + tile).to(tl.int64)
        values = tl.load(rows + (first + tl.arange(0, N))[:, None] * row_stride + offsets_k[None, :])
        if MATRIX:
            total = tl.dot(ones, values, total)
        else:
            total += tl.sum(values.to(tl.float32), axis=0)[None, :]
    tl.store(out + tl.arange(0, M)[:, None] * K + offsets_k[None, :], total)


_SIGNATURE = {
    "rows": "*bf16:16",
    "table": "*i32:16",
    "out": "*fp32:16",
    "num_tiles": "i32",
    "row_stride": "i32:16",
    "M": 64,
    "N": 64,
    "K": 64,
}


def test_a_matrix_product_shows_wgmma_and_pipelined_loads() -> None:
    kernel = compile_for_h200(_gather_product, {**_SIGNATURE, "MATRIX": True}, num_warps=4, num_stages=3)
    assert kernel.cubin.startswith(b"\x7fELF")
    assert kernel.uses_wgmma
    assert kernel.num_async_copies > 0
    assert kernel.shared_bytes > 2 * 64 * 64 * 2
    assert 16 <= kernel.registers <= 255
    assert kernel.spilled_bytes == 0


def test_a_sum_shows_neither() -> None:
    kernel = compile_for_h200(_gather_product, {**_SIGNATURE, "MATRIX": False}, num_warps=4, num_stages=1)
    assert not kernel.uses_wgmma
    assert kernel.num_async_copies == 0


def test_registers_that_do_not_suffice_are_seen_as_spills() -> None:
    signature = {**_SIGNATURE, "M": 64, "K": 256, "N": 128, "MATRIX": False}
    kernel = compile_for_h200(_gather_product, signature, num_warps=1, num_stages=1)
    assert kernel.spilled_bytes > 0


def test_what_triton_refuses_is_an_error() -> None:
    with pytest.raises(CompilationError):
        compile_for_h200(_gather_product, {**_SIGNATURE, "N": 65, "MATRIX": True})
