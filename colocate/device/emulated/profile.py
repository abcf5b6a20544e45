"""Time on a device that is not here: the latency model of the design, read from a profile file.

    prefill seconds = (a * sum(n) + b * sum(n * (r + n / 2)) + c) * contention     n new, r cached tokens of a row
    decode seconds  = (a * sum(context) + b * rows + c) * contention

Coefficients are given for some shares and interpolated between them. Contention applies while the other phase works.
"""

from __future__ import annotations

from bisect import bisect_left
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from colocate.errors import ConfigError

_NonNegative = Annotated[float, Meta(ge=0)]
_Units = Annotated[int, Meta(ge=1)]


class Coefficients(Struct, frozen=True, array_like=True):
    a: _NonNegative
    b: _NonNegative
    c: _NonNegative


class ShareProfile(Struct, frozen=True, forbid_unknown_fields=True):
    units: _Units
    prefill: Coefficients
    decode: Coefficients


class ContentionProfile(Struct, frozen=True, forbid_unknown_fields=True):
    """How much slower each phase is under this pair of shares while the other one works."""

    prefill_units: _Units
    decode_units: _Units
    prefill: Annotated[float, Meta(ge=1)] = 1.0
    decode: Annotated[float, Meta(ge=1)] = 1.0


class NoiseProfile(Struct, frozen=True, forbid_unknown_fields=True):
    """Relative jitter of every slice and step, and rare long ones."""

    seed: int = 0
    sigma: _NonNegative = 0.0  # standard deviation of the logarithm
    tail_probability: Annotated[float, Meta(ge=0, le=1)] = 0.0
    tail_factor: Annotated[float, Meta(ge=1)] = 1.0


class DeviceProfile(Struct, frozen=True, forbid_unknown_fields=True):
    """A profile file. Coefficients are in seconds."""

    name: str
    source: str  # where the numbers come from: measured how, or which formula
    units: _Units
    granularity: _Units
    num_layers: _Units  # a prefill forward is cut into this many slices
    shares: Annotated[list[ShareProfile], Meta(min_length=1)]
    contention: list[ContentionProfile] = []
    noise: NoiseProfile = NoiseProfile()
    eos_probability: Annotated[float, Meta(ge=0, le=1)] = 0.0  # of every drawn token, where the request has an EOS

    def coefficients(self, phase: str, num_units: int) -> Coefficients:
        """Linear between the two nearest shares; the nearest one's beyond the ends."""
        units = [share.units for share in self.shares]
        above = bisect_left(units, num_units)
        if above == 0:
            return _of(self.shares[0], phase)
        if above == len(units):
            return _of(self.shares[-1], phase)
        low, high = _of(self.shares[above - 1], phase), _of(self.shares[above], phase)
        part = (num_units - units[above - 1]) / (units[above] - units[above - 1])
        return Coefficients(
            low.a + part * (high.a - low.a), low.b + part * (high.b - low.b), low.c + part * (high.c - low.c)
        )

    def contention_of(self, phase: str, own_units: int, peer_units: int) -> float:
        """The factor of the nearest listed pair of shares; 1 where none is listed."""
        if not self.contention:
            return 1.0
        wanted = (own_units, peer_units) if phase == "prefill" else (peer_units, own_units)
        nearest = min(
            self.contention,
            key=lambda pair: abs(pair.prefill_units - wanted[0]) + abs(pair.decode_units - wanted[1]),
        )
        return nearest.prefill if phase == "prefill" else nearest.decode


def _of(share: ShareProfile, phase: str) -> Coefficients:
    return share.prefill if phase == "prefill" else share.decode


def load_profile(path: Path) -> DeviceProfile:
    """Read a YAML (or JSON) profile. Raises ConfigError naming the file and the key."""
    try:
        profile = msgspec.yaml.decode(path.read_bytes(), type=DeviceProfile)
    except OSError as error:
        raise ConfigError(str(path), f"cannot read the device profile: {error.strerror}", "check --profile") from None
    except msgspec.MsgspecError as error:
        raise ConfigError(str(path), f"not a device profile: {error}", "see configs/profiles for one") from None
    units = [share.units for share in profile.shares]
    if units != sorted(set(units)):
        raise ConfigError(f"{path}: shares", "must ascend in `units` without repetition")
    if units[-1] > profile.units:
        raise ConfigError(f"{path}: shares", f"name {units[-1]} units of a device that has {profile.units}")
    return profile
