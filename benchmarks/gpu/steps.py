"""Steps and forwards of the real `CudaModel` as callables that a lane is timed with."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from colocate.device.cuda.lane import Lane
from colocate.model.cuda.attention import attention_for
from colocate.model.cuda.model import CudaModel
from colocate.model.cuda.rotary import rotary_table
from colocate.model.cuda.rows import PrefillBatchRows
from colocate.model.cuda.state import DecodeState
from colocate.model.llama import TORCH_DTYPES
from gpu.stage import Pool, draw_weights

_WARM_UPS = 2


class Steps:
    """A model with random weights over a pool. Callables launch on the lane's stream and do not wait."""

    def __init__(self, pool: Pool, *, max_rows: int, max_tokens: int) -> None:
        self.pool = pool
        config, device = pool.config, pool.device
        self._where = device.backend.torch_device
        attention = attention_for(config, pool.kv, max_rows=max_rows, max_tokens=max_tokens, backend="triton")
        self.model = CudaModel(
            config,
            draw_weights(config, pool.dtype, device),
            pool.kv,
            attention,
            max_tokens=max_tokens,
            max_rows=max_rows,
            rotary=rotary_table(config, config.max_position_embeddings, self._where),
        )
        self._drawn = torch.zeros(max_rows, dtype=torch.int32, device=self._where)
        self._hidden = torch.zeros(max_tokens, config.hidden_size, dtype=TORCH_DTYPES[pool.dtype], device=self._where)
        device.backend.driver.synchronize()

    def eager(self, state: DecodeState, batch: int, num_sms: int) -> Callable[[], None]:
        """One decode step of the first `batch` slots, every kernel launched by itself."""
        index = torch.arange(batch, dtype=torch.int32, device=self._where)
        drawn = self._drawn[:batch]
        self.pool.device.backend.driver.synchronize()

        @torch.inference_mode()
        def step() -> None:
            self.model.decode_step(state, index, drawn, num_sms)

        return step

    def graph(self, lane: Lane, state: DecodeState, batch: int, num_sms: int) -> Callable[[], None]:
        """The same step captured once. Valid as long as what is returned; rows grow by a token with every replay."""
        step = self.eager(state, batch, num_sms)
        with lane.use():
            for _ in range(_WARM_UPS):
                step()
        lane.mark().wait()
        return lane.capture(step).replay

    def prefill(self, token_ids: Tensor, rows: PrefillBatchRows, num_sms: int) -> Callable[[], None]:
        """All layers and the logits of the last token."""
        num_tokens = len(token_ids)
        hidden = self._hidden[:num_tokens]

        @torch.inference_mode()
        def forward() -> None:
            self.model.embed(token_ids, hidden)
            self.model.prefill_layers(hidden, 0, self.pool.config.num_layers, rows, num_sms)
            self.model.logits(hidden[-1:], num_sms)

        return forward
