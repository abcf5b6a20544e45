"""Several replicas behind a router.

A router that looks at the load needs all replicas on one clock. `round-robin` does not: its replicas never meet, so
each runs by itself, in processes of their own if there are several; the result is the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import msgspec

from colocate.errors import ConfigError
from colocate.messages.client import EngineState
from colocate.sim.load import WorkloadLoad
from colocate.sim.records import RequestRecord, SimResult, summarise
from colocate.sim.router import choose_router, round_robin
from colocate.sim.run import Run
from colocate.sim.settings import SimSettings
from colocate.workload.prompts import lay_out
from colocate.workload.rows import Workload

_Part = tuple[tuple[RequestRecord, ...], tuple[EngineState, ...], float]


def simulate_fleet(
    workload: Workload,
    settings: SimSettings,
    num_replicas: int,
    router: str = "round-robin",
    *,
    jobs: int = 1,
    event_log: Path | None = None,
) -> SimResult:
    """Offer the workload to `num_replicas` replicas. With `event_log`, each writes its own: `NAME-0.log` ...

    Raises ConfigError.
    """
    if num_replicas < 1:
        raise ConfigError("replicas", f"cannot be {num_replicas}", "at least 1")
    layouts = lay_out(workload.rows)
    choose = choose_router(router, num_replicas, layouts)
    logs = [] if event_log is None else [_numbered(event_log, index) for index in range(num_replicas)]
    if router != "round-robin":
        load = WorkloadLoad(workload.rows, layouts)
        run = Run(load, settings, logs=logs, replicas=range(num_replicas), choose=choose)
        return run.result(workload.duration_s)
    parts = _by_themselves(workload, settings, num_replicas, jobs, logs)
    records = tuple(sorted((record for part in parts for record in part[0]), key=lambda record: record.request_id))
    states = tuple(state for part in parts for state in part[1])
    summary = summarise(records, workload.duration_s, settings.slo_classes, settings.default_slo_class)
    return SimResult(records, states, summary, max(part[2] for part in parts))


def _numbered(path: Path, index: int) -> Path:
    return path.with_name(f"{path.stem}-{index}{path.suffix or '.log'}")


def _by_themselves(
    workload: Workload, settings: SimSettings, num_replicas: int, jobs: int, logs: Sequence[Path]
) -> list[_Part]:
    choose = round_robin(num_replicas)
    replica_of = [choose(index, ()) for index in range(len(workload.rows))]
    used = sorted(set(replica_of))
    if jobs <= 1 or len(used) == 1:
        return [_play(workload, settings, replica_of, number, logs) for number in used]
    with ProcessPoolExecutor(min(jobs, len(used)), mp_context=get_context("spawn")) as pool:
        futures = [pool.submit(_play, workload, settings, replica_of, number, logs) for number in used]
        return [future.result() for future in futures]


def _play(
    workload: Workload, settings: SimSettings, replica_of: Sequence[int], number: int, logs: Sequence[Path]
) -> _Part:
    """One replica's share of the load; records come back under the workload's own numbers."""
    layouts = lay_out(workload.rows)
    mine = [index for index, replica in enumerate(replica_of) if replica == number]
    load = WorkloadLoad([workload.rows[index] for index in mine], [layouts[index] for index in mine])
    run = Run(load, settings, logs=logs[number : number + 1], replicas=(number,))
    records, states = run.play(workload.rows[-1].arrival_s)
    named = tuple(
        msgspec.structs.replace(record, request_id=index + 1, replica=number)
        for index, record in zip(mine, records, strict=True)
    )
    return named, states, run.elapsed_s
