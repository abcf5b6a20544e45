"""What is compared: every static plan, `elastic`, `shared`, `chunked` swept, the dynamic policies, and a bound."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from msgspec import structs

from colocate.config.profile import DeviceProfile
from colocate.core.plan import build_plan_table

CHUNK_SIZES = (256, 512, 1024, 2048, 4096, 8192)
ELASTIC_DECODE_UNITS = (16, 24, 40, 56)
MAX_NUM_SEQS = 512
GUARDS = ("hysteresis", "dwell", "decode-first", "fallback")


@dataclass(frozen=True, slots=True)
class Arm:
    """`settings` are those of SimSettings. `group`: static, elastic, shared, chunked, dynamic, ablation, bound.
    `contention` scales what the device's (and the engine's) profile says that co-running work costs."""

    name: str
    group: str
    settings: dict[str, Any] = field(default_factory=dict)
    contention: float = 1.0


def chunked(size: int) -> dict[str, Any]:
    """Rows take their place in the chunk, so there are never more of them than it has tokens."""
    return {"mode": "chunked", "max_num_batched_tokens": size, "max_num_seqs": min(size, MAX_NUM_SEQS)}


def static_arms(profile: DeviceProfile) -> list[Arm]:
    table = build_plan_table(profile.units, profile.granularity)
    return [
        Arm(f"static:{plan.name}", "static", {"plan": f"static:{plan.name}"}) for plan in table.plans if plan.is_split
    ]


def baseline_arms(profile: DeviceProfile) -> list[Arm]:
    """Everything that has no controller."""
    table = build_plan_table(profile.units, profile.granularity)
    elastic = [
        Arm(f"elastic:{plan.name}", "elastic", {"plan": f"elastic:{plan.name}"})
        for plan in table.plans
        if plan.is_split and plan.decode_units in ELASTIC_DECODE_UNITS
    ]
    swept = [Arm(f"chunked:{size}", "chunked", chunked(size)) for size in CHUNK_SIZES]
    return [*static_arms(profile), *elastic, Arm("shared", "shared", {"mode": "shared"}), *swept]


def dynamic_arms() -> list[Arm]:
    return [
        Arm("slo", "dynamic", {"plan": "slo"}),
        Arm("on-demand", "dynamic", {"plan": "on-demand"}),
    ]


def ablation_arms() -> list[Arm]:
    """The guards one by one, the scheduler, and wrong predictions."""
    without = [
        Arm(f"{policy}, no {guard}", "ablation", {"plan": policy, "guards": tuple(g for g in GUARDS if g != guard)})
        for policy in ("slo", "on-demand")
        for guard in GUARDS
    ]
    bare = [Arm(f"{policy}, no guards", "ablation", {"plan": policy, "guards": ()}) for policy in ("slo", "on-demand")]
    wrong = [
        Arm(f"{policy}, predictions off by {error:.0%}", "ablation", {"plan": policy, "prediction_error": error})
        for policy in ("slo", "on-demand")
        for error in (0.1, 0.3)
    ]
    scheduled = [
        Arm(f"{name}, {discipline}", "ablation", {**settings, "discipline": discipline})
        for name, settings in (
            ("slo", {"plan": "slo"}),
            ("chunked:1024", chunked(1024)),
            ("shared", {"mode": "shared"}),
        )
        for discipline in ("sjf-window", "edf", "shortest-cache", "memory-aware-deadline")
    ]
    throttled = [
        Arm(f"{name}, throttled", "ablation", {**settings, "admission": "throttle"})
        for name, settings in (("slo", {"plan": "slo"}), ("chunked:1024", chunked(1024)))
    ]
    return [*without, *bare, *wrong, *scheduled, *throttled]


# Both phases have the whole device and do not feel each other: no partition, controller or order of kernels does better
# than that, because no phase is ever faster than alone on every unit.
BOUND = Arm("bound: no interference", "bound", {"mode": "shared"}, contention=0.0)

CONTENTIONS = (0.5, 2.0)


def sensitivity_arms(arms: list[Arm]) -> list[Arm]:
    """The same arms where co-running work costs half as much, and twice: what the prior assumes and nobody measured."""
    return [
        replace(arm, name=f"{arm.name} @ contention x{scale:g}", group="sensitivity", contention=scale)
        for scale in CONTENTIONS
        for arm in arms
    ]


def with_contention(profile: DeviceProfile, scale: float) -> DeviceProfile:
    """The excess of every contention factor times `scale`."""
    pairs = [
        structs.replace(pair, prefill=1 + (pair.prefill - 1) * scale, decode=1 + (pair.decode - 1) * scale)
        for pair in profile.contention
    ]
    return structs.replace(profile, contention=pairs)
