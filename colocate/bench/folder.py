"""The folder of one run, written as the run goes, so that whatever stops it leaves what is known.

Rows are appended as requests end and put in order at the end. The manifest stands there from the start with status
`partial`; only a run that came to its end replaces it.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

import msgspec

from colocate.bench.records import RequestRow, RunManifest, ServerSample
from colocate.errors import ConfigError

MANIFEST = "manifest.json"
REQUESTS = "requests.jsonl"
SERVER = "server.jsonl"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class RunFolder:
    """One writer. Every method raises ConfigError where the disk does not take it; files then end with a whole line."""

    def __init__(self, path: Path) -> None:
        """Raises ConfigError where the folder holds a run already or cannot be made."""
        self.path = path
        if (path / MANIFEST).exists() or (path / REQUESTS).exists():
            raise ConfigError("--out", f"{path} holds a run already", "name a new folder, or move that one away")
        try:
            path.mkdir(parents=True, exist_ok=True)
            self._requests = _Lines(path / REQUESTS)
            self._server = _Lines(path / SERVER)
        except OSError as error:
            raise _refused(path, error, 0) from None
        self._places: dict[int, tuple[int, int]] = {}  # index of a row -> its offset and length

    @property
    def num_rows(self) -> int:
        return len(self._places)

    def add_row(self, row: RequestRow) -> None:
        try:
            self._places[row.index] = self._requests.append(msgspec.json.encode(row))
        except OSError as error:
            raise _refused(self.path, error, self.num_rows) from None

    def add_sample(self, sample: ServerSample) -> None:
        try:
            self._server.append(msgspec.json.encode(sample))
        except OSError as error:
            raise _refused(self.path, error, self.num_rows) from None

    def write_manifest(self, manifest: RunManifest) -> None:
        """The whole file or none of it; without room for another one, in the place of the one that is there."""
        data = msgspec.json.encode(manifest)
        try:
            _replace(self.path / MANIFEST, [msgspec.json.format(data, indent=1), b"\n"])
        except OSError as error:
            if error.errno not in _FULL or not _overwritten(self.path / MANIFEST, data):
                raise _refused(self.path, error, self.num_rows) from None

    def close(self) -> None:
        """Everything is on the disk, rows in order of schedule."""
        try:
            self._requests.sync()
            self._server.sync()
            if list(self._places) != sorted(self._places):
                _replace(
                    self.path / REQUESTS, [self._requests.read(*self._places[key]) for key in sorted(self._places)]
                )
        except OSError as error:
            raise _refused(self.path, error, self.num_rows) from None
        finally:
            self._requests.close()
            self._server.close()


class _Lines:
    """A file of lines. A line that does not fit leaves no part of itself."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        self._end = 0

    def append(self, line: bytes) -> tuple[int, int]:
        data = memoryview(line + b"\n")
        written = 0
        try:
            while written < len(data):
                written += os.write(self._file, data[written:])
        except OSError:
            os.ftruncate(self._file, self._end)
            os.lseek(self._file, self._end, os.SEEK_SET)
            raise
        place = self._end, len(data)
        self._end += len(data)
        return place

    def read(self, offset: int, length: int) -> bytes:
        return os.pread(self._file, length, offset)

    def sync(self) -> None:
        os.fsync(self._file)

    def close(self) -> None:
        os.close(self._file)


def _replace(path: Path, parts: list[bytes]) -> None:
    beside = path.with_name(path.name + ".new")
    try:
        with beside.open("wb") as file:
            file.writelines(parts)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except OSError:
        beside.unlink(missing_ok=True)
        raise


def _overwritten(path: Path, data: bytes) -> bool:
    """Whether `data` could take the place of what is there, which is no shorter: without its blanks it seldom is."""
    try:
        with path.open("r+b") as file:
            if len(data) > path.stat().st_size:
                return False
            file.write(data)
            file.truncate()
            os.fsync(file.fileno())
    except OSError:
        return False
    return True


def _refused(path: Path, error: OSError, num_rows: int) -> ConfigError:
    if error.errno in _FULL:
        problem = f"the disk is full after {num_rows} rows: {error.strerror}"
        return ConfigError(str(path), problem, "make room and run again; what is there is kept and marked partial")
    return ConfigError(
        str(path), f"cannot be written: {error.strerror}", "name a folder that can be written with --out"
    )
