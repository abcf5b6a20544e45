"""Sweeps without servers: plans made by hand, and results that follow a curve of attainment."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from colocate.bench.records import SweepArm
from colocate.bench.sweep.journal import RunResult
from colocate.bench.sweep.load import Load
from colocate.bench.sweep.order import RunSpec
from colocate.bench.sweep.plan import SweepPlan
from colocate.bench.sweep.wanted import wanted_runs
from colocate.workload.recipe import Recipe

Curve = Callable[[float], float]


def make_plan(out: Path, arms: tuple[str | SweepArm, ...] = ("shared", "elastic"), **changes: Any) -> SweepPlan:
    fields: dict[str, Any] = {
        "model": "demo",
        "out": out,
        "arms": tuple(
            arm if isinstance(arm, SweepArm) else SweepArm(arm, "dynamic", "colocate", ("--plan", arm)) for arm in arms
        ),
        "systems": {},
        "load": Load(recipe=Recipe(lengths=("64/8",)), min_requests=100, warmup_s=1.0),
        "rates": (1.0, 2.0, 4.0),
        "seeds": (0, 1, 2),
        "slo_classes": ("chat: ttft 1 s",),
    }
    return SweepPlan(**{**fields, **changes})


def falling(knee: float, width: float) -> Curve:
    """Attainment near one well below the knee, a half at it, near zero well above."""
    return lambda rate: 1.0 / (1.0 + math.exp((rate - knee) / width))


def outcome(spec: RunSpec, curve: Curve, offered: int = 100) -> RunResult:
    """What a run at that rate gives: always the same."""
    return RunResult(spec.run_id, "valid", round(curve(spec.rate) * offered), offered, (), 60.0)


def play(plan: SweepPlan, curves: dict[str, Curve], *, one_at_a_time: bool = False) -> Iterator[RunSpec]:
    """Make every wanted run, in order. `one_at_a_time`: as a sweep that is cut off after each of its runs."""
    done: dict[str, RunResult] = {}
    while batch := wanted_runs(plan, lambda spec: done.get(spec.run_id)):
        for spec in batch[:1] if one_at_a_time else batch:
            assert spec.run_id not in done
            done[spec.run_id] = outcome(spec, curves[spec.arm])
            yield spec
