"""A device profile: how long prefill and decode take on each share of one device, for one model.

    prefill seconds = (a * sum(n) + b * pairs + c + d * pairs / sum(n)) * contention    pairs = sum(n * (r + n / 2))
    decode seconds  = (a * sum(context) + b * rows + c) * contention                    n new, r cached tokens of a row

pairs / sum(n) is the mean context of the new tokens: d is what it costs to read keys and values once, however few
tokens look at them. Sixteen new tokens behind 8,000 cached ones take ten times as long as sixteen alone.

Coefficients are given for some shares; `core/latency.py` interpolates between them. Contention applies while the other
phase works. The same file feeds the engine's latency model, the emulated device and the simulator. `colocate profile`
writes it; a roofline prior stands in for it where nothing was measured, and says so in `kind`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

from colocate.errors import ConfigError

PROFILE_VERSION = 1

_NonNegative = Annotated[float, Meta(ge=0)]
_Units = Annotated[int, Meta(ge=1)]
Phase = Literal["prefill", "decode"]


class Coefficients(Struct, frozen=True, array_like=True):
    a: _NonNegative
    b: _NonNegative
    c: _NonNegative
    d: _NonNegative = 0.0  # of prefill alone


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
    """How the device itself differs from its formula, for the emulated device and the simulator: relative jitter of
    every slice and step, rare long ones, and constant errors. The engine's latency model never reads this."""

    seed: int = 0
    prefill_bias: Annotated[float, Meta(gt=0)] = 1.0  # true seconds over the formula's
    decode_bias: Annotated[float, Meta(gt=0)] = 1.0
    contention_bias: _NonNegative = 1.0  # true excess (factor - 1) over the profile's
    sigma: _NonNegative = 0.0  # standard deviation of the logarithm
    tail_probability: Annotated[float, Meta(ge=0, le=1)] = 0.0
    tail_factor: Annotated[float, Meta(ge=1)] = 1.0


class Sample(Struct, frozen=True, array_like=True):
    """One measured forward or step. `linear` and `pairs` are the two sums of the formula: for prefill sum(n) and
    sum(n * (r + n / 2)), for decode sum(context) and rows. `peer_units` is 0 where the other phase was idle."""

    phase: Phase
    units: int
    peer_units: int
    linear: float
    pairs: float
    seconds: float
    held_out: bool = False  # not used by the fit


class FitError(Struct, frozen=True, forbid_unknown_fields=True):
    """|predicted - measured| / measured over held-out samples of one phase."""

    phase: Phase
    contended: bool
    num_samples: int
    p50: float
    p95: float
    max: float
    within_15_percent: float  # share of the samples, 0 to 1


class DeviceProfile(Struct, frozen=True, forbid_unknown_fields=True):
    """A profile file. Coefficients are in seconds."""

    name: str  # of the device, as `colocate doctor` prints it
    source: str  # where the numbers come from: measured how, or which formula
    units: _Units
    granularity: _Units
    num_layers: _Units  # a prefill forward is cut into at most this many slices
    shares: Annotated[list[ShareProfile], Meta(min_length=1)]
    contention: list[ContentionProfile] = []
    noise: NoiseProfile = NoiseProfile()
    eos_probability: Annotated[float, Meta(ge=0, le=1)] = 0.0  # of every drawn token, where the request has an EOS
    version: int = PROFILE_VERSION
    kind: Literal["measured", "roofline"] = "roofline"
    model: str = ""  # the model's name; empty where it is not about one model
    dtype: str = ""
    kv_tokens: Annotated[int, Meta(ge=0)] = (
        0  # tokens of KV that the device's memory holds beside the weights; 0: unknown
    )
    samples: list[Sample] = []
    errors: list[FitError] = []
    versions: dict[str, str] = {}  # of this package, torch, the operating system's kernel ...
    created: str = ""  # ISO 8601, UTC

    @property
    def is_measured(self) -> bool:
        return self.kind == "measured"


def load_profile(path: Path) -> DeviceProfile:
    """Read a JSON or YAML profile. Raises ConfigError naming the file and the key."""
    try:
        data = path.read_bytes()
        decode = msgspec.json.decode if path.suffix == ".json" else msgspec.yaml.decode
        profile = decode(data, type=DeviceProfile)
    except OSError as error:
        raise ConfigError(str(path), f"cannot read the device profile: {error.strerror}", "check --profile") from None
    except msgspec.MsgspecError as error:
        raise ConfigError(str(path), f"not a device profile: {error}", "see configs/profiles for one") from None
    if profile.version != PROFILE_VERSION:
        problem = f"profile version {profile.version}, this program reads {PROFILE_VERSION}"
        raise ConfigError(f"{path}: version", problem, "measure again with `colocate profile`")
    units = [share.units for share in profile.shares]
    if units != sorted(set(units)):
        problem = f"must ascend in `units` without repetition, are {', '.join(map(str, units))}"
        raise ConfigError(f"{path}: shares", problem, "sort them and keep one of each")
    if units[-1] > profile.units:
        problem = f"name {units[-1]} units of a device that has {profile.units}"
        remedy = f"drop the shares over {profile.units}, or give the device's own `units`"
        raise ConfigError(f"{path}: shares", problem, remedy)
    return profile


def check_profile_fits(
    profile: DeviceProfile,
    where: str,
    units: int,
    device: str | None,
    model: str | None,
    remedy: str = "measure this one with `colocate profile`, or drop the option",
) -> None:
    """Refuse a profile of another device or model. None skips that check. Raises ConfigError."""
    if profile.units != units:
        raise ConfigError(where, f"is for a device of {profile.units} units, this one has {units}", remedy)
    if device is not None and profile.name != device:
        raise ConfigError(where, f"is for device {profile.name!r}, this is {device!r}", remedy)
    if model is not None and profile.model and profile.model != model:
        raise ConfigError(where, f"is for model {profile.model!r}, this run serves {model!r}", remedy)
