# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
"""`model/noise.py` on the device: the same 64-bit integers, and Gumbel noise of them in float32.

The integers are equal bit for bit. Noise differs from the host's double precision by less than 1e-6 + 2e-7 * |noise|
where `log` is exact to float32 (the interpreter), and by less than 1e-5 + 1e-6 * |noise| with the GPU's approximate
logarithm (PTX `lg2.approx.f32`: absolute error 2^-22 between 0.5 and 2, relative 2^-22 elsewhere). Near u = 1, where a
float32 u would lose the tail that wins draws, the exponential variate -log(u) is a series in 1 - u.
"""

from __future__ import annotations

import triton
import triton.language as tl

from colocate.model import noise

_GAMMA: tl.constexpr = tl.constexpr(noise.GAMMA)
_MULTIPLIER_1: tl.constexpr = tl.constexpr(noise.MULTIPLIER_1)
_MULTIPLIER_2: tl.constexpr = tl.constexpr(noise.MULTIPLIER_2)
_TOP: tl.constexpr = tl.constexpr(2**52 - 1)
_HALF: tl.constexpr = tl.constexpr(2**51)
_ULP: tl.constexpr = tl.constexpr(2.0**-52)


@triton.jit
def _mix(x):
    """Bijection of uint64: `noise.mix`."""
    x = (x ^ (x >> 30)) * _MULTIPLIER_1
    x = (x ^ (x >> 27)) * _MULTIPLIER_2
    return x ^ (x >> 31)


@triton.jit
def noise_key(seed_key, position):
    """uint64 counter of one draw from the chain over seed and choice (int64 bits) and the output position (int32)."""
    chain = seed_key.to(tl.uint64, bitcast=True)
    return _mix((chain ^ position.to(tl.int64).to(tl.uint64, bitcast=True)) + _GAMMA)


@triton.jit
def noise_bits(key, tokens):
    """The upper 52 bits for each token (int32), as uint64: what `noise.uniform` calls n."""
    counters = (tokens.to(tl.int64).to(tl.uint64, bitcast=True) + 1) * _GAMMA
    return _mix(counters + key) >> 12


@triton.jit
def gumbel(bits):
    """-log(-log((n + 1/2) / 2**52)) in float32."""
    upper = bits >= _HALF
    # The distance to the nearer end of (0, 1), at most 1/2, with 24 significant bits wherever it lies.
    near = (tl.where(upper, _TOP - bits, bits).to(tl.int64).to(tl.float32) + 0.5) * _ULP
    # -log(1 - v) = 2 artanh(v / (2 - v)); the first term left out is below 2e-8 of the sum.
    s = near / (2.0 - near)
    t = s * s
    series = 1.0 + t * (
        1.0 / 3 + t * (1.0 / 5 + t * (1.0 / 7 + t * (1.0 / 9 + t * (1.0 / 11 + t * (1.0 / 13 + t * (1.0 / 15))))))
    )
    exponential = tl.where(upper, 2.0 * s * series, -tl.log(near))
    return -tl.log(exponential)
