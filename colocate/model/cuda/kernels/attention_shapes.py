"""Tile sizes of the attention kernels, in one place for whoever has a GPU and can measure.

The values were chosen on paper: registers and shared memory as the compile check for sm_90 reports them
(tests/cuda/test_attention_compiles.py), no spills, and at least two tiles of keys and values in flight. None was timed
yet. To try others on a GPU: `gpu_suite --only kernels` prints seconds per shape; change a line here and look again.

Imports no triton: planners and memory budgets read it, too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from colocate.errors import ConfigError


@dataclass(frozen=True, slots=True)
class PrefillShape:
    """One program takes `block_m` rows of (query position, query head of one group) and walks over `block_n` keys.

    `num_stages` counts Triton's pipeline stages. A key's address needs the block table, so loads form a chain of two
    and each link gets half of the stages: 5 stages keep two tiles ahead, 3 keep one.
    """

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int


@dataclass(frozen=True, slots=True)
class DecodeShape:
    """One program walks over its part of a row's keys, `block_n` at a time; stages as in PrefillShape."""

    block_n: int
    num_warps: int
    num_stages: int


# By (head_dim rounded up to a power of two, bytes of an element).
_PREFILL: Mapping[tuple[int, int], PrefillShape] = {
    (32, 2): PrefillShape(64, 64, 4, 5),
    (64, 2): PrefillShape(128, 64, 8, 5),
    (128, 2): PrefillShape(128, 64, 8, 5),
    (256, 2): PrefillShape(128, 32, 8, 5),
    # float32 runs without tensor cores, for models small enough not to mind.
    (32, 4): PrefillShape(32, 32, 4, 1),
    (64, 4): PrefillShape(32, 32, 4, 1),
    (128, 4): PrefillShape(32, 32, 8, 1),
    (256, 4): PrefillShape(16, 16, 8, 1),
}
_DECODE: Mapping[tuple[int, int], DecodeShape] = {
    (32, 2): DecodeShape(128, 4, 5),
    (64, 2): DecodeShape(128, 4, 5),
    (128, 2): DecodeShape(64, 4, 5),
    (256, 2): DecodeShape(32, 4, 5),
    (32, 4): DecodeShape(32, 4, 1),
    (64, 4): DecodeShape(32, 4, 1),
    (128, 4): DecodeShape(32, 4, 1),
    (256, 4): DecodeShape(16, 4, 1),
}

DECODE_ITEMS_PER_SM = 8
"""Parts that a decode step is cut into, per SM: about three run at once, so the last wave idles a tenth of the time."""

DECODE_MIN_TILES = 2
"""A part has at least so many key tiles (unless the row is shorter): less costs more in merging than it wins."""

_FEW_SMS = 8
"""What a grid is made for where the share has no SMs of its own to count (`num_sms` 0)."""


@dataclass(frozen=True, slots=True)
class AttentionShapes:
    """What one model runs with. Other values are for tests and tuning."""

    prefill: PrefillShape
    decode: DecodeShape
    items_per_sm: int = DECODE_ITEMS_PER_SM
    min_tiles: int = DECODE_MIN_TILES

    @staticmethod
    def of(head_dim: int, element_bytes: int) -> AttentionShapes:
        """Raises ConfigError for a head_dim without a measured or reasoned shape."""
        key = (power_of_two(head_dim, 32), element_bytes)
        if key not in _PREFILL:
            problem = f"head_dim {head_dim} with {element_bytes} bytes per element has no attention kernel"
            raise ConfigError("model.head_dim", problem, "head_dim up to 256, in bfloat16 or float32")
        return AttentionShapes(_PREFILL[key], _DECODE[key])

    @staticmethod
    def interpreted() -> AttentionShapes:
        """For Triton's interpreter, which pays for every operation, whatever its size, and has nothing in parallel."""
        return AttentionShapes(PrefillShape(128, 128, 1, 1), DecodeShape(128, 1, 1), items_per_sm=1, min_tiles=1 << 20)

    def prefill_for(self, group: int) -> PrefillShape:
        """A tile holds at least one position of every query head of a group."""
        return replace(self.prefill, block_m=max(self.prefill.block_m, power_of_two(group, 1)))

    def decode_slots(self, num_sms: int, num_kv_heads: int) -> int:
        """Parts per KV head that a step of a share of `num_sms` aims at."""
        return max(1, -(-(num_sms or _FEW_SMS) * self.items_per_sm // num_kv_heads))


def power_of_two(number: int, least: int) -> int:
    """The smallest power of two that is no less than either."""
    return max(least, 1 << (number - 1).bit_length())
