"""What every executor on a GPU holds: the model over the mapped memory, the lane in force, the host's sampler."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from colocate.config.serve import AttentionBackend
from colocate.device.cuda.backend import Backend
from colocate.device.cuda.lane import Lane
from colocate.device.cuda.partition import CudaPartition
from colocate.errors import InvariantError
from colocate.messages.sampling import SampleState
from colocate.messages.spec import RuntimeFacts
from colocate.model.config import ModelConfig
from colocate.model.cuda.attention import attention_for
from colocate.model.cuda.kernel_table import KernelTable
from colocate.model.cuda.model import CudaModel
from colocate.model.cuda.rotary import rotary_table
from colocate.model.cuda.sampling import needs_host
from colocate.model.layout import KVLayout, WeightLayout
from colocate.model.llama import map_kv, map_weights
from colocate.model.sampler import Sampler

_MOST_SCORED = 64  # places of a prompt whose logits the host asks for at once


class GpuModel:
    """Implements `packed_rows.Scorer`. `weights` and `kv` are uint8 over the keeper's segments; weights are never
    written, KV only in the blocks that a forward names."""

    def __init__(
        self,
        backend: Backend,
        partition: CudaPartition,
        config: ModelConfig,
        facts: RuntimeFacts,
        weights: Tensor,
        kv: Tensor,
        *,
        max_tokens: int,
        max_rows: int,
        attention: AttentionBackend = "auto",
        prefers: KernelTable | None = None,
    ) -> None:
        self.backend = backend
        self.partition = partition
        self.config = config
        self.block_size = facts.block_size
        self.num_blocks = facts.num_blocks
        self.max_rows = max_rows
        self.sampler = Sampler(config.vocab_size)
        pool = map_kv(KVLayout(config, facts.dtype, facts.num_blocks, facts.block_size), kv)
        self.dtype = pool.dtype
        self.model = CudaModel(
            config,
            map_weights(WeightLayout.of(config, facts.dtype), weights),
            pool,
            attention_for(config, pool, max_rows=max_rows, max_tokens=max_tokens, backend=attention, prefers=prefers),
            max_tokens=max_tokens,
            max_rows=max_rows,
            rotary=rotary_table(config, facts.max_model_len, backend.torch_device),
        )
        self._scores: Tensor | None = None

    @property
    def lane(self) -> Lane:
        lane = self.partition.lane
        if lane is None:
            raise InvariantError("work was launched under an empty share")
        return lane

    def used_bytes(self) -> int:
        """Of the device, by everybody. Nothing on the fake one, whose memory is the host's."""
        if self.backend.is_fake:
            return 0
        free_bytes, total_bytes = torch.cuda.mem_get_info(torch.device(self.backend.torch_device))
        return int(total_bytes - free_bytes)

    def host_rows(self, states: Sequence[SampleState]) -> dict[int, SampleState]:
        """Those that the host draws, by their place."""
        vocab_size = self.config.vocab_size
        return {place: state for place, state in enumerate(states) if needs_host(state, vocab_size)}

    def logits(self, hidden: Tensor) -> Tensor:
        """Waits for the device. On the lane in force, inside its `use()`."""
        if self._scores is None:
            shape = (max(_MOST_SCORED, len(hidden)), self.config.vocab_size)
            self._scores = self.backend.pinned(shape, torch.float32)
        for start in range(0, len(hidden), self.max_rows):
            some = hidden[start : start + self.max_rows]
            self._scores[start : start + len(some)].copy_(self.model.logits(some, self.lane.num_sms))
        return self._scores[: len(hidden)]
