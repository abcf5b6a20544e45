"""Who is measured next: every setup at every state, in random order, then all again in another order.

A setup is a plan and the phases that work under it. Visits of one point lie minutes apart, so a slow minute of the
machine hits all points alike and the median over the visits leaves it out.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from colocate.core.plan import SHARED, PlanTable

PASSES = 3  # visits of every point that a budget should pay for
_SECONDS_PER_VISIT = 0.12
_MIN_STATES, _MAX_STATES = 12, 40
_STAGE_STATES, _STAGE_VISITS = 12, 2
_MIN_VISIT_S, _MAX_VISIT_S = 0.02, 0.3


@dataclass(frozen=True, slots=True)
class Setup:
    """`prefill_units` or `decode_units` is 0 where that phase is left idle."""

    name: str
    plan_index: int
    prefill_units: int
    decode_units: int

    @property
    def is_contended(self) -> bool:
        return self.prefill_units > 0 and self.decode_units > 0


Point = tuple[Setup, int]


def all_setups(table: PlanTable) -> list[Setup]:
    """Each phase alone on every share of the table, and both together under every plan that runs both."""
    alone: dict[tuple[str, int], Setup] = {}
    for index, plan in enumerate(table.plans):
        if plan.prefill_units:
            key = ("prefill", plan.prefill_units)
            alone.setdefault(key, Setup(f"prefill on {plan.prefill_units}", index, plan.prefill_units, 0))
        if plan.decode_units:
            key = ("decode", plan.decode_units)
            alone.setdefault(key, Setup(f"decode on {plan.decode_units}", index, 0, plan.decode_units))
    both = [
        Setup(f"both under {plan.name}", index, plan.prefill_units, plan.decode_units)
        for index, plan in enumerate(table.plans)
        if plan.is_split or plan.name == SHARED
    ]
    return [*(alone[key] for key in sorted(alone)), *both]


def size_states(budget_s: float, num_setups: int) -> int:
    """How many states per setup a budget can visit a few times each."""
    return max(_MIN_STATES, min(_MAX_STATES, int(budget_s / (num_setups * PASSES * _SECONDS_PER_VISIT))))


def size_visit_s(budget_s: float, num_points: int) -> float:
    """Seconds at one point before it is the next one's turn."""
    return max(_MIN_VISIT_S, min(_MAX_VISIT_S, 0.8 * budget_s / (num_points * PASSES)))


def order(setups: list[Setup], num_states: int, done: Iterable[tuple[str, int]], seed: int) -> Iterator[Point]:
    """Points without end. `done` are (setup name, state) visited by an earlier run.

    In stages: the first states of every setup are visited twice before the next ones are begun, so that a budget too
    short for all has few states measured well and not many measured once. Then all in turn, those visited least first.
    """
    counts = Counter(done)
    stages = range(_STAGE_STATES, num_states, _STAGE_STATES)
    for num_staged, enough in [*((size, _STAGE_VISITS) for size in (*stages, num_states)), (num_states, None)]:
        points = [(setup, state) for setup in setups for state in range(num_staged)]
        while enough is None or min(counts[setup.name, state] for setup, state in points) < enough:
            lowest = min(counts[setup.name, state] for setup, state in points)
            todo = [point for point in points if counts[point[0].name, point[1]] == lowest]
            random.Random(f"order/{seed}/{num_staged}/{lowest}").shuffle(todo)
            for setup, state in todo:
                counts[setup.name, state] += 1
                yield setup, state
