"""Which states are measured: batches of prompts and standing batches, spread over all that a run may meet.

State i of a phase depends on the limits, the seed and i alone, so a longer budget measures the same states and more.
The corners come first; the rest is a low-discrepancy sequence, shifted by the seed, in which the two phases take
different coordinates: states of the same index also cover the pairs of states evenly.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from functools import cache

_SMALL_TOKENS = 16
_MIN_NEW_TOKENS = 4
_ROWS_OF_A_BATCH = (1, 1, 1, 2, 3, 6)  # most prefill forwards hold one prompt
_SHARE_WITHOUT_CACHE = 0.35
NUM_CORNERS = 5  # states below this index are the extremes of their phase


@dataclass(frozen=True, slots=True)
class Limits:
    """What this run allows. The pool is halved between the phases, so that both can work at once."""

    max_new_tokens: int  # of one prefill forward
    max_context: int  # tokens of one row, before it is stepped or prefilled further
    max_rows: int  # of the standing batch
    prefill_blocks: int
    decode_blocks: int
    block_size: int
    step_room: int  # positions that each standing row keeps free to grow into


@dataclass(frozen=True, slots=True)
class PrefillState:
    """One forward: (new, cached) tokens of each row."""

    rows: tuple[tuple[int, int], ...]

    @property
    def linear(self) -> int:
        return sum(new for new, _ in self.rows)

    @property
    def pairs(self) -> float:
        return sum(new * (cached + new / 2) for new, cached in self.rows)


@dataclass(frozen=True, slots=True)
class DecodeState:
    """A standing batch: tokens of KV of each row before its first step."""

    contexts: tuple[int, ...]


def limits_of(
    max_num_batched_tokens: int, max_num_seqs: int, max_model_len: int, num_blocks: int, block_size: int
) -> Limits:
    step_room = max(1, min(64, max_model_len // 4))
    prefill_blocks = max(1, num_blocks // 2)
    decode_blocks = max(1, num_blocks - prefill_blocks)
    max_new = max(1, min(max_num_batched_tokens, max_model_len - 1, prefill_blocks * block_size - 1))
    whole_blocks = max_model_len // block_size * block_size or max_model_len  # a row stops at the end of its blocks
    longest = min(whole_blocks, decode_blocks * block_size) - step_room
    return Limits(
        max_new_tokens=max_new,
        max_context=max(1, longest),
        max_rows=max_num_seqs,
        prefill_blocks=prefill_blocks,
        decode_blocks=decode_blocks,
        block_size=block_size,
        step_room=step_room,
    )


def prefill_state(limits: Limits, seed: int, index: int) -> PrefillState:
    small = min(_SMALL_TOKENS, limits.max_new_tokens)
    most = limits.max_new_tokens
    corners = (
        ((most, 0),),
        ((small, 0),),
        ((most, limits.max_context),),
        ((small, limits.max_context),),
        tuple((max(1, most // 4), 0) for _ in range(min(4, most))),
    )
    if index < len(corners):
        return _fit_prefill(limits, corners[index])
    draw = random.Random(f"prefill/{seed}/{index}")
    num_rows = draw.choice(_ROWS_OF_A_BATCH)
    new = _between(_MIN_NEW_TOKENS, most, _place(seed, "new", index))
    rows: list[tuple[int, int]] = []
    for share in _shares(draw, new, num_rows):
        has_cache = draw.random() >= _SHARE_WITHOUT_CACHE
        place = draw.random() if rows else _place(seed, "cached", index)
        rows.append((share, _between(_SMALL_TOKENS, limits.max_context, place) if has_cache else 0))
    return _fit_prefill(limits, tuple(rows))


def decode_state(limits: Limits, seed: int, index: int) -> DecodeState:
    small, most, longest = min(_SMALL_TOKENS, limits.max_context), limits.max_rows, limits.max_context
    corners = ((1, small), (1, longest), (most, small), (most, longest))
    draw = random.Random(f"decode/{seed}/{index}")
    if index < len(corners):
        num_rows, mean = corners[index]
        spread = 0.0
    else:
        num_rows = _between(1, most, _place(seed, "rows", index))
        mean = _between(small, longest, _place(seed, "context", index))
        spread = 0.5
    contexts = [max(1, min(longest, round(mean * draw.uniform(1 - spread, 1 + spread)))) for _ in range(num_rows)]
    return DecodeState(tuple(_fit_decode(limits, contexts)))


def _fit_prefill(limits: Limits, rows: tuple[tuple[int, int], ...]) -> PrefillState:
    """Cut until the model's length and the pool hold every row; the cached part goes first."""
    rows = rows[: limits.prefill_blocks]
    per_row = limits.prefill_blocks // len(rows) * limits.block_size
    longest = max(1, min(per_row, limits.max_context + limits.step_room) - 1)
    fitted = ((min(new, longest), cached) for new, cached in rows)
    return PrefillState(tuple((new, max(0, min(cached, longest - new))) for new, cached in fitted))


def _fit_decode(limits: Limits, contexts: list[int]) -> list[int]:
    """Scaled down where the pool does not hold them with room to step."""
    blocks_of = -(-limits.step_room // limits.block_size)
    free = (limits.decode_blocks - len(contexts) * (blocks_of + 1)) * limits.block_size
    total = sum(contexts)
    if total <= max(free, 0):
        return contexts
    keep = max(1, min(len(contexts), limits.decode_blocks // (blocks_of + 2)))
    contexts = contexts[:keep]
    free = (limits.decode_blocks - keep * (blocks_of + 1)) * limits.block_size
    scale = min(1.0, max(free, keep) / sum(contexts))
    return [max(1, int(context * scale)) for context in contexts]


def _shares(draw: random.Random, total: int, parts: int) -> list[int]:
    """`total` cut at random places into at most `parts` positive parts."""
    parts = min(parts, total)
    cuts = sorted(draw.sample(range(1, total), parts - 1))
    return [high - low for low, high in zip([0, *cuts], [*cuts, total], strict=True)]


def _between(low: int, high: int, place: float) -> int:
    """Uniform in the logarithm, `place` in 0 to 1."""
    low = min(low, high)
    return max(low, min(high, round(math.exp(math.log(low) + place * (math.log(high) - math.log(low))))))


# Reciprocal powers of the root of x^5 = x + 1: additive steps whose points fill four dimensions evenly at any length
# (M. Roberts, The unreasonable effectiveness of quasirandom sequences, 2018).
_STEPS = {name: 1.1673039782614187**-power for power, name in enumerate(("new", "cached", "rows", "context"), 1)}


def _place(seed: int, name: str, index: int) -> float:
    """Coordinate `name` of point `index`, in 0 to 1."""
    return (_shift(seed, name) + index * _STEPS[name]) % 1.0


@cache
def _shift(seed: int, name: str) -> float:
    return random.Random(f"{name}/{seed}").random()
