"""Between the keeper and its one-shot loader: the job on the loader's standard input, reports on its standard output.

A report is a MessagePack struct behind its length in four bytes, little-endian. Imports no torch: the keeper reads it.
"""

from __future__ import annotations

import struct
from typing import TypeAlias

from msgspec import Struct, msgpack

from colocate.messages.spec import RuntimeFacts
from colocate.worker.segments import SegmentEntry

_LENGTH = struct.Struct("<I")


class LoaderJob(Struct, frozen=True):
    """What to load, and into which memory. `fds` are numbers in the loader, in the order of `segments`; ipc has
    none."""

    facts: RuntimeFacts
    load_format: str  # auto: the checkpoint in facts.model_dir; dummy: random numbers
    seed: int  # of dummy weights
    transport: str
    segments: list[SegmentEntry]
    fds: list[int]


class Loading(Struct, frozen=True, tag=True):
    """The loader is at work. `total_bytes` is 0 where `phase` has no measure."""

    phase: str
    done_bytes: int = 0
    total_bytes: int = 0


class Loaded(Struct, frozen=True, tag=True):
    """Everything is in place; the process ends. The checksum is of the weights as read back from the device."""

    weights_crc32: int


class LoadFailed(Struct, frozen=True, tag=True):
    """Something that the operator can mend; the process ends."""

    where: str
    problem: str
    remedy: str


Report: TypeAlias = Loading | Loaded | LoadFailed


def encode_report(report: Report) -> bytes:
    data = msgpack.encode(report)
    return _LENGTH.pack(len(data)) + data


class ReportReader:
    """Reports out of a stream of bytes, however it is cut."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[Report]:
        """The reports that are complete now, in order. Raises msgspec.MsgspecError on anything else."""
        self._buffer += data
        reports: list[Report] = []
        while len(self._buffer) >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._buffer)
            end = _LENGTH.size + length
            if len(self._buffer) < end:
                break
            reports.append(msgpack.decode(self._buffer[_LENGTH.size : end], type=Report))
            del self._buffer[:end]
        return reports
