"""Attention on a GPU: prefill and decode over the paged pool, by our Triton kernels or, for prompts, FlashInfer's.

Shapes: q [tokens, num_heads, head_dim], rows may lie apart; out [tokens, num_heads * head_dim], rows contiguous; query
head h reads KV head h // (num_heads / num_kv_heads). Pool: model.layout.KVLayout. A window of W keys holds the query's
own. Under Triton's interpreter the same code runs on CPU tensors.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from colocate.errors import InvariantError
from colocate.model.config import ModelConfig
from colocate.model.cuda.flashinfer import FlashInferPrefill, require_flashinfer, why_not_flashinfer
from colocate.model.cuda.kernel_table import AttentionShape, KernelTable
from colocate.model.cuda.kernels.attention_shapes import AttentionShapes, power_of_two
from colocate.model.cuda.rows import PrefillBatchRows
from colocate.model.cuda.state import DecodeState

_PLAN_ITEMS = 32  # items that one program of the decode plan writes
_MERGE_CHUNK = 16  # parts that a merging program loads at once
_LOG2_E = math.log2(math.e)


def attention_for(
    config: ModelConfig,
    kv_pool: Tensor,
    *,
    max_rows: int,
    max_tokens: int,
    backend: str = "auto",
    prefers: KernelTable | None = None,
    shapes: AttentionShapes | None = None,
) -> CudaAttention:
    """`backend` is the operator's word: auto, triton or flashinfer. `prefers` was measured on this device and decides
    under auto; without it, or where it was measured for other heads, Triton's kernels run.

    `max_rows` bounds the rows of a batch or a step. Raises ConfigError where flashinfer is asked for and cannot be.
    """
    device = kv_pool.device
    if backend == "flashinfer":
        require_flashinfer(config, kv_pool.dtype, device)
    if prefers is not None and not prefers.fits(config, str(kv_pool.dtype).removeprefix("torch.")):
        prefers = None
    wants = backend == "flashinfer" or (backend == "auto" and prefers is not None)
    can = wants and why_not_flashinfer(config, kv_pool.dtype, device) is None
    flashinfer = FlashInferPrefill(config, kv_pool.shape[4], device) if can else None
    return CudaAttention(
        config,
        kv_pool,
        max_rows=max_rows,
        max_tokens=max_tokens,
        flashinfer=flashinfer,
        prefers=prefers if backend == "auto" else None,
        shapes=shapes or _default_shapes(config, kv_pool),
    )


def _default_shapes(config: ModelConfig, kv_pool: Tensor) -> AttentionShapes:
    if _interpreted():
        return AttentionShapes.interpreted()
    return AttentionShapes.of(config.head_dim, kv_pool.element_size())


@dataclass(slots=True)
class _StepPlan:
    """The parts of a step under one window, written on the device. `made_for`: what it was last launched for."""

    window: int | None
    first_layer: int
    items: Tensor  # int32 [items, 8]
    parts: Tensor  # int32 [rows, 2]
    made_for: tuple[int, int, int] | None = None


class CudaAttention:
    """Owned by one worker, used from one thread. Launches on torch's current stream, never synchronises; Triton's path
    allocates nothing after construction, FlashInfer's a block index per batch. `num_sms`: the SMs of the share, 0 for a
    few."""

    def __init__(
        self,
        config: ModelConfig,
        kv_pool: Tensor,
        *,
        max_rows: int,
        max_tokens: int,
        shapes: AttentionShapes,
        flashinfer: FlashInferPrefill | None = None,
        prefers: KernelTable | None = None,
    ) -> None:
        self._config = config
        self._shapes = shapes
        self._max_rows = max_rows
        self._max_tokens = max_tokens
        self._max_sms = _sm_count(kv_pool.device)
        self._flashinfer = flashinfer
        self._prefers = prefers
        self._choice: tuple[PrefillBatchRows, bool] | None = None
        self._keys = [kv_pool[layer, 0] for layer in range(config.num_layers)]
        self._values = [kv_pool[layer, 1] for layer in range(config.num_layers)]
        self._prefill_shape = shapes.prefill_for(config.num_heads // config.num_kv_heads)
        self._heads = _head_constants(config, kv_pool)
        self._row_lanes = power_of_two(max_rows, 16)
        self._scale_log2 = config.head_dim**-0.5 * _LOG2_E
        most_slots = max(shapes.decode_slots(num_sms, config.num_kv_heads) for num_sms in (0, self._max_sms))
        max_items = most_slots + max_rows
        self._part_out = kv_pool.new_empty((max_items, config.q_size), dtype=torch.float32)
        self._part_lse = kv_pool.new_empty((max_items, config.num_heads), dtype=torch.float32)
        self._steps: dict[int | None, _StepPlan] = {}
        for layer, window in enumerate(config.sliding_windows):
            if window not in self._steps:
                items = kv_pool.new_empty((max_items, 8), dtype=torch.int32)
                parts = kv_pool.new_empty((max_rows, 2), dtype=torch.int32)
                self._steps[window] = _StepPlan(window, layer, items, parts)

    def prefill(self, layer: int, q: Tensor, rows: PrefillBatchRows, out: Tensor, num_sms: int) -> None:
        """Query i of row r sees positions 0 .. starts[r] + i, limited by the layer's window; their KV is written."""
        if rows.num_rows > self._max_rows or rows.num_tokens > self._max_tokens:
            raise InvariantError(
                f"{rows.num_rows} rows of {rows.num_tokens} tokens, room for {self._max_rows} of {self._max_tokens}"
            )
        window = self._config.sliding_windows[layer]
        if self._flashinfer is not None and self._takes_flashinfer(rows, num_sms):
            run = self._flashinfer.planned(rows, window)
            if run is not None:
                run(q, self._keys[layer], self._values[layer], out)
                return
        self._prefill_by_triton(layer, q, rows, out, window)

    def _takes_flashinfer(self, rows: PrefillBatchRows, num_sms: int) -> bool:
        """Decided once per batch. Without a table FlashInfer is there because the operator asked for it."""
        if self._prefers is None:
            return True
        if self._choice is None or self._choice[0] is not rows:
            shape = AttentionShape("prefill", rows.num_rows, rows.num_tokens, rows.max_context, num_sms)
            self._choice = (rows, self._prefers.fastest(shape, ("triton", "flashinfer")) == "flashinfer")
        return self._choice[1]

    def _prefill_by_triton(
        self, layer: int, q: Tensor, rows: PrefillBatchRows, out: Tensor, window: int | None
    ) -> None:
        from colocate.model.cuda.kernels.attention_prefill import attention_prefill_kernel

        keys, shape = self._keys[layer], self._prefill_shape
        num_tiles = rows.num_tokens // (shape.block_m // self._heads["GROUP"]) + rows.num_rows
        attention_prefill_kernel[(num_tiles * self._config.num_kv_heads,)](
            q,
            q.stride(0),
            keys,
            self._values[layer],
            keys.stride(0),
            keys.stride(1),
            rows.block_tables,
            rows.block_tables.stride(0),
            rows.cu_lens,
            rows.starts,
            rows.num_rows,
            num_tiles,
            out,
            out.stride(0),
            self._scale_log2,
            WINDOW=window or 0,
            BLOCK_M=shape.block_m,
            BLOCK_N=shape.block_n,
            ROWS=self._row_lanes,
            num_warps=shape.num_warps,
            num_stages=shape.num_stages,
            **self._heads,
        )

    def decode(self, layer: int, q: Tensor, state: DecodeState, index: Tensor, out: Tensor, num_sms: int) -> None:
        """One query per entry of `index` (slots of `state`), at position context_len, whose KV is written already.

        A row that the step skips gets zeros. Can be captured: no length is read on the host. The parts of a step are
        planned on the device with the first layer of each window; the layers of a step come in ascending order, and
        neither `state` nor `index` changes between them.
        """
        from colocate.model.cuda.kernels.attention_decode import attention_decode_kernel, attention_merge_kernel

        num_rows = index.shape[0]
        if num_rows > self._max_rows:
            raise InvariantError(f"a step of {num_rows} rows, room for {self._max_rows}")
        slots = self._shapes.decode_slots(min(num_sms, self._max_sms), self._config.num_kv_heads)
        step = self._steps[self._config.sliding_windows[layer]]
        wanted = (index.data_ptr(), num_rows, slots)
        if layer == step.first_layer or step.made_for != wanted:
            self._plan_step(step, state, index, slots)
            step.made_for = wanted
        keys, shape, heads = self._keys[layer], self._shapes.decode, self._heads
        attention_decode_kernel[(slots + num_rows, self._config.num_kv_heads)](
            q,
            q.stride(0),
            keys,
            self._values[layer],
            keys.stride(0),
            keys.stride(1),
            state.block_table,
            state.block_table.stride(0),
            step.items,
            out,
            out.stride(0),
            self._part_out,
            self._part_lse,
            self._scale_log2,
            BLOCK_M=power_of_two(self._config.num_heads // self._config.num_kv_heads, 16),
            BLOCK_N=shape.block_n,
            num_warps=shape.num_warps,
            num_stages=shape.num_stages,
            **heads,
        )
        if slots > 1:
            attention_merge_kernel[(num_rows, self._config.num_heads)](
                step.parts,
                self._part_out,
                self._part_lse,
                out,
                out.stride(0),
                HEADS=self._config.num_heads,
                HEAD_DIM=heads["HEAD_DIM"],
                BLOCK_D=heads["BLOCK_D"],
                CHUNK=_MERGE_CHUNK,
                num_warps=4,
            )

    def _plan_step(self, step: _StepPlan, state: DecodeState, index: Tensor, slots: int) -> None:
        from colocate.model.cuda.kernels.attention_decode import attention_plan_kernel

        num_items = slots + index.shape[0]
        attention_plan_kernel[(-(-num_items // _PLAN_ITEMS),)](
            index,
            state.active,
            state.context_len,
            state.granted_len,
            index.shape[0],
            slots,
            num_items,
            step.items,
            step.parts,
            WINDOW=step.window or 0,
            BLOCK_N=self._shapes.decode.block_n,
            MIN_TILES=self._shapes.min_tiles,
            ROWS=self._row_lanes,
            ITEMS=_PLAN_ITEMS,
            num_warps=8,
        )


def _head_constants(config: ModelConfig, kv_pool: Tensor) -> Mapping[str, Any]:
    """Constexprs that every layer and both phases share."""
    return {
        "KV_HEADS": config.num_kv_heads,
        "GROUP": config.num_heads // config.num_kv_heads,
        "HEAD_DIM": config.head_dim,
        "BLOCK_D": power_of_two(config.head_dim, 16),
        "BLOCK_SIZE": kv_pool.shape[4],
        "UPCAST": _interpreted(),
    }


def _interpreted() -> bool:
    from triton import knobs

    return bool(knobs.runtime.interpret)


def _sm_count(device: torch.device) -> int:
    """SMs of the whole device; under the interpreter, a grid of any size is run by one core."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1
