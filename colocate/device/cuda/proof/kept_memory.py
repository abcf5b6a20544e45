"""Does the keeper's memory outlive a killed worker, and a killed keeper?"""

from __future__ import annotations

import os
import time

from colocate.config.sizes import format_size
from colocate.device.cuda.proof.check import Check, CheckSpec, Group
from colocate.device.cuda.proof.commands import (
    CountWrong,
    Done,
    ExportMemory,
    MakeMemory,
    MapMemory,
    Memory,
    WriteOnAndOn,
    WritePattern,
    Wrong,
)
from colocate.device.cuda.proof.crew import DECODE, PREFILL, Crew
from colocate.device.cuda.proof.probe_process import ProbeLost, ProbeRefused

WORKER_KILLED = CheckSpec("worker_killed", "memory survives a worker killed in mid-kernel", Group.TWO_PROCESSES)
KEEPER_KILLED = CheckSpec(
    "keeper_killed", "mapped memory survives a killed keeper", Group.TWO_PROCESSES, is_necessary=False
)

_NUM_BYTES = 64 << 20
_SEED = 20_000
_TRANSPORT_REMEDY = "serve with --memory-transport ipc, and report this output"


def check_worker_killed(crew: Crew) -> Check:
    """A writer writes half of the memory over and over and is killed; the reader finds the other half as it was, and
    so does the writer's successor."""
    try:
        num_bytes = make_memory(crew, _NUM_BYTES)
        map_memory(crew, PREFILL, num_bytes, writable=True)
        map_memory(crew, DECODE, num_bytes, writable=False)
    except ProbeRefused as error:
        return WORKER_KILLED.failed(f"memory of a process without a context is refused: {error}", _TRANSPORT_REMEDY)
    writer = crew.worker(PREFILL)
    writer.ask(WritePattern(_SEED), Done, crew.limits.memory_s)
    before = count_wrong(crew, DECODE)
    if before.num_words:
        detail = f"the reader finds {before.num_words} of {before.of_words} words other than written"
        return WORKER_KILLED.failed(detail, _TRANSPORT_REMEDY)
    writer.ask(WriteOnAndOn(), Done, crew.limits.memory_s)
    killed_s = time.monotonic()
    writer.kill()
    try:
        after = count_wrong(crew, DECODE)
    except (ProbeLost, ProbeRefused) as error:
        remedy = "a crash of one worker stops the other here; both then restart on the keeper's memory"
        return WORKER_KILLED.failed(f"the reader was hit, too: {error}", remedy)
    crew.worker(PREFILL)
    map_memory(crew, PREFILL, num_bytes, writable=True)
    successor = count_wrong(crew, PREFILL)
    return judge_worker_killed(num_bytes, after, successor, time.monotonic() - killed_s)


def judge_worker_killed(num_bytes: int, after: Wrong, successor: Wrong, seconds: float) -> Check:
    """`after`: to the reader that lived on. `seconds`: from the kill until the successor had read the memory."""
    data: dict[str, object] = {
        "num_bytes": num_bytes,
        "wrong_to_reader": after.num_words,
        "wrong_to_successor": successor.num_words,
        "successor_s": seconds,
    }
    if after.num_words or successor.num_words:
        detail = f"{max(after.num_words, successor.num_words)} of {after.of_words} words are lost"
        return WORKER_KILLED.failed(detail, _TRANSPORT_REMEDY, **data)
    detail = f"{format_size(num_bytes)} intact; the successor had them mapped and read {seconds:.1f} s after the kill"
    return WORKER_KILLED.passed(detail, **data)


def check_keeper_killed(crew: Crew) -> Check:
    num_bytes = make_memory(crew, _NUM_BYTES)
    map_memory(crew, DECODE, num_bytes, writable=True)
    crew.worker(DECODE).ask(WritePattern(_SEED), Done, crew.limits.memory_s)
    crew.keeper().kill()
    return judge_keeper_killed(num_bytes, count_wrong(crew, DECODE))


def judge_keeper_killed(num_bytes: int, after: Wrong) -> Check:
    if after.num_words:
        remedy = "nothing to do: the runtime restarts everything with its keeper"
        return KEEPER_KILLED.failed(f"{after.num_words} of {after.of_words} words are lost", remedy)
    return KEEPER_KILLED.passed(f"{format_size(num_bytes)} intact in the worker that maps them")


def make_memory(crew: Crew, num_bytes: int) -> int:
    """Have the keeper allocate, without a context. Rounded up to the granularity."""
    made, fd = _ask_for_fd(crew, MakeMemory(crew.plan.index, num_bytes))
    os.close(fd)
    return made.num_bytes


def map_memory(crew: Crew, name: str, num_bytes: int, *, writable: bool) -> None:
    """A fresh descriptor from the keeper, mapped by this worker."""
    _, fd = _ask_for_fd(crew, ExportMemory())
    try:
        crew.worker(name).ask(MapMemory(num_bytes, writable), Done, crew.limits.memory_s, (fd,))
    finally:
        os.close(fd)


def count_wrong(crew: Crew, name: str) -> Wrong:
    return crew.worker(name).ask(CountWrong(_SEED), Wrong, crew.limits.memory_s)


def _ask_for_fd(crew: Crew, command: MakeMemory | ExportMemory) -> tuple[Memory, int]:
    keeper = crew.keeper()
    keeper.begin(command)
    return keeper.finish_with_fd(Memory, crew.limits.memory_s)
