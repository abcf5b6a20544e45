"""A prefill, decode or hybrid worker process, from its spec to its last turn."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from colocate.core.plan import build_plan_table
from colocate.device.partition import Partition
from colocate.errors import ConfigError
from colocate.messages.control import ChildReady, EngineAt, StartupPhase
from colocate.messages.spec import ProcessSpec
from colocate.transport.board import Board
from colocate.transport.control import ControlChannel
from colocate.transport.zmq_channel import connect_to_engine
from colocate.types import Role
from colocate.worker.boundary import Boundary
from colocate.worker.decode_loop import DecodeLoop
from colocate.worker.engine_link import EngineLink
from colocate.worker.executor import DecodeExecutor, HybridExecutor, PrefillExecutor
from colocate.worker.heartbeat import Heartbeat
from colocate.worker.hybrid_loop import HybridLoop
from colocate.worker.prefill_loop import PrefillLoop
from colocate.worker.progress import Progress
from colocate.worker.slice_pace import SlicePace
from colocate.worker.standing_batch import StandingBatch
from colocate.worker.station import Station, WorkerLoop, run


class WorkerDevice(Protocol):
    """What a device puts in a worker's hands. One per worker: `cpu_device.py`, `emulated_device.py`,
    `cuda/device.py`."""

    @property
    def partition(self) -> Partition: ...

    def prefill_executor(self) -> PrefillExecutor:
        """Warmed up at its largest shapes; called once."""
        ...

    def decode_executor(self) -> DecodeExecutor:
        """Warmed up at its largest shapes; called once."""
        ...

    def hybrid_executor(self) -> HybridExecutor:
        """Warmed up at its largest shapes; called once."""
        ...

    def facts(self) -> dict[str, int | float | str]:
        """What was found and measured at start, once the executor is there: for `ChildReady`."""
        ...


def run_worker(spec: ProcessSpec, control: ControlChannel, board: Board) -> None:
    """Start, say Hello to the engine and ready to the supervisor, work until told to leave.

    Returns on Shutdown or when the supervisor is gone. Raises ConfigError where this worker cannot start as asked, and
    ChannelClosed where messages of the engine are missing: then nothing here can be trusted and a successor is due.
    """
    started_s = time.monotonic()
    board.clear(spec.role)  # the predecessor is reaped: it holds nothing and owes nothing
    heartbeat = Heartbeat(board, spec.role)
    link = EngineLink(
        spec.role, spec.incarnation, control, board, lambda address: connect_to_engine(address, spec.role)
    )
    try:
        control.send(StartupPhase("partition", spec.facts.device_kind))
        device = open_device(spec, control, board, link)
        loop, station = build_loop(spec, board, link, device)
        link.meet(EngineAt(spec.epoch, spec.engine_address))
        facts = {"resident_bytes": resident_bytes(), **device.facts()}
        control.send(ChildReady(spec.role, os.getpid(), time.monotonic() - started_s, facts))
        gc.collect()
        gc.freeze()  # what exists now lives as long as the process: collections need not walk it
        run(loop, station)
    finally:
        link.close()
        heartbeat.stop()


def build_loop(spec: ProcessSpec, board: Board, link: EngineLink, device: WorkerDevice) -> tuple[WorkerLoop, Station]:
    """The loop of this role over the executor of this device, warmed up."""
    table = build_plan_table(spec.facts.total_units, spec.facts.unit_granularity, spec.facts.decode_shares)
    limits, clock_ns = spec.config.supervisor, time.monotonic_ns
    progress = Progress(spec.role, board, clock_ns, limits.progress_factor, limits.progress_floor_s)

    def station(units_changed: Callable[[int], None]) -> Station:
        boundary = Boundary(spec.role, table, board, device.partition, units_changed, clock_ns)
        return Station(link, boundary, progress, clock_ns)

    if spec.role is Role.PREFILL:
        prefill = device.prefill_executor()
        pace = SlicePace(spec.config.scheduler.max_slice_ms / 1000)

        def units_changed(num_units: int) -> None:
            prefill.units_changed(num_units)
            pace.units_changed(num_units)

        prefill_loop = PrefillLoop(station(units_changed), prefill, pace)
        return prefill_loop, prefill_loop.station
    if spec.role is Role.HYBRID:
        hybrid = device.hybrid_executor()
        hybrid_loop = HybridLoop(station(hybrid.units_changed), hybrid, StandingBatch(spec.facts.block_size))
        return hybrid_loop, hybrid_loop.station
    decode = device.decode_executor()
    decode_loop = DecodeLoop(station(decode.units_changed), decode, StandingBatch(spec.facts.block_size))
    return decode_loop, decode_loop.station


def open_device(spec: ProcessSpec, control: ControlChannel, board: Board, link: EngineLink) -> WorkerDevice:
    """Imports only what this device needs: the emulated one starts without torch."""
    if spec.facts.device_kind == "emulated":
        from colocate.worker.emulated_device import EmulatedDevice

        return EmulatedDevice(spec, board, link.inject)
    if spec.facts.device_kind == "cpu":
        from colocate.worker.cpu_device import CpuDevice

        return CpuDevice(spec, board, lambda phase, detail: control.send(StartupPhase(phase, detail)))
    if spec.facts.device_kind == "cuda":
        from colocate.worker.cuda.device import CudaDevice

        return CudaDevice(spec, board, lambda phase, detail: control.send(StartupPhase(phase, detail)))
    raise ConfigError("device", f"no worker runs on device {spec.facts.device_kind!r}", "choose cpu, cuda or emulated")


def resident_bytes() -> int:
    """Of this process now, shared pages included."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
