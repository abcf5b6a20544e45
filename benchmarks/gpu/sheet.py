"""Where results go: one JSON file per group, rewritten whole after every figure, so a killed run keeps what it had.

The suite and the section it runs are two processes; only one of them writes at a time.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec
from msgspec import Struct
from msgspec.structs import replace

SCHEMA = 1
Outcome = Literal["running", "done", "failed", "killed", "skipped"]


class SectionResult(Struct, frozen=True, forbid_unknown_fields=True):
    """One section. `error` is a traceback, or why it was killed or skipped; `data` holds whatever was measured by
    then."""

    outcome: Outcome
    seconds: float = 0.0
    data: dict[str, Any] = {}
    error: str = ""


class GroupFile(Struct, frozen=True, forbid_unknown_fields=True):
    """The JSON file of a group. `is_real` is False where no GPU was used: then no figure says anything of one."""

    group: str
    is_real: bool
    command: str
    machine: dict[str, Any] = {}
    sections: dict[str, SectionResult] = {}
    schema: int = SCHEMA


def read_group(path: Path) -> GroupFile:
    """Raises msgspec.ValidationError where the file is not one of this schema."""
    return msgspec.json.decode(path.read_bytes(), type=GroupFile)


def write_group(path: Path, group: GroupFile) -> None:
    """Whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    scratch.write_bytes(msgspec.json.format(msgspec.json.encode(group, enc_hook=_plain), indent=1) + b"\n")
    scratch.rename(path)


def put_section(path: Path, name: str, result: SectionResult) -> None:
    group = read_group(path)
    write_group(path, replace(group, sections={**group.sections, name: result}))


def _plain(value: object) -> object:
    """numpy and torch scalars are numbers here, and subclasses of str are text."""
    if isinstance(value, str):
        return str.__str__(value)
    item = getattr(value, "item", None)
    if item is None:
        raise NotImplementedError(f"a {type(value).__name__} is not a result")
    return item()


class Sheet:
    """A section's own page: `put` and `add` are on disk when they return."""

    def __init__(self, path: Path, section: str) -> None:
        self._path = path
        self._section = section
        self._data: dict[str, Any] = {}

    @property
    def data(self) -> Mapping[str, Any]:
        return self._data

    def put(self, key: str, value: object) -> None:
        """Raises NotImplementedError for what is no result, and keeps what was there."""
        data = {**self._data, key: value}
        put_section(self._path, self._section, SectionResult("running", data=data))
        self._data = data

    def add(self, key: str, row: Mapping[str, object]) -> None:
        """Append a row to the table `key`."""
        self.put(key, [*self._data.get(key, []), dict(row)])
