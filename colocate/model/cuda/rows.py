"""Rows of one prefill forward, as the kernels read them."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, eq=False, slots=True)
class PrefillBatchRows:
    """R rows of T tokens in all, packed one row after another. All tensors are on the device and contiguous.

    Row r has the tokens cu_lens[r] .. cu_lens[r + 1] - 1, at positions starts[r], starts[r] + 1, and so on; what stands
    before is in the pool already. `max_new` and `max_context` are known to the host, so that grids need no
    synchronisation.
    """

    positions: Tensor  # int32 [T]
    slots: Tensor  # int64 [T]: block * block_size + offset, where each token's KV belongs
    cu_lens: Tensor  # int32 [R + 1]
    starts: Tensor  # int32 [R]: cached tokens before the row's own
    block_tables: Tensor  # int32 [R, W]: covers starts[r] + own tokens; what lies beyond is never read
    max_new: int  # most own tokens of a row
    max_context: int  # most cached and own tokens together of a row
    host_rows: tuple[tuple[int, int], ...] = ()  # (cached, own) tokens of each row: what FlashInfer plans with

    @property
    def num_tokens(self) -> int:
        return self.positions.shape[0]

    @property
    def num_rows(self) -> int:
        return self.starts.shape[0]
