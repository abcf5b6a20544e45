"""The engine's event log: every event with its time and the commands it caused.

The file is a stream of MessagePack `bin` objects, each holding one MessagePack value: any MessagePack reader can walk
it and a torn tail is found by its length. The first value is a LogHeader, every other a LogRecord.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import msgspec
from msgspec import Raw, Struct

from colocate.core.engine import Event
from colocate.core.outbox import Command
from colocate.core.settings import EngineSettings
from colocate.errors import ConfigError

LOG_VERSION = 2
BIN32 = 0xC6  # MessagePack: bin with a 4-byte big-endian length
FLUSH_BYTES = 1 << 16
PIECE_BYTES = 1 << 20  # of a log that is read


class LogHeader(Struct, frozen=True):
    version: int
    colocate_version: str
    run_id: str
    epoch: int
    settings: EngineSettings


class LogRecord(Struct, frozen=True, array_like=True):
    now_ns: int
    event: Event
    commands: Raw  # MessagePack of list[Command], as it was sent


class EventLogWriter:
    """Appends records; `flush` at least every tick. Owned by the engine process."""

    def __init__(self, path: Path, header: LogHeader) -> None:
        self._encoder = msgspec.msgpack.Encoder()
        self._file: BinaryIO = path.open("wb", buffering=FLUSH_BYTES)
        self._write(self._encoder.encode(header))
        self.flush()

    def record(self, now_ns: int, event: Event, commands: list[Command]) -> None:
        raw = Raw(self._encoder.encode(commands))
        self._write(self._encoder.encode(LogRecord(now_ns, event, raw)))

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        self._file.close()

    def _write(self, payload: bytes) -> None:
        self._file.write(struct.pack(">BI", BIN32, len(payload)))
        self._file.write(payload)


class LogRecords:
    """The records of one log in order, read once. A torn last record, as a crash leaves it, ends them."""

    def __init__(self, path: Path, frames: _Frames) -> None:
        self._path = path
        self._frames = frames
        self._decode = msgspec.msgpack.Decoder(LogRecord).decode

    def __iter__(self) -> Iterator[LogRecord]:
        return self

    def __next__(self) -> LogRecord:
        """Raises ConfigError where a whole record holds something else."""
        frame = next(self._frames)
        try:
            return self._decode(frame)
        except msgspec.MsgspecError as error:
            problem = f"a record is damaged: {error}"
            remedy = "the file was changed after it was written: take the original, or record the run again"
            raise ConfigError(str(self._path), problem, remedy) from error

    @property
    def num_torn_bytes(self) -> int:
        """What stands behind the last whole record. Only known once all were read; until then, what is left."""
        return self._frames.num_left


def read_event_log(path: Path) -> tuple[LogHeader, LogRecords]:
    """The header and the records, which are read as they are asked for.

    Raises ConfigError where the file is no event log or one of another version.
    """
    try:
        frames = _Frames(path)
        first = next(frames, b"")
    except OSError as error:
        problem, remedy = f"cannot read the event log: {error.strerror}", "name a file that `serve --event-log` wrote"
        raise ConfigError(str(path), problem, remedy) from error
    try:
        header = msgspec.msgpack.decode(first, type=LogHeader)
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        version = _version_of(first)
        if version is not None and version != LOG_VERSION:
            raise ConfigError(
                str(path), f"log version {version}, this program reads {LOG_VERSION}", "use the version that wrote it"
            ) from error
        raise ConfigError(str(path), "this is not an event log", "pass a file that serve --event-log wrote") from error
    if header.version != LOG_VERSION:
        raise ConfigError(
            str(path),
            f"log version {header.version}, this program reads {LOG_VERSION}",
            "use the version that wrote it",
        )
    return header, LogRecords(path, frames)


class _Frames:
    """The whole values of a log, without their heads. Holds a piece of the file at a time, and no open file."""

    def __init__(self, path: Path) -> None:
        """Raises OSError."""
        self._path = path
        self._offset = 0  # of what comes next
        self._piece = b"" if path.is_file() else path.read_bytes()  # a pipe is read once, and whole
        self._piece_at = 0
        self._size = len(self._piece) or path.stat().st_size

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        start = self._offset + 5
        if start > self._size:
            raise StopIteration
        marker, length = struct.unpack(">BI", self._bytes(self._offset, 5))
        if marker != BIN32 or start + length > self._size:
            raise StopIteration
        frame = self._bytes(start, length)
        self._offset = start + length
        return frame

    def _bytes(self, offset: int, length: int) -> bytes:
        at = offset - self._piece_at
        if at + length > len(self._piece):
            with self._path.open("rb") as file:
                file.seek(offset)
                self._piece = file.read(max(length, PIECE_BYTES))
            self._piece_at, at = offset, 0
        return self._piece[at : at + length]

    @property
    def num_left(self) -> int:
        return self._size - self._offset


def _version_of(frame: bytes) -> int | None:
    """The version of a header whose other fields have changed since."""
    try:
        header = msgspec.msgpack.decode(frame)
    except msgspec.DecodeError:
        return None
    version = header.get("version") if isinstance(header, dict) else None
    return version if isinstance(version, int) else None
