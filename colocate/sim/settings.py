"""What one simulated run is told: the device, what the engine believes of it, and the engine's own settings."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

import msgspec

from colocate.config.profile import Coefficients, ContentionProfile, DeviceProfile, NoiseProfile, ShareProfile
from colocate.config.serve import Mode
from colocate.config.slo import SloClass
from colocate.core.settings import ALL_GUARDS, EngineSettings
from colocate.errors import ConfigError

MAX_BEND = 2.0  # standard deviations: one unlucky draw must not invent a device that no fit would produce


@dataclass(frozen=True, slots=True, kw_only=True)
class SimSettings:
    """Names that `serve` has mean the same here.

    `profile` is where the device's own times come from (`sim/truth.py`), `latency_profile` what the engine predicts
    from; both are the same file by default, and differ by `truth_error` and `prediction_error` all the same.
    """

    profile: DeviceProfile
    latency_profile: DeviceProfile | None = None  # None: `profile`
    prediction_error: float = 0.0  # bends what the engine believes: sigma of the logarithm, per share and phase
    truth_error: float = 0.05  # how far the device is from its own formula: sigma of the logarithm, see truth.py
    noise: NoiseProfile | None = None  # None: the profile's
    seed: int = 0  # of the device and of the bend
    kv_tokens: int = 0  # tokens the KV pool holds; 0: what the profile says
    block_size: int = 16
    mode: Mode = "colocated"
    plan: str = "elastic"
    candidates: tuple[str, ...] = ()
    best_static: str = ""
    shadow: str | None = None
    guards: tuple[str, ...] = ALL_GUARDS
    discipline: str = "fcfs"
    admission: str = "greedy"
    prefix_caching: bool = True
    slo_classes: tuple[SloClass, ...] = ()
    default_slo_class: str = ""
    max_slice_ms: float = 20.0
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 2048
    max_queue: int = 4096
    # One way between two processes, and from one slice or step to the next in a worker. Measured on two cores
    # (benchmarks/results/runtime_overhead.json): a hand-over, which is two ways and a turn, takes 0.53 ms.
    message_s: float = 2e-4
    turn_s: float = 1e-4
    switch_s: float = 0.0  # what taking another share costs a worker
    drain_s: float = 60.0  # how long requests may finish after the last arrival; the rest is unfinished


def engine_settings(settings: SimSettings) -> EngineSettings:
    """The core's settings. Raises ConfigError."""
    profile = settings.profile
    kv_tokens = settings.kv_tokens or profile.kv_tokens
    if not kv_tokens:
        problem = f"profile {profile.name!r} does not say how many tokens of KV its device holds"
        raise ConfigError("kv_tokens", problem, "give --kv-tokens")
    if kv_tokens < settings.block_size:
        problem = f"{kv_tokens} tokens are less than one block of {settings.block_size}"
        raise ConfigError(
            "kv_tokens", problem, f"give --kv-tokens {settings.block_size} or more, or a smaller --block-size"
        )
    believed = settings.latency_profile or profile
    if believed.units != profile.units:
        problem = f"is for {believed.units} units, the simulated device has {profile.units}"
        raise ConfigError("latency_profile", problem, "give a profile of the same device")
    core = EngineSettings(
        num_blocks=kv_tokens // settings.block_size,
        block_size=settings.block_size,
        max_num_seqs=settings.max_num_seqs,
        max_num_batched_tokens=settings.max_num_batched_tokens,
        max_queue=settings.max_queue,
        total_units=profile.units,
        unit_granularity=profile.granularity,
        mode=settings.mode,
        plan=settings.plan,
        shadow=settings.shadow,
        guards=settings.guards,
        candidates=settings.candidates,
        best_static=settings.best_static,
        discipline=settings.discipline,
        admission=settings.admission,
        prefix_caching=settings.prefix_caching,
        slo_classes=settings.slo_classes,
        default_slo_class=settings.default_slo_class,
        max_slice_ms=settings.max_slice_ms,
        latency=bend(believed, settings.prediction_error, settings.seed),
    )
    core.check()
    return core


def bend(profile: DeviceProfile, error: float, seed: int) -> DeviceProfile:
    """What the engine believes: without samples, every share's phases off by exp(error * N(0, 1)), seeded.

    Shares err independently, so the shape of the curves is wrong and not only their height, which online correction
    would learn. The excess of contention errs likewise.
    """
    rng = random.Random(f"{seed}/prediction")

    def off() -> float:
        return math.exp(error * max(-MAX_BEND, min(rng.gauss(0.0, 1.0), MAX_BEND)))

    return msgspec.structs.replace(
        profile,
        shares=[
            ShareProfile(share.units, _times(share.prefill, off()), _times(share.decode, off()))
            for share in profile.shares
        ],
        contention=[
            ContentionProfile(
                pair.prefill_units, pair.decode_units, 1 + (pair.prefill - 1) * off(), 1 + (pair.decode - 1) * off()
            )
            for pair in profile.contention
        ],
        samples=[],
    )


def _times(k: Coefficients, factor: float) -> Coefficients:
    return Coefficients(k.a * factor, k.b * factor, k.c * factor, k.d * factor)
