"""Many runs at once: the same question for several seeds, each run in a process of its own if there are several."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

from colocate.sim.fleet import simulate_fleet
from colocate.sim.records import SimResult
from colocate.sim.run import simulate
from colocate.sim.settings import SimSettings
from colocate.workload.rows import Workload


@dataclass(frozen=True, slots=True)
class Task:
    """One run. `num_replicas` 0 is a single daemon without a router."""

    workload: Workload
    settings: SimSettings
    num_replicas: int = 0
    router: str = "round-robin"
    event_log: Path | None = None


def run_task(task: Task, jobs: int = 1) -> SimResult:
    if task.num_replicas == 0:
        return simulate(task.workload, task.settings, event_log=task.event_log)
    return simulate_fleet(
        task.workload, task.settings, task.num_replicas, task.router, jobs=jobs, event_log=task.event_log
    )


def run_tasks(tasks: Sequence[Task], jobs: int, done: Callable[[], None] = lambda: None) -> list[SimResult]:
    """Results in the order of the tasks; `done` is called after each. What one task raises is raised here."""
    if len(tasks) == 1 or jobs <= 1:
        return list(_one_by_one(tasks, jobs, done))
    with ProcessPoolExecutor(min(jobs, len(tasks)), mp_context=get_context("spawn")) as pool:
        futures = [pool.submit(run_task, task) for task in tasks]
        for future in futures:
            future.add_done_callback(lambda _: done())
        return [future.result() for future in futures]


def _one_by_one(tasks: Sequence[Task], jobs: int, done: Callable[[], None]) -> Iterator[SimResult]:
    for task in tasks:
        yield run_task(task, jobs)
        done()
