"""Which attention implementation a worker runs."""

from __future__ import annotations

from collections.abc import Sequence

from colocate.model.attention.deterministic import DeterministicAttention
from colocate.model.attention.fused import FusedAttention
from colocate.model.attention.native import NativeAttention
from colocate.model.attention.seam import Attention
from colocate.model.config import ModelConfig
from colocate.model.kv import KVPool
from colocate.model.native_kernels import kernels_for


def attention_for(config: ModelConfig, pool: KVPool, deterministic: bool, thread_counts: Sequence[int]) -> Attention:
    """What is deterministic is so on each of `thread_counts`."""
    if deterministic:
        return DeterministicAttention(pool, config.num_heads, config.sliding_windows, thread_counts)
    kernels = kernels_for(config.head_dim)
    if kernels is not None:
        return NativeAttention(kernels, pool, config.num_heads, config.sliding_windows, config.head_dim**-0.5)
    return FusedAttention(pool, config.num_heads, config.sliding_windows)
