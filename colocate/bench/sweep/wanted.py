"""Which runs are still to be made, from the plan and the runs that are there."""

from __future__ import annotations

from collections.abc import Callable

from colocate.bench.sweep.journal import RunResult
from colocate.bench.sweep.order import RunSpec, by_server, every_run, interleaved, interleaved_round
from colocate.bench.sweep.plan import SweepPlan
from colocate.bench.sweep.search import Answer, Probe, Tally, next_step, seeds_of_part

ResultOf = Callable[[RunSpec], RunResult | None]


def wanted_runs(plan: SweepPlan, result_of: ResultOf) -> list[RunSpec]:
    """What can be run now, in order; empty once the sweep is done. Of a list of rates everything that is missing, of a
    search one round: each arm's next point. A sweep that was cut off has the same order as one that was not."""
    if plan.search is None:
        specs = every_run([arm.name for arm in plan.arms], plan.rates, plan.seeds)
        ordered = by_server(specs, plan.order_seed) if plan.keep_server else interleaved(specs, plan.order_seed)
        return [spec for spec in ordered if result_of(spec) is None]
    probes: list[RunSpec] = []
    for arm in plan.arms:
        step = next_of(plan, arm.name, result_of)
        if isinstance(step, Probe):
            probes += _specs(plan, arm.name, step.level, step.part)
    return [spec for spec in interleaved_round(probes, plan.order_seed) if result_of(spec) is None]


def next_of(plan: SweepPlan, arm: str, result_of: ResultOf) -> Probe | Answer:
    """Where the search of one arm stands."""
    assert plan.search is not None
    return next_step(plan.search, len(plan.rates), lambda level: _tally(plan, arm, level, result_of))


def made_runs(plan: SweepPlan, result_of: ResultOf) -> list[RunSpec]:
    """Runs of this sweep that are done. Of a search also those of every further part."""
    if plan.search is None:
        specs = every_run([arm.name for arm in plan.arms], plan.rates, plan.seeds)
        return [spec for spec in specs if result_of(spec) is not None]
    made: list[RunSpec] = []
    for arm in plan.arms:
        for level in range(len(plan.rates)):
            part = 0
            while found := [spec for spec in _specs(plan, arm.name, level, part) if result_of(spec) is not None]:
                made += found
                part += 1
    return made


def _tally(plan: SweepPlan, arm: str, level: int, result_of: ResultOf) -> Tally:
    """Whole parts only: a part that lacks a seed is run to its end first."""
    good = offered = part = 0
    while True:
        results = [result_of(spec) for spec in _specs(plan, arm, level, part)]
        known = [result for result in results if result is not None]
        if any(result.status == "failed" and not result.offered for result in known):  # there was no server
            return Tally(good, offered, part, has_failed=True)
        if len(known) < len(results):
            return Tally(good, offered, part)
        good += sum(result.good for result in known)
        offered += sum(result.offered for result in known)
        part += 1


def _specs(plan: SweepPlan, arm: str, level: int, part: int) -> list[RunSpec]:
    return [RunSpec(arm, level, plan.rates[level], seed) for seed in seeds_of_part(plan.seeds, part)]
