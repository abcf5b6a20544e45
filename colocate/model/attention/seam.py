"""The seam between the decoder and its attention kernels.

Implementations: `attention/fused.py` (torch's fused kernel on gathered blocks), `attention/deterministic.py` (fixed
tiles, same bits whatever the batch). All read and write one KV pool, laid out as `model.layout.KVLayout` says.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True, slots=True)
class PrefillSpan:
    """One row of a packed prefill: `num_tokens` tokens from place `first` of the packed batch.

    They stand at positions `start .. start + num_tokens - 1`. `block_table` (int64 [blocks]) covers all of them and
    the cached positions before `start`.
    """

    first: int
    num_tokens: int
    start: int
    block_table: Tensor

    @property
    def context_len(self) -> int:
        """Keys the last token of the span sees: everything before it, and itself."""
        return self.start + self.num_tokens


@dataclass(frozen=True, eq=False, slots=True)
class PrefillRows:
    """Rows of one prefill forward. Immutable: an implementation may keep what it derived for this very object."""

    spans: tuple[PrefillSpan, ...]
    slots: Tensor  # int64 [tokens]: block * block_size + offset, where each token's KV belongs


@dataclass(frozen=True, eq=False, slots=True)
class DecodeTables:
    """Block tables of the standing batch, int64 [rows, most blocks], padded with any block of the row itself.

    Immutable, replaced as a whole.
    """

    block_tables: Tensor


@dataclass(frozen=True, eq=False, slots=True)
class DecodeRows:
    """One decode step: each row has one token, at position `context_lens - 1`.

    `tables` is the same object for as long as no block table changes, so what derives from it may be kept.
    """

    tables: DecodeTables
    context_lens: Tensor  # int64 [rows]: keys each row sees, its own included; at least 1
    max_context_len: int
    slots: Tensor  # int64 [rows]


@dataclass(frozen=True, eq=False, slots=True)
class HybridRows:
    """A chunk and the standing batch in one forward: the chunk's tokens first, then one token per row. Each part is
    attended by the kernel of its phase."""

    prefill: PrefillRows
    decode: DecodeRows
    slots: Tensor  # int64 [tokens]: of both, in this order


class Attention(Protocol):
    """Owned by one executor and used from one thread. No method keeps a reference to an activation after it returns.

    Shapes: q [tokens, num_heads, head_dim]; kv [tokens, 2, num_kv_heads, head_dim], rotated keys first; out
    [tokens, num_heads * head_dim], overwritten. q and kv are views with a longer row stride (they are slices of the
    fused projection); their last dimension is contiguous. Query head h reads KV head h // (num_heads / num_kv_heads).
    """

    def write(self, layer: int, kv: Tensor, slots: Tensor) -> None:
        """Store keys and values of one layer at `slots`; touches nothing else of the pool."""
        ...

    def prefill(self, layer: int, q: Tensor, kv: Tensor, rows: PrefillRows, out: Tensor) -> None:
        """Causal attention of every span over its positions 0 .. start + i, limited by the layer's window.

        Called after `write` of the same layer; reads cached positions from the pool, the span's own from kv or pool.
        """
        ...

    def decode(self, layer: int, q: Tensor, rows: DecodeRows, out: Tensor) -> None:
        """Attention of one token per row over its `context_lens` keys in the pool, limited by the layer's window."""
        ...
