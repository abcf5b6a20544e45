"""Deterministic tokens: a hash of (seed, choice, output position), whatever else is in the batch."""

from __future__ import annotations

from collections.abc import Collection

_MASK = (1 << 64) - 1
# Odd constants with well-mixed bits (fractional parts of the golden ratio and of the square root of 2).
_SEED_STEP = 0x9E3779B97F4A7C15
_POSITION_STEP = 0x6A09E667F3BCC909
_EOS_SCALE = 1 << 32

# Tokenizers keep special tokens and single bytes at the low end; words follow, the common ones first.
_FIRST_WORD_ID = 300
_LAST_COMMON_ID = 32_000


def row_key(seed: int, choice: int) -> int:
    """What stays the same over a row's life."""
    key = ((seed ^ (choice << 48)) * _SEED_STEP + 1) & _MASK
    return key ^ (key >> 31)


def mix(key: int, position: int) -> int:
    """64 well-mixed bits."""
    bits = (key + (position + 1) * _POSITION_STEP) & _MASK
    bits = ((bits ^ (bits >> 29)) * _SEED_STEP) & _MASK
    return bits ^ (bits >> 32)


class TokenDraw:
    """Draws among ids that read as words, never a reserved id; EOS as often as `eos_probability` says."""

    def __init__(self, vocab_size: int, eos_probability: float = 0.0, reserved: Collection[int] = ()) -> None:
        first = min(_FIRST_WORD_ID, vocab_size // 2)
        self._ids = [
            token_id for token_id in range(first, min(vocab_size, _LAST_COMMON_ID)) if token_id not in reserved
        ]
        self._eos_below = int(eos_probability * _EOS_SCALE)

    def token(self, key: int, position: int, eos_token_ids: tuple[int, ...] = ()) -> int:
        """The token of an output position. `eos_token_ids` of the request, in order; the first may be drawn."""
        bits = mix(key, position)
        if eos_token_ids:
            if bits % _EOS_SCALE < self._eos_below:
                return eos_token_ids[0]
            token_id = self._ids[(bits >> 32) % len(self._ids)]
            while token_id in eos_token_ids and len(self._ids) > len(eos_token_ids):
                bits = mix(bits, position)
                token_id = self._ids[(bits >> 32) % len(self._ids)]
            return token_id
        return self._ids[(bits >> 32) % len(self._ids)]
