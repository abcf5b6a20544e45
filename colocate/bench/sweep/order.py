"""In which order runs are made.

A machine drifts: it warms up, others use it, its memory fragments. Arms are compared at one rate and seed, so those
runs stand next to each other, in an order drawn anew for each rate and seed: no arm is always first, and none always
follows the same other.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, order=True)
class RunSpec:
    """One run of a sweep. `level` is the rate's place among the sweep's rates, lowest first."""

    arm: str
    level: int
    rate: float
    seed: int

    @property
    def run_id(self) -> str:
        """A folder's name: equal for equal specs, different for different ones of one sweep."""
        return f"{slug(self.arm)}@{self.rate:.6g}@s{self.seed}"


def slug(arm: str) -> str:
    return re.sub(r"[^A-Za-z0-9._=-]", "-", arm)


def every_run(arms: Sequence[str], rates: Sequence[float], seeds: Sequence[int]) -> list[RunSpec]:
    """Arms x rates x seeds. `rates` ascend."""
    return [RunSpec(arm, level, rate, seed) for arm in arms for level, rate in enumerate(rates) for seed in seeds]


def interleaved(specs: Iterable[RunSpec], order_seed: int) -> list[RunSpec]:
    """Rate by rate, seed by seed, arms shuffled within each."""
    return _shuffled_blocks(specs, lambda spec: (spec.level, spec.seed), order_seed)


def interleaved_round(specs: Iterable[RunSpec], order_seed: int) -> list[RunSpec]:
    """One round of a search, in which every arm has a rate of its own: seed by seed, arms shuffled within each."""
    return _shuffled_blocks(specs, lambda spec: (spec.seed,), order_seed)


def by_server(specs: Iterable[RunSpec], order_seed: int) -> list[RunSpec]:
    """Seed by seed, arms shuffled within each, all rates of an arm in a row: one server serves them (`--keep-server`).
    Drift within a seed hits arms differently; over seeds it evens out."""
    of_arm: dict[tuple[int, str], list[RunSpec]] = {}
    for spec in sorted(specs):
        of_arm.setdefault((spec.seed, spec.arm), []).append(spec)
    firsts = _shuffled_blocks([runs[0] for runs in of_arm.values()], lambda spec: (spec.seed,), order_seed)
    return [spec for first in firsts for spec in of_arm[first.seed, first.arm]]


def _shuffled_blocks(
    specs: Iterable[RunSpec], block_of: Callable[[RunSpec], tuple[int, ...]], order_seed: int
) -> list[RunSpec]:
    blocks: dict[tuple[int, ...], list[RunSpec]] = {}
    for spec in sorted(specs):
        blocks.setdefault(block_of(spec), []).append(spec)
    ordered: list[RunSpec] = []
    for name, block in sorted(blocks.items()):
        random.Random(f"{order_seed}/{name}").shuffle(block)
        ordered += block
    return ordered
