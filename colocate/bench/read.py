"""Read what a run or a sweep left. Whatever is broken is named with its file and what to do; a last line that was cut
off is dropped and marks the run as partial."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TypeVar

import msgspec
from msgspec import Struct, structs

from colocate.bench.records import (
    SCHEMA_VERSION,
    RecallRecord,
    RequestRow,
    RunManifest,
    RunStatus,
    ServerSample,
    SweepManifest,
)
from colocate.errors import ConfigError

MANIFEST_FILE = "manifest.json"
REQUESTS_FILE = "requests.jsonl"
SERVER_FILE = "server.jsonl"
SWEEP_FILE = "sweep.json"
RUNS_FOLDER = "runs"
RECALL_FOLDER = "recall"

_Document = TypeVar("_Document", RunManifest, SweepManifest, RecallRecord)
_Line = TypeVar("_Line", RequestRow, ServerSample)

_REPEAT = "the folder is damaged: repeat the run"


class _Versioned(Struct):
    schema_version: int


@dataclass(frozen=True, slots=True)
class Run:
    """One run as read. Rows are in order of schedule, samples in order of time. `notes` say what was cut off."""

    folder: Path
    manifest: RunManifest
    rows: tuple[RequestRow, ...]
    samples: tuple[ServerSample, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def status(self) -> RunStatus:
        """The manifest's, or `partial` where the files are cut."""
        return "partial" if self.notes and self.manifest.status == "valid" else self.manifest.status

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why it is not valid; empty where it is."""
        return self.manifest.reasons + self.notes


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A run of a sweep, or a record of its recall, that could not be read, and why."""

    folder: Path
    problem: str


@dataclass(frozen=True, slots=True)
class Sweep:
    """A sweep as read: its runs in order of their names, and what its arms recalled. What could not be read stands in
    `unreadable`."""

    folder: Path
    manifest: SweepManifest
    runs: tuple[Run, ...]
    unreadable: tuple[Unreadable, ...] = ()
    recalls: tuple[RecallRecord, ...] = ()


def read_results(folder: Path) -> Run | Sweep:
    """Whichever of the two the folder holds. Raises ConfigError."""
    if (folder / SWEEP_FILE).is_file():
        return read_sweep(folder)
    if (folder / MANIFEST_FILE).is_file():
        return read_run(folder)
    if not folder.is_dir():
        raise ConfigError(str(folder), "there is no such folder", "name a folder that bench or sweep has written")
    problem = f"holds neither {MANIFEST_FILE} (a run) nor {SWEEP_FILE} (a sweep)"
    raise ConfigError(str(folder), problem, "name a folder that bench or sweep has written")


def read_sweep(folder: Path) -> Sweep:
    """A sweep and every run under it. A run that cannot be read does not hide the others. Raises ConfigError where the
    sweep itself cannot be read."""
    manifest = read_sweep_manifest(folder)
    runs: list[Run] = []
    unreadable: list[Unreadable] = []
    below = folder / RUNS_FOLDER
    for path in sorted(below.iterdir()) if below.is_dir() else ():
        if not path.is_dir():
            continue
        try:
            runs.append(read_run(path))
        except ConfigError as error:
            unreadable.append(Unreadable(path, str(error)))
    recalls: list[RecallRecord] = []
    for path in sorted((folder / RECALL_FOLDER).glob("*.json")):
        try:
            recalls.append(read_recall(path))
        except ConfigError as error:
            unreadable.append(Unreadable(path, str(error)))
    return Sweep(folder, manifest, tuple(runs), tuple(unreadable), tuple(recalls))


def read_sweep_manifest(folder: Path) -> SweepManifest:
    """What a sweep set out to do, without its runs. Raises ConfigError."""
    return _document(folder / SWEEP_FILE, SweepManifest, "a manifest of a run or sweep", _REPEAT)


def read_recall(path: Path) -> RecallRecord:
    """What one arm recalled. Raises ConfigError: no such file, another version, not such a record."""
    what, remedy = "a record of recall", "delete it, and ask again with `colocate sweep --recall`"
    record = _document(path, RecallRecord, what, remedy)
    if not 0 <= record.right <= record.asked:
        raise ConfigError(str(path), f"says that {record.right} of {record.asked} answers were right", remedy)
    return record


def read_run(folder: Path) -> Run:
    """One run. Raises ConfigError: no such file, another version, a line that cannot be read (the last one excepted),
    a request that stands twice."""
    manifest = _document(folder / MANIFEST_FILE, RunManifest, "a manifest of a run or sweep", _REPEAT)
    rows, row_notes = _lines(folder / REQUESTS_FILE, RequestRow)
    server = folder / SERVER_FILE
    samples, sample_notes = _lines(server, ServerSample) if server.exists() else ([], [])
    rows.sort(key=lambda row: row.index)
    for row, following in pairwise(rows):
        if row.index == following.index:
            problem = f"request {row.index} stands in it twice"
            raise ConfigError(str(folder / REQUESTS_FILE), problem, "the file was written by two runs: repeat the run")
    samples.sort(key=lambda sample: sample.at_s)
    return Run(folder, _with_end(manifest, rows), tuple(rows), tuple(samples), tuple(row_notes + sample_notes))


def _with_end(manifest: RunManifest, rows: Sequence[RequestRow]) -> RunManifest:
    """A client that was killed did not write how long it ran: at least until the last thing it wrote down."""
    if manifest.status != "partial" or manifest.elapsed_s:
        return manifest
    return structs.replace(manifest, elapsed_s=max((row.end_s or row.scheduled_s for row in rows), default=0.0))


def _document(path: Path, kind: type[_Document], what: str, remedy: str) -> _Document:
    """`remedy`: for a file that is damaged."""
    data = _bytes(path)
    try:
        found = msgspec.json.decode(data, type=_Versioned).schema_version
    except msgspec.DecodeError as error:
        raise ConfigError(str(path), f"is not {what}: {error}", remedy) from None
    if found != SCHEMA_VERSION:
        other = (
            "read it with a newer colocate" if found > SCHEMA_VERSION else "repeat the run, or read it with the version"
        )
        other += "" if found > SCHEMA_VERSION else " of colocate that wrote it"
        problem = f"{path.name} has schema version {found}, this colocate reads version {SCHEMA_VERSION}"
        raise ConfigError(str(path.parent), problem, other)
    try:
        return msgspec.json.decode(data, type=kind)
    except msgspec.DecodeError as error:
        raise ConfigError(str(path), f"cannot be read: {error}", remedy) from None


def _lines(path: Path, kind: type[_Line]) -> tuple[list[_Line], list[str]]:
    decoder = msgspec.json.Decoder(kind)
    *whole, rest = _bytes(path).split(b"\n")
    records: list[_Line] = []
    for number, line in enumerate(whole, 1):
        if not line:
            continue
        try:
            records.append(decoder.decode(line))
        except msgspec.DecodeError as error:
            raise ConfigError(f"{path}:{number}", f"cannot be read: {error}", "repeat the run") from None
    if not rest:
        return records, []
    try:
        records.append(decoder.decode(rest))
    except msgspec.DecodeError:
        return records, [f"{path.name}: the last line is cut off, {len(records)} lines are whole"]
    return records, []


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise ConfigError(str(path), "there is no such file", "name a folder that bench or sweep has written") from None
    except OSError as error:
        raise ConfigError(str(path), f"cannot be read: {error.strerror}", "check its permissions") from None
