"""Gumbel noise that is a pure function of (seed, choice, output position, token id).

The generator is SplitMix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators, OOPSLA 2014, section 3)
used as a counter: the 64-bit output for token `t` is `mix(key + (t + 1) * GAMMA)`, and `key` is itself a chain of `mix`
over seed, choice and position. `mix` is Stafford's variant 13 of the MurmurHash3 finaliser, the constants of which
stand below. Every value is computed by itself, so a draw needs neither state nor a cumulative sum, and a subset of the
vocabulary gets the same values as the whole.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Float64s: TypeAlias = NDArray[np.float64]
UInt64s: TypeAlias = NDArray[np.uint64]

GAMMA = 0x9E3779B97F4A7C15  # 2**64 / golden ratio, odd
MULTIPLIER_1 = 0xBF58476D1CE4E5B9
MULTIPLIER_2 = 0x94D049BB133111EB
_MASK = 2**64 - 1


def mix(x: int) -> int:
    """Bijection of 64-bit integers with good avalanche."""
    x = ((x ^ (x >> 30)) * MULTIPLIER_1) & _MASK
    x = ((x ^ (x >> 27)) * MULTIPLIER_2) & _MASK
    return x ^ (x >> 31)


def noise_key(seed: int, choice: int, position: int) -> int:
    """Start of the counter of one draw. Each part is absorbed by a full mix, so neighbouring seeds share nothing."""
    key = mix((seed + GAMMA) & _MASK)
    key = mix((key ^ choice) + GAMMA & _MASK)
    return mix((key ^ position) + GAMMA & _MASK)


def token_counters(token_ids: NDArray[np.int64]) -> UInt64s:
    """`(t + 1) * GAMMA` for each token: the part of the counter that does not depend on the draw."""
    return (token_ids.astype(np.uint64) + np.uint64(1)) * np.uint64(GAMMA)


def uniform(key: int, counters: UInt64s) -> Float64s:
    """52-bit uniforms in the open interval (0, 1): `(n + 1/2) / 2**52`, each exact in a double, never 0 or 1."""
    x = counters + np.uint64(key)
    x ^= x >> np.uint64(30)
    x *= np.uint64(MULTIPLIER_1)
    x ^= x >> np.uint64(27)
    x *= np.uint64(MULTIPLIER_2)
    x ^= x >> np.uint64(31)
    x >>= np.uint64(12)
    u = x.astype(np.float64)
    u += 0.5
    u *= 2.0**-52
    return u


def gumbel(key: int, counters: UInt64s) -> Float64s:
    """Standard Gumbel noise, `-log(-log(u))`, for the tokens that `counters` came from."""
    g = uniform(key, counters)
    np.log(g, out=g)
    np.negative(g, out=g)
    np.log(g, out=g)
    np.negative(g, out=g)
    return g
