"""The kernels around attention compile for sm_90 at the shapes of real models, without spilling registers."""

from __future__ import annotations

import pytest

from colocate.model.cuda.activations import MAX_SPLITS
from colocate.model.cuda.kernels.activation import gate_kernel
from colocate.model.cuda.kernels.advance import advance_kernel
from colocate.model.cuda.kernels.norm import norm_kernel
from colocate.model.cuda.kernels.rope import decode_rope_kernel, prefill_rope_kernel
from colocate.model.cuda.kernels.sampling import draw_kernel, floor_kernel, pick_kernel, scan_kernel
from colocate.model.cuda.state import MAX_ENDS
from tests.cuda.aot import compile_for_h200

I32, I64, F32 = "*i32:16", "*i64:16", "*fp32:16"
HEADS = {  # num_heads, num_kv_heads, head_dim, bias, QK-norm, type
    "llama-3.1-8b": (32, 8, 128, False, False, "*bf16:16"),
    "qwen3-8b": (32, 8, 128, False, True, "*bf16:16"),
    "qwen2.5-7b": (28, 4, 128, True, False, "*bf16:16"),
    "demo": (6, 2, 32, False, False, "*fp32:16"),
}


@pytest.mark.parametrize(("columns", "dtype"), [(4096, "*bf16:16"), (3584, "*bf16:16"), (192, "*fp32:16")])
@pytest.mark.parametrize("has_delta", [False, True])
def test_norm(columns: int, dtype: str, has_delta: bool) -> None:
    block = 1 << (columns - 1).bit_length()
    signature = {
        "residual": dtype, "delta": dtype, "weight": dtype, "out": dtype, "num_columns": "i32:16",
        "residual_stride": "i32:16", "eps": "fp32", "HAS_DELTA": has_delta, "BLOCK": block,
    }  # fmt: skip
    kernel = compile_for_h200(norm_kernel, signature, num_warps=min(max(block // 512, 1), 16))
    assert kernel.spilled_bytes == 0
    if columns == 4096:
        assert "ld.global.v4" in kernel.ptx, "16 bytes per load"


@pytest.mark.parametrize("dtype", ["*bf16:16", "*fp32:16"])
def test_gate(dtype: str) -> None:
    kernel = compile_for_h200(gate_kernel, {"gate_up": dtype, "num_columns": "i32:16", "BLOCK": 1024})
    assert kernel.spilled_bytes == 0
    assert "ld.global.v4" in kernel.ptx


@pytest.mark.parametrize("model", HEADS)
@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_rope(model: str, phase: str) -> None:
    num_heads, num_kv_heads, head_dim, has_bias, has_norm, dtype = HEADS[model]
    own = {"positions": I32, "slots": I64}
    if phase == "decode":
        own = {"index": I32, "active": I32, "context_len": I32, "granted_len": I32, "block_table": I32}
        own["table_width"] = "i32"
    signature: dict[str, object] = {
        "qkv": dtype, "bias": dtype, "qk_norm": dtype, "rotary": F32, "pool": dtype, **own, "kv_stride": "i64:16",
        "eps": "fp32", "NUM_HEADS": num_heads, "NUM_KV_HEADS": num_kv_heads, "HEAD_DIM": head_dim, "BLOCK_SIZE": 16,
        "HAS_BIAS": has_bias, "HAS_NORM": has_norm, "HEADS": 8, "HALF": head_dim // 2,
    }  # fmt: skip
    kernel = compile_for_h200(prefill_rope_kernel if phase == "prefill" else decode_rope_kernel, signature)
    assert kernel.spilled_bytes == 0
    if head_dim == 128:
        assert "st.global.v" in kernel.ptx, "vector stores into the pool"


TABLE: dict[str, object] = {"logits": F32, "index": I32, "position": I32, "min_tokens": I32, "ends": I32}
ROW: dict[str, object] = {"row_peak": F32, "row_floor": F32, "row_verdict": I32}
PIECE: dict[str, object] = {"piece_max": F32, "piece_token": I32}
LIVE: dict[str, object] = {"active": I32, "context_len": I32, "granted_len": I32}
SHAPE: dict[str, object] = {"ENDS": MAX_ENDS, "PIECES": MAX_SPLITS}


@pytest.mark.parametrize("has_state", [False, True])
def test_scan_and_floor(has_state: bool) -> None:
    stride = {"pieces_stride": "i32:16", "HAS_STATE": has_state}
    scan = {**TABLE, **LIVE, **PIECE, "num_columns": "i32", "piece_columns": "i32:16", **stride, **SHAPE}
    assert compile_for_h200(scan_kernel, {**scan, "BLOCK": 2048}, num_warps=8).spilled_bytes == 0
    filters = {"temperature": F32, "top_k": I32, "top_p": F32, "min_p": F32}
    floor = {**TABLE, **filters, **LIVE, **PIECE, **ROW, "num_columns": "i32", "num_pieces": "i32", **stride, **SHAPE}
    assert compile_for_h200(floor_kernel, {**floor, "BLOCK": 8192}, num_warps=16).spilled_bytes == 0


def test_draw_and_pick() -> None:
    draw = {
        **TABLE,
        "temperature": F32,
        "seed_key": I64,
        **ROW,
        **PIECE,
        "num_columns": "i32",
        "piece_columns": "i32:16",
    }
    assert compile_for_h200(draw_kernel, {**draw, **SHAPE, "BLOCK": 2048}, num_warps=8).spilled_bytes == 0
    pick = {"row_verdict": I32, **PIECE, "drawn": I32, "num_pieces": "i32", "PIECES": MAX_SPLITS}
    assert compile_for_h200(pick_kernel, pick, num_warps=1).spilled_bytes == 0


def test_advance() -> None:
    names = (
        "index", "drawn", "token", "context_len", "active", "granted_len", "position", "min_tokens", "max_tokens",
        "ends", "end_finishes",
    )  # fmt: skip
    signature = {**dict.fromkeys(names, I32), "num_rows": "i32", "ENDS": MAX_ENDS, "BLOCK": 128}
    assert compile_for_h200(advance_kernel, signature).spilled_bytes == 0
