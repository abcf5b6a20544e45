"""FlashInfer's paged prefill, where it is installed (written against the sources of 0.6.7; never run on a GPU yet).

A plan is host work: it reads lengths on the host, fills a pinned buffer, and copies it. It is made once per batch and
used in every layer. Decode stays with our kernels (docs/decisions/0008-flashinfer-for-prefill-only.md).

Its modules are compiled at first use unless they were built ahead (flashinfer-jit-cache, or
`flashinfer/data/aot/<name>/<name>.so`): minutes with nvcc, impossible without. So `warm_up` before ready, and without
nvcc and FA3 module the FA2 kernels, which run on any device, are asked for. Their plans size themselves by the SMs of
the device, not of the share: on a share they run in more waves.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from colocate.errors import ConfigError, InvariantError
from colocate.model.config import ModelConfig
from colocate.model.cuda.rows import PrefillBatchRows

_WORKSPACE_BYTES = 128 << 20  # FlashInfer's own advice, for partial results of prompts split over keys
_RING = 4  # plans that may be on their way to the device at once
_HEAD_DIMS = (64, 128, 256)


def why_not_flashinfer(config: ModelConfig, dtype: torch.dtype, device: torch.device) -> str | None:
    """Why it cannot run this model here; None where it can. Imports nothing of it."""
    if importlib.util.find_spec("flashinfer") is None:
        return "flashinfer is not installed"
    if device.type != "cuda":
        return f"it runs on a GPU, not on {device}"
    if dtype != torch.bfloat16:
        return f"it has no kernel for {dtype}"
    if config.head_dim not in _HEAD_DIMS:
        return f"it has no kernel for head_dim {config.head_dim}"
    return None


def require_flashinfer(config: ModelConfig, dtype: torch.dtype, device: torch.device) -> None:
    """Raises ConfigError where the operator asked for it and it cannot run."""
    reason = why_not_flashinfer(config, dtype, device)
    if reason is not None:
        remedy = "pip install flashinfer-python==0.6.7, or --attention-backend triton"
        raise ConfigError("model.attention_backend", f"flashinfer was asked for, but {reason}", remedy)


@dataclass(slots=True)
class _Plan:
    """One wrapper and what it was last planned for. `copied` completes when its pinned buffer may be overwritten."""

    wrapper: Any
    copied: Any
    rows: PrefillBatchRows | None = None
    window: int | None = None


class FlashInferPrefill:
    """Owned by one worker, used from one thread. Holds the last few batches' tensors, so that plans stay valid."""

    def __init__(self, config: ModelConfig, block_size: int, device: torch.device) -> None:
        prefill = importlib.import_module("flashinfer.prefill")
        self._config = config
        self._block_size = block_size
        kernels = _kernels(config)
        workspace = torch.empty(_WORKSPACE_BYTES, dtype=torch.uint8, device=device)
        self._plans = [
            _Plan(
                prefill.BatchPrefillWithPagedKVCacheWrapper(workspace, kv_layout="HND", backend=kernels),
                torch.cuda.Event(),  # type: ignore[no-untyped-call]
            )
            for _ in range(_RING)
        ]
        self._turn = 0

    def planned(
        self, rows: PrefillBatchRows, window: int | None
    ) -> Callable[[Tensor, Tensor, Tensor, Tensor], None] | None:
        """A function of (q, k, v, out) for this batch and window, planned now unless it was before.

        None while the plan whose turn it is still waits to be copied to the device: the host is far ahead, and waiting
        for the device is not allowed here. Another kernel takes the layer then.
        """
        for plan in self._plans:
            if plan.rows is rows and plan.window == window:
                return _runner(plan)
        plan = self._plans[self._turn]
        if not plan.copied.query():
            return None
        self._turn = (self._turn + 1) % len(self._plans)
        plan.rows, plan.window = None, None  # an error below leaves no half-made plan behind
        self._make(plan, rows, window)
        plan.rows, plan.window = rows, window
        return _runner(plan)

    def _make(self, plan: _Plan, rows: PrefillBatchRows, window: int | None) -> None:
        if len(rows.host_rows) != rows.num_rows:
            raise InvariantError(f"FlashInfer plans on the host: {rows.num_rows} rows came with {rows.host_rows}")
        config = self._config
        contexts = [cached + own for cached, own in rows.host_rows]
        blocks = [-(-context // self._block_size) for context in contexts]
        own_ends = _ends([own for _, own in rows.host_rows])
        last_lens = [context - (count - 1) * self._block_size for context, count in zip(contexts, blocks, strict=True)]
        plan.wrapper.plan(
            qo_indptr=own_ends,
            paged_kv_indptr=_ends(blocks),
            paged_kv_indices=torch.cat([rows.block_tables[row, :count] for row, count in enumerate(blocks)]),
            paged_kv_last_page_len=torch.tensor(last_lens, dtype=torch.int32),
            num_qo_heads=config.num_heads,
            num_kv_heads=config.num_kv_heads,
            head_dim_qk=config.head_dim,
            page_size=self._block_size,
            causal=True,
            sm_scale=config.head_dim**-0.5,
            # FlashInfer counts the keys left of the query, a window counts the query's own key, too.
            window_left=-1 if window is None else window - 1,
            q_data_type=torch.bfloat16,
            kv_data_type=torch.bfloat16,
        )
        plan.copied.record()


def _runner(plan: _Plan) -> Callable[[Tensor, Tensor, Tensor, Tensor], None]:
    def run(q: Tensor, k: Tensor, v: Tensor, out: Tensor) -> None:
        plan.wrapper.run(q, (k, v), out=out.view(q.shape))

    return run


def _ends(lens: list[int]) -> Tensor:
    """0 and the running sums, int32, on the host."""
    return torch.tensor([0, *lens], dtype=torch.int32).cumsum(0, dtype=torch.int32)


def _kernels(config: ModelConfig) -> str:
    """FlashInfer's own choice (FA3 on Hopper) where its module is there or can be compiled; else FA2."""
    environment = importlib.import_module("flashinfer.jit.env")
    modules = importlib.import_module("flashinfer.jit.attention.modules")
    bf16 = torch.bfloat16
    windowed = any(window is not None for window in config.sliding_windows)
    head_dim = config.head_dim
    name = modules.get_batch_prefill_uri(
        "fa3", bf16, bf16, bf16, torch.int32, head_dim, head_dim, 0, windowed, False, False
    )
    has_compiler = shutil.which("nvcc") is not None or "CUDA_HOME" in os.environ
    is_built = (environment.FLASHINFER_AOT_DIR / name / f"{name}.so").exists()
    return "auto" if has_compiler or is_built else "fa2"
