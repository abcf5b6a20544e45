"""The latency model: seconds of a prefill forward and of a decode step, on any share, alone and contended.

Formula and coefficients are those of `config/profile.py`. Between two profiled shares a coefficient is linear in
1 / units: work that scales with the share is then exact, work that does not (a saturated memory bus) as well. Beyond
the ends the nearest share holds.

Hybrid forwards (mode `chunked`) run a chunk and the standing batch together. The weights are read once and the matrix
products see chunk tokens and rows alike, so

    hybrid seconds = max(a_p * (n + rows) + c_p, b_d * rows + c_d) + b_p * pairs + d_p * pairs / n
                     + a_d * sum(context)

with subscript p of prefill and d of decode: the roofline argument of Sarathi-Serve (arXiv 2403.02310, section 3).
"""

from __future__ import annotations

import math
from bisect import bisect_left

from colocate.config.profile import Coefficients, ContentionProfile, DeviceProfile, Phase, ShareProfile

# Online correction: weight of the newest residual, and how far the model may be bent away from its profile.
RESIDUAL_WEIGHT = 0.02
MAX_CORRECTION = 2.0


class LatencyModel:
    """Owned by one engine (or one study). Coefficients of every whole number of units are computed once, at birth, so
    a prediction is a few multiplications."""

    def __init__(self, profile: DeviceProfile) -> None:
        self.profile = profile
        self._prefill = [_interpolate(profile.shares, "prefill", units) for units in range(profile.units + 1)]
        self._decode = [_interpolate(profile.shares, "decode", units) for units in range(profile.units + 1)]
        self._factors: dict[tuple[int, int], tuple[float, float]] = {}
        self._log_correction: dict[str, float] = {"prefill": 0.0, "decode": 0.0}
        self._corrections: dict[str, float] = {"prefill": 1.0, "decode": 1.0}
        self.mean_error: dict[str, float] = {"prefill": 0.0, "decode": 0.0}

    def prefill_s(self, units: int, linear: float, pairs: float, peer_units: int = 0) -> float:
        """One forward over rows of n new and r cached tokens: `linear` = sum(n), `pairs` = sum(n * (r + n / 2))."""
        k = self._prefill[units]
        context = pairs / linear if linear else 0.0
        seconds = (k.a * linear + k.b * pairs + k.c + k.d * context) * self._corrections["prefill"]
        return seconds * self.contention(units, peer_units)[0] if peer_units else seconds

    def decode_s(self, units: int, sum_context: float, rows: float, peer_units: int = 0) -> float:
        """One step of `rows` rows with `sum_context` tokens of KV together."""
        k = self._decode[units]
        seconds = (k.a * sum_context + k.b * rows + k.c) * self._corrections["decode"]
        return seconds * self.contention(peer_units, units)[1] if peer_units else seconds

    def hybrid_s(self, units: int, linear: float, pairs: float, sum_context: float, rows: float) -> float:
        """One forward of mode `chunked`: a chunk and the standing batch together."""
        p, d = self._prefill[units], self._decode[units]
        products_s = max(p.a * (linear + rows) + p.c if linear else 0.0, d.b * rows + d.c if rows else 0.0)
        context = pairs / linear if linear else 0.0
        seconds = products_s + p.b * pairs + p.d * context + d.a * sum_context
        return seconds * self._corrections["prefill" if linear else "decode"]

    def contention(self, prefill_units: int, decode_units: int) -> tuple[float, float]:
        """Factors (prefill, decode) while both work on these shares: inverse-distance mean of the profiled pairs."""
        key = (prefill_units, decode_units)
        factors = self._factors.get(key)
        if factors is None:
            factors = self._factors[key] = _contention(self.profile.contention, self.profile.units, *key)
        return factors

    def observe(self, phase: Phase, predicted_s: float, measured_s: float) -> None:
        """Learn from a finished forward or step. `predicted_s` includes the correction of its time.

        One residual moves the model by RESIDUAL_WEIGHT, and never beyond MAX_CORRECTION: a preempted process or one
        long tail must not make the controller believe in another device.
        """
        if predicted_s <= 0.0 or measured_s <= 0.0:
            return
        ratio = measured_s / predicted_s
        limit = math.log(MAX_CORRECTION)
        moved = self._log_correction[phase] + RESIDUAL_WEIGHT * math.log(min(max(ratio, 1 / math.e), math.e))
        self._log_correction[phase] = max(-limit, min(moved, limit))
        self._corrections[phase] = math.exp(self._log_correction[phase])
        self.mean_error[phase] += RESIDUAL_WEIGHT * (min(abs(ratio - 1.0), 4.0) - self.mean_error[phase])

    def correction(self, phase: Phase) -> float:
        """The factor learnt online."""
        return self._corrections[phase]


def _of(share: ShareProfile, phase: Phase) -> Coefficients:
    return share.prefill if phase == "prefill" else share.decode


def _interpolate(shares: list[ShareProfile], phase: Phase, num_units: int) -> Coefficients:
    units = [share.units for share in shares]
    above = bisect_left(units, num_units)
    if above == 0:
        return _of(shares[0], phase)
    if above == len(units):
        return _of(shares[-1], phase)
    low, high = _of(shares[above - 1], phase), _of(shares[above], phase)
    near, far = 1 / units[above - 1], 1 / units[above]
    part = (near - 1 / num_units) / (near - far)
    return Coefficients(
        low.a + part * (high.a - low.a),
        low.b + part * (high.b - low.b),
        low.c + part * (high.c - low.c),
        low.d + part * (high.d - low.d),
    )


def _contention(
    pairs: list[ContentionProfile], total_units: int, prefill_units: int, decode_units: int
) -> tuple[float, float]:
    """Shares that overlap contend for cores as well as for memory, so only pairs of the same kind are compared."""
    overlaps = prefill_units + decode_units > total_units
    same = [pair for pair in pairs if (pair.prefill_units + pair.decode_units > total_units) == overlaps]
    if not same:
        return (2.0, 2.0) if overlaps else (1.0, 1.0)
    weights: list[float] = []
    for pair in same:
        distance = abs(pair.prefill_units - prefill_units) + abs(pair.decode_units - decode_units)
        if distance == 0:
            return pair.prefill, pair.decode
        weights.append(1 / distance)
    total = sum(weights)
    return (
        sum(weight * pair.prefill for weight, pair in zip(weights, same, strict=True)) / total,
        sum(weight * pair.decode for weight, pair in zip(weights, same, strict=True)) / total,
    )


def roofline_profile(
    *,
    device: str,
    model: str,
    units: int,
    granularity: int,
    num_layers: int,
    hidden_size: int,
    num_parameters: int,
    weight_bytes: int,
    kv_bytes_per_token: int,
    flops_per_s: float,
    bytes_per_s: float,
    saturating_units: int,
    launch_s: float = 5e-4,
) -> DeviceProfile:
    """A prior from the device's properties, for where nothing was measured. It carries no verdict.

    With F(s) = flops_per_s * s / units and B(s) = bytes_per_s * min(1, s / saturating_units) for a share of s units,
    P parameters, L layers of width h (roofline: Williams et al., CACM 52(4), 2009; attention FLOPs as in Kaplan et al.,
    arXiv 2001.08361, table 1):
      prefill  a = 2 P / F        b = 4 L h / F      c = weight_bytes / B + 2 launch_s
      decode   a = kv_bytes / B   b = 2 P / F        c = weight_bytes / B + launch_s
    """
    shares = []
    for share in sorted({*range(granularity, units + 1, granularity), units}):
        flops = flops_per_s * share / units
        bandwidth = bytes_per_s * min(1.0, share / saturating_units)
        weights_s = weight_bytes / bandwidth
        shares.append(
            ShareProfile(
                share,
                Coefficients(
                    2 * num_parameters / flops, 4 * num_layers * hidden_size / flops, weights_s + 2 * launch_s
                ),
                Coefficients(kv_bytes_per_token / bandwidth, 2 * num_parameters / flops, weights_s + launch_s),
            )
        )
    return DeviceProfile(
        name=device,
        source="roofline prior from peak rates, not measured (core/latency.py: roofline_profile)",
        units=units,
        granularity=granularity,
        num_layers=num_layers,
        shares=shares,
        kind="roofline",
        model=model,
    )
