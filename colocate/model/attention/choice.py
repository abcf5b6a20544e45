"""Which attention implementation a worker runs."""

from __future__ import annotations

from colocate.model.attention.fused import FusedAttention
from colocate.model.attention.seam import Attention
from colocate.model.config import ModelConfig
from colocate.model.kv import KVPool


def attention_for(config: ModelConfig, pool: KVPool, deterministic: bool) -> Attention:
    return FusedAttention(pool, config.num_heads, config.sliding_windows)
