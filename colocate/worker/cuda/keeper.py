"""The keeper's memory on a GPU: allocated here, filled by a one-shot loader process, handed out by descriptor.

With `vmm` this process makes no CUDA context and imports no torch, so no fault of a kernel can reach it. The loader has
a context, for as long as it takes to fill and check the weights.
"""

from __future__ import annotations

import os
import select
import socket
import subprocess
import sys
from pathlib import Path

from msgspec import MsgspecError, msgpack

from colocate.config.sizes import format_size
from colocate.device.cuda.backend import is_fake_chosen
from colocate.device.cuda.driver import OUT_OF_MEMORY, CudaDriver, CudaError
from colocate.device.cuda.memory import DeviceSegment, IpcTransport, MemoryTransport, Ticket, not_shared, open_transport
from colocate.errors import ChannelClosed, ConfigError
from colocate.messages.spec import ProcessSpec
from colocate.model.config import load_model_config
from colocate.model.layout import KVLayout, WeightLayout
from colocate.worker.cuda.loading import Loaded, LoaderJob, LoadFailed, Loading, ReportReader
from colocate.worker.keeper import LoadingProgress
from colocate.worker.segments import SegmentEntry, SegmentTable, send_table

_BEAT_MS = 100
_READ_BYTES = 1 << 16


class DeviceSegments:
    """Implements `KeptMemory`. Lives as long as the process; the driver takes the memory back when it ends."""

    def __init__(self, transport: MemoryTransport, segments: list[DeviceSegment], weights_crc32: int) -> None:
        self._transport = transport
        self._segments = segments
        self._weights_crc32 = weights_crc32

    def facts(self) -> dict[str, int | float | str]:
        sizes: dict[str, int | float | str] = {f"{each.name}_bytes": each.num_bytes for each in self._segments}
        reserved = sum(each.reserved_bytes for each in self._segments)
        return {
            **sizes,
            "device_segments_bytes": reserved,
            "weights_crc32": self._weights_crc32,
            "transport": self._transport.name,
        }

    def send_to(self, peer: socket.socket) -> None:
        tickets = [self._transport.ticket(segment) for segment in self._segments]
        try:
            table = SegmentTable(self._transport.name, entries_of(tickets), self._weights_crc32)
            send_table(peer, table, fds_of(tickets))
        finally:
            for ticket in tickets:
                ticket.close()


def load_device_segments(spec: ProcessSpec, progress: LoadingProgress) -> DeviceSegments:
    """Allocate, have everything filled and checked. Raises ConfigError for what the operator can mend, ChannelClosed
    where the loader died."""
    facts = spec.facts
    config = load_model_config(Path(facts.model_dir))
    driver = _open_driver()
    transport = open_transport(spec.config.memory.memory_transport, driver, facts.device_index)
    if transport.name == IpcTransport.name:
        driver.retain_primary(facts.device_index)
    progress.phase("allocating", "device memory")
    kv_bytes = KVLayout(config, facts.dtype, facts.num_blocks, facts.block_size).nbytes
    weights = _allocate(transport, "weights", WeightLayout.of(config, facts.dtype).nbytes)
    segments = [weights, _allocate(transport, "kv", kv_bytes)]
    progress.phase("loading weights", "starting the loader")
    tickets = [transport.ticket(segment) for segment in segments]
    try:
        crc32 = run_loader(_job(spec, transport.name, tickets), progress)
    finally:
        for ticket in tickets:
            ticket.close()
    return DeviceSegments(transport, segments, crc32)


def run_loader(job: LoaderJob, progress: LoadingProgress) -> int:
    """The loader from birth to its end; it is gone when this returns or raises. Returns the checksum of the weights."""
    process = subprocess.Popen(
        [sys.executable, "-m", "colocate.worker.cuda.loader", str(os.getpid())],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        pass_fds=job.fds,
    )
    try:
        return _follow(process, job, progress)
    finally:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()


def _follow(process: subprocess.Popen[bytes], job: LoaderJob, progress: LoadingProgress) -> int:
    assert process.stdin is not None and process.stdout is not None
    try:
        process.stdin.write(msgpack.encode(job))
        process.stdin.close()
    except BrokenPipeError:
        pass  # it died at once; its output has ended too
    reader = ReportReader()
    poller = select.poll()
    poller.register(process.stdout, select.POLLIN)
    while True:
        progress.beat()
        if not poller.poll(_BEAT_MS):
            continue
        data = os.read(process.stdout.fileno(), _READ_BYTES)
        if not data:
            raise ChannelClosed(f"the weight loader ended with code {process.wait()} before the weights were loaded")
        try:
            reports = reader.feed(data)
        except MsgspecError as error:
            raise ChannelClosed(f"the weight loader says something that is no report: {error}") from None
        for report in reports:
            if isinstance(report, LoadFailed):
                raise ConfigError(report.where, report.problem, report.remedy)
            if isinstance(report, Loaded):
                return report.weights_crc32
            _show(report, progress)


def _show(report: Loading, progress: LoadingProgress) -> None:
    if report.total_bytes:
        progress(report.done_bytes, report.total_bytes)
    else:
        progress.phase(report.phase)


def _job(spec: ProcessSpec, transport: str, tickets: list[Ticket]) -> LoaderJob:
    model = spec.config.model
    return LoaderJob(spec.facts, model.load_format, model.seed, transport, entries_of(tickets), fds_of(tickets))


def entries_of(tickets: list[Ticket]) -> list[SegmentEntry]:
    return [SegmentEntry(each.name, each.num_bytes, each.reserved_bytes, each.token) for each in tickets]


def fds_of(tickets: list[Ticket]) -> list[int]:
    return [each.fd for each in tickets if each.fd >= 0]


def _allocate(transport: MemoryTransport, name: str, num_bytes: int) -> DeviceSegment:
    try:
        return transport.allocate(name, num_bytes)
    except CudaError as error:
        if error.is_fatal:
            raise
        if error.code != OUT_OF_MEMORY:
            raise not_shared(transport.name, error) from None
        problem = f"the GPU has no {format_size(num_bytes)} left for {name}"
        remedy = "end other programs on the GPU, or lower --gpu-memory-utilization (or --kv-memory where it is given)"
        raise ConfigError("gpu_memory_utilization", problem, remedy) from None


def _open_driver() -> CudaDriver:
    """The driver alone: a backend would bring torch and a context."""
    if is_fake_chosen():
        from colocate.device.cuda.fake import FakeDriver

        return FakeDriver()
    from colocate.device.cuda.bindings import BindingsDriver

    return BindingsDriver()
