"""What the device knows of the standing batch, so that a decode step needs nothing from the host.

One entry per row slot, `capacity` slots (max_num_seqs + 1); the last slot is padding and never active. The host changes
entries by deltas between steps, the kernels of a step advance them (`kernels/advance.py`); both run in the order of one
stream. A row that is not active, or whose `context_len` has reached `granted_len`, is skipped by every kernel: it
writes neither KV nor state, and draws -1.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

MAX_ENDS = 8  # tokens per row that end it or are masked before min_tokens; a row with more is sampled on the host


@dataclass(frozen=True, eq=False, slots=True)
class SamplingTable:
    """How the next token of each slot is drawn. The tensors are written in place, never replaced."""

    position: Tensor  # int32 [C]: output position to be drawn next
    temperature: Tensor  # float32 [C]: 0 is greedy, as is everything that the host takes for greedy
    top_k: Tensor  # int32 [C]: 0 is off
    top_p: Tensor  # float32 [C]: 1 is off
    min_p: Tensor  # float32 [C]: 0 is off
    seed_key: Tensor  # int64 [C]: bits of noise.py's chain over seed and choice; the device absorbs the position
    min_tokens: Tensor  # int32 [C]: `ends` are masked while position < min_tokens
    max_tokens: Tensor  # int32 [C]
    ends: Tensor  # int32 [C, MAX_ENDS]: EOS and stop tokens, -1 pads
    end_finishes: Tensor  # int32 [C, MAX_ENDS]: 1 where the token ends the row, 0 where it is masked only

    @property
    def capacity(self) -> int:
        return self.position.shape[0]

    @staticmethod
    def allocate(capacity: int, device: torch.device | str) -> SamplingTable:
        """All slots greedy, without an end, and with no token left to draw."""
        return SamplingTable(
            position=_filled(0, (capacity,), torch.int32, device),
            temperature=_filled(0.0, (capacity,), torch.float32, device),
            top_k=_filled(0, (capacity,), torch.int32, device),
            top_p=_filled(1.0, (capacity,), torch.float32, device),
            min_p=_filled(0.0, (capacity,), torch.float32, device),
            seed_key=_filled(0, (capacity,), torch.int64, device),
            min_tokens=_filled(0, (capacity,), torch.int32, device),
            max_tokens=_filled(0, (capacity,), torch.int32, device),
            ends=_filled(-1, (capacity, MAX_ENDS), torch.int32, device),
            end_finishes=_filled(0, (capacity, MAX_ENDS), torch.int32, device),
        )

    @property
    def nbytes(self) -> int:
        return sum(getattr(self, field.name).nbytes for field in fields(self))


@dataclass(frozen=True, eq=False, slots=True)
class DecodeState:
    """The standing batch. The tensors are written in place, never replaced: captured graphs hold their addresses."""

    token: Tensor  # int32 [C]: fed by the next step
    context_len: Tensor  # int32 [C]: positions whose KV is written; the next token stands at this position
    active: Tensor  # int32 [C]: 0 or 1
    granted_len: Tensor  # int32 [C]: len(block table) * block_size
    block_table: Tensor  # int32 [C, W]; entries beyond the granted length are never read
    sampling: SamplingTable

    @property
    def capacity(self) -> int:
        return self.token.shape[0]

    @property
    def padding_slot(self) -> int:
        """What padding entries of an index point at."""
        return self.capacity - 1

    @staticmethod
    def allocate(max_num_seqs: int, table_width: int, device: torch.device | str) -> DecodeState:
        """Empty slots for `max_num_seqs` rows of at most `table_width` blocks, and the padding slot."""
        capacity = max_num_seqs + 1
        return DecodeState(
            token=_filled(0, (capacity,), torch.int32, device),
            context_len=_filled(0, (capacity,), torch.int32, device),
            active=_filled(0, (capacity,), torch.int32, device),
            granted_len=_filled(0, (capacity,), torch.int32, device),
            block_table=_filled(0, (capacity, table_width), torch.int32, device),
            sampling=SamplingTable.allocate(capacity, device),
        )

    @property
    def nbytes(self) -> int:
        own = (self.token, self.context_len, self.active, self.granted_len, self.block_table)
        return sum(tensor.nbytes for tensor in own) + self.sampling.nbytes


@dataclass(frozen=True, eq=False, slots=True)
class StepRows:
    """Which slots a step takes. `index` int32 [B], B being the bucket of a graph; padding is `padding_slot`."""

    index: Tensor

    @staticmethod
    def allocate(state: DecodeState, bucket: int) -> StepRows:
        """A bucket of padding."""
        return StepRows(_filled(state.padding_slot, (bucket,), torch.int32, state.token.device))


def _filled(value: float, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device | str) -> Tensor:
    return torch.full(shape, value, dtype=dtype, device=device)
