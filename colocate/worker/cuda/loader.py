"""The one-shot loader: `python -m colocate.worker.cuda.loader PARENT_PID`, its job on standard input.

A child of the keeper with a CUDA context: it maps both segments, clears them, streams the checkpoint through two
pinned buffers into the weights, reads them back for the checksum and ends. Exit codes as in `colocate.launch`.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import torch
from msgspec import msgpack
from torch import Tensor

from colocate.device.cuda.backend import Backend, open_backend
from colocate.device.cuda.memory import Ticket, map_kept, open_transport
from colocate.errors import ConfigError
from colocate.model.checksum import PIECE_BYTES, checksum
from colocate.model.config import load_model_config
from colocate.model.dummy import STANDARD_DEVIATION, is_norm
from colocate.model.layout import WeightLayout
from colocate.model.llama import map_weights
from colocate.model.loader import CHUNK_BYTES, Progress, load_weights
from colocate.transport.parent import die_with_parent
from colocate.worker.cuda.loading import Loaded, LoaderJob, LoadFailed, Loading, Report, encode_report

_REPORT_EVERY_S = 0.1
_SEED_STEP = 1_000_003  # a prime: entries of neighbouring seeds do not share their numbers


def main(arguments: list[str]) -> int:
    die_with_parent(int(arguments[0]))
    # Libraries print to standard output; the keeper reads reports there.
    reports = os.dup(1)
    os.dup2(2, 1)

    def send(report: Report) -> None:
        view = memoryview(encode_report(report))
        while view:
            view = view[os.write(reports, view) :]

    job = msgpack.decode(sys.stdin.buffer.read(), type=LoaderJob)
    try:
        crc32 = load(job, open_backend(job.facts.device_index), send)
    except ConfigError as error:
        send(LoadFailed(error.where, error.problem, error.remedy))
        return 2
    send(Loaded(crc32))
    return 0


def load(job: LoaderJob, backend: Backend, send: Callable[[Report], None]) -> int:
    """Fill the segments of the job. Returns the checksum of the weights, read back. Raises ConfigError, CudaError."""
    transport = open_transport(job.transport, backend.driver, job.facts.device_index)
    mappings = [map_kept(transport, ticket, writable=True) for ticket in tickets_of(job)]
    views = {each.name: backend.tensor(each.address, each.num_bytes) for each in mappings}
    # Blocks that were never written are read as well (and masked): an old NaN in them would spread. The fake device's
    # pages are zeros, and would be taken by touching them.
    if not backend.is_fake:
        for view in views.values():
            view.zero_()
    _fill(job, backend, views["weights"], _Announcer("loading weights", send))
    backend.driver.synchronize()
    send(Loading("checking weights"))
    crc32 = read_back(backend, views["weights"])
    views.clear()
    for mapping in mappings:
        mapping.close()
    return crc32


def tickets_of(job: LoaderJob) -> list[Ticket]:
    fds = job.fds or [-1] * len(job.segments)
    return [
        Ticket(entry.name, entry.num_bytes, entry.reserved_bytes, fd, entry.token)
        for entry, fd in zip(job.segments, fds, strict=True)
    ]


def _fill(job: LoaderJob, backend: Backend, weights: Tensor, progress: Progress) -> None:
    model_dir = Path(job.facts.model_dir)
    config = load_model_config(model_dir)
    layout = WeightLayout.of(config, job.facts.dtype)
    if job.load_format == "dummy":
        draw_on_device(layout, weights, job.seed, progress)
        return
    staging = StagingBuffers(backend, weights)
    load_weights(model_dir, config, layout, staging, progress)
    staging.finish()


class StagingBuffers:
    """`Destination` on a device: while one pinned buffer is copied, the other is filled. Copies go to torch's current
    stream. A room is valid until `filled`, and its bytes are on the device after `finish`."""

    def __init__(self, backend: Backend, segment: Tensor) -> None:
        self._segment = segment
        self._buffers = [backend.pinned((CHUNK_BYTES,), torch.uint8) for _ in range(2)]
        self._copied: list[torch.cuda.Event | None] = [None, None]
        self._turn = 0
        self._span = slice(0, 0)

    def room(self, offset_bytes: int, num_bytes: int) -> memoryview:
        self._turn ^= 1
        event = self._copied[self._turn]
        if event is not None:
            event.synchronize()
        self._span = slice(offset_bytes, offset_bytes + num_bytes)
        return host_view(self._buffers[self._turn])[:num_bytes]

    def filled(self) -> None:
        target = self._segment[self._span]
        target.copy_(self._buffers[self._turn][: target.numel()], non_blocking=True)
        if target.is_cuda:
            event = torch.cuda.current_stream().record_event()
            self._copied[self._turn] = event

    def finish(self) -> None:
        """Wait until everything has arrived."""
        for event in self._copied:
            if event is not None:
                event.synchronize()


def draw_on_device(layout: WeightLayout, weights: Tensor, seed: int, progress: Progress) -> None:
    """`model/dummy.py` with the device's own generator: the same distribution, other numbers."""
    generator = torch.Generator(weights.device)
    tensors = map_weights(layout, weights)
    for number, entry in enumerate(layout.entries):
        if is_norm(entry):
            tensors[entry.name].fill_(1)
        else:
            generator.manual_seed((seed * _SEED_STEP + number) % (1 << 63))
            tensors[entry.name].normal_(0, STANDARD_DEVIATION, generator=generator)
        progress(entry.offset_bytes + entry.nbytes, layout.nbytes)


def read_back(backend: Backend, segment: Tensor) -> int:
    """zlib.crc32 of the segment's bytes on the device, each thread through a pinned buffer of its own."""
    local = threading.local()

    def read(start: int, stop: int) -> memoryview:
        if not hasattr(local, "buffer"):
            local.buffer = backend.pinned((PIECE_BYTES,), torch.uint8)
        part: Tensor = local.buffer[: stop - start]
        part.copy_(segment[start:stop])
        return host_view(part)

    return checksum(segment.numel(), read)


def host_view(pinned: Tensor) -> memoryview:
    """The bytes of a uint8 tensor in host memory, writable, no copy."""
    return memoryview(pinned.numpy())  # type: ignore[arg-type]  # numpy's stubs name the buffer protocol from 3.12 on


class _Announcer:
    """A `Progress` that reports ten times a second."""

    def __init__(self, phase: str, send: Callable[[Report], None]) -> None:
        self._phase = phase
        self._send = send
        self._next_s = 0.0

    def __call__(self, done_bytes: int, total_bytes: int) -> None:
        now_s = time.monotonic()
        if now_s >= self._next_s:
            self._next_s = now_s + _REPORT_EVERY_S
            self._send(Loading(self._phase, done_bytes, total_bytes))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
