"""What every executor of a real model holds: the model over the mapped memory, the rotation table, the sampler."""

from __future__ import annotations

import torch

from colocate.messages.spec import RuntimeFacts
from colocate.model.attention.choice import attention_for
from colocate.model.config import ModelConfig
from colocate.model.kv import KVPool
from colocate.model.layout import KVLayout, WeightLayout
from colocate.model.linear import linear_for
from colocate.model.llama import TORCH_DTYPES, LlamaModel, bytes_tensor, map_kv, map_weights
from colocate.model.native_layers import native_layers_for
from colocate.model.rope import RotaryTable
from colocate.model.sampler import Sampler


class MappedModel:
    """`weights` may be read-only; `kv` is written in the blocks that a forward names, nowhere else.

    `deterministic`: the same bits whatever the batch, the chunking, the thread count and the phase, at a cost.
    """

    def __init__(
        self, config: ModelConfig, facts: RuntimeFacts, weights: memoryview, kv: memoryview, deterministic: bool
    ) -> None:
        self.config = config
        self.block_size = facts.block_size
        pool = KVPool(map_kv(KVLayout(config, facts.dtype, facts.num_blocks, facts.block_size), bytes_tensor(kv)))
        thread_counts = sorted({1, 2, facts.total_units})
        attention = attention_for(config, pool, deterministic, thread_counts)
        tensors = map_weights(WeightLayout.of(config, facts.dtype), bytes_tensor(weights))
        fused = native_layers_for(config, tensors, pool, deterministic)
        linear = linear_for(tensors, deterministic, thread_counts)
        # The native layers compute in float32. Rounding between calls would make the result depend on the slicing.
        hidden_dtype = torch.float32 if deterministic and fused is not None else None
        self.model = LlamaModel(config, tensors, attention, linear, fused, hidden_dtype)
        self.rotary = RotaryTable(config.rope, config.head_dim, facts.max_model_len, TORCH_DTYPES[facts.dtype])
        self.sampler = Sampler(config.vocab_size)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.model.logits(hidden)
