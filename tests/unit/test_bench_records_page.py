"""docs/records.md is the schema for whoever reads runs without this package: it is held to the types."""

from __future__ import annotations

import re
import typing
from pathlib import Path

import msgspec
import pytest
from msgspec.structs import FieldInfo, fields

from colocate.bench import records
from colocate.bench.figures import FIGURES_VERSION, RunFigures, ServerFigures
from colocate.bench.metrics.distribution import Distribution
from colocate.bench.records import SCHEMA_VERSION, Outcome, Phase, RequestRow, RunStatus
from colocate.config.slo import SloClass

PAGE = (Path(__file__).parents[2] / "docs" / "records.md").read_text(encoding="utf-8")
SECTIONS = {
    found["name"]: found["text"]
    for found in re.finditer(r"^## `(?P<name>\w+)`(?P<text>.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL)
}
WRITTEN = [
    kind
    for kind in vars(records).values()
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct) and kind.__module__ == records.__name__
]


def named(section: str) -> dict[str, bool]:
    """Field of the section's first table -> whether it is marked as always there."""
    table = section.partition("| field |")[2].partition("\n\n")[0]
    first_cells = [line.split("|")[1] for line in table.splitlines()[2:]]
    return {name: mark == " *" for cell in first_cells for name, mark in re.findall(r"`(\w+)`( \*)?", cell)}


@pytest.mark.parametrize("kind", WRITTEN, ids=lambda kind: kind.__name__)
def test_every_field_of_every_record_stands_there(kind: type[msgspec.Struct]) -> None:
    def is_always_there(field: FieldInfo) -> bool:
        return field.required

    assert named(SECTIONS[kind.__name__]) == {field.name: is_always_there(field) for field in fields(kind)}


def test_every_figure_stands_there() -> None:
    section = SECTIONS["RunFigures"]
    assert set(named(section)) == set(RunFigures.__struct_fields__)
    for kind in (ServerFigures, Distribution, SloClass):
        for name in kind.__struct_fields__:
            assert f"`{name}`" in section, name


def test_versions_and_words_stand_there() -> None:
    assert f"schema version {SCHEMA_VERSION}" in PAGE
    assert f"## `RunFigures`, version {FIGURES_VERSION}" in PAGE
    sources = typing.get_type_hints(RequestRow)["token_source"]
    for words in (Phase, Outcome, RunStatus, sources):
        for word in typing.get_args(words):
            assert f"`{word}`" in PAGE, word
