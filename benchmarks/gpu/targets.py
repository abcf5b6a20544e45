"""What the GPU backend has promised on an H200 (bf16, 8B shapes), and how each promise is judged.

A section puts what it measured under `targets` in its data: `{name: {"measured": x, "floor": y}}`. The floor is the
value that no implementation on this device could beat, in the unit of the goal.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from gpu.sheet import GroupFile


@dataclass(frozen=True, slots=True)
class Target:
    """`goal` is met by values at or beyond it in the better direction."""

    name: str
    about: str
    goal: float
    better: Literal["lower", "higher"]
    unit: str

    def is_met(self, measured: float) -> bool:
        return measured <= self.goal if self.better == "lower" else measured >= self.goal


TARGETS = (
    Target("decode-bandwidth", "decode step at batch 64, context 2k: of the copy bandwidth", 0.80, "higher", "x"),
    Target("decode-vllm", "the same step against vLLM's", 1.05, "lower", "x"),
    Target("prefill-flops", "prefill of 2k to 8k tokens, the worst: of the matrix ceiling", 0.65, "higher", "x"),
    Target("prefill-vllm", "prefill of 8k tokens against vLLM's", 1.05, "lower", "x"),
    Target("switch-host", "plan switch, host, p99 of 1,000 under load", 20e-6, "lower", "s"),
    Target("switch-device", "first kernel of the new share after work already launched, p99", 1e-3, "lower", "s"),
    Target("hand-over", "last prefill slice to the first decode step of the row, p99", 0.5e-3, "lower", "s"),
    Target("hand-over-bytes", "KV bytes copied by a hand-over", 0, "lower", "bytes"),
    Target("plans-memory", "device memory that 8 plans and their graphs add, of the device", 0.06, "lower", "x"),
    Target("restart", "kill -9 of a worker to tokens again, without reloading weights", 5.0, "lower", "s"),
    Target("sm-overlap", "SMs that kernels of both phases ran on, over all plans", 0, "lower", "SMs"),
    Target("concurrency", "compute-bound probes of both phases together, of ideal", 0.9, "higher", "x"),
)


@dataclass(frozen=True, slots=True)
class Verdict:
    """`measured` None: no section of this run measured it. `off`: how far beyond the goal on the wrong side, relative
    to it (to 1 where the goal is 0); 0 where it is met."""

    target: Target
    measured: float | None
    floor: float | None

    @property
    def off(self) -> float:
        if self.measured is None or self.target.is_met(self.measured):
            return 0.0
        return abs(self.measured - self.target.goal) / (self.target.goal or 1.0)

    @property
    def word(self) -> str:
        if self.measured is None:
            return "not measured"
        return "met" if self.target.is_met(self.measured) else f"missed by {self.off:.0%}"


def target_rows(values: Mapping[str, tuple[float, float | None]]) -> dict[str, dict[str, float | None]]:
    """What a section puts under `targets`. Raises KeyError for a name that is no target."""
    known = {target.name for target in TARGETS}
    for name in values:
        if name not in known:
            raise KeyError(f"no target is named {name!r}")
    return {name: {"measured": measured, "floor": floor} for name, (measured, floor) in values.items()}


def judge(groups: Iterable[GroupFile]) -> list[Verdict]:
    """Every target in the order of the table. Where several groups measured one, the last counts."""
    found: dict[str, Mapping[str, Any]] = {}
    for group in groups:
        for section in group.sections.values():
            found.update(section.data.get("targets", {}))
    return [
        Verdict(target, found.get(target.name, {}).get("measured"), found.get(target.name, {}).get("floor"))
        for target in TARGETS
    ]


def verdict_lines(verdicts: Iterable[Verdict]) -> list[str]:
    """A table: target, goal, measured, floor, verdict."""
    rows = [("target", "goal", "measured", "floor", "")]
    for each in verdicts:
        target = each.target
        sign = "<=" if target.better == "lower" else ">="
        cells = (
            f"{sign} {_value(target.goal, target.unit)}",
            *(_value(v, target.unit) for v in (each.measured, each.floor)),
        )
        rows.append((f"{target.name}: {target.about}", *cells, each.word))
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _value(value: float | None, unit: str) -> str:
    if value is None:
        return "-"
    if unit == "s":
        scale, name = (1e6, "us") if abs(value) < 1e-3 else (1e3, "ms") if abs(value) < 1 else (1.0, "s")
        return f"{value * scale:.4g} {name}"
    return f"{value:.3g} {unit}"
