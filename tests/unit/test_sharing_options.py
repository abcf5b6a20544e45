"""The shape of a pattern on the command line: every command that makes such a load takes all of it, alike."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import typer
from typer.core import TyperOption
from typer.testing import CliRunner

from colocate.cli.app import app
from colocate.cli.sharing_options import HELP
from colocate.errors import ConfigError
from colocate.workload.patterns import PatternShape
from colocate.workload.read import read_workload

SHAPE = ("--shared-tokens", "96", "--num-shared", "1", "--num-uses", "2", "--num-prefixes", "3")
LOAD = ("--rate", "4", "--lengths", "16/2", "--duration", "3", "--arrivals", "constant")


def flags_of(*path: str) -> set[str]:
    command = typer.main.get_command(app)
    for name in path:
        command = command.commands[name]  # type: ignore[attr-defined]
    return {flag for option in command.params if isinstance(option, TyperOption) for flag in option.opts}


def test_every_field_of_a_shape_is_an_option_of_every_command_that_makes_a_load() -> None:
    assert set(HELP) == {field.name for field in dataclasses.fields(PatternShape)}
    wanted = {"--" + name.replace("_", "-") for name in HELP} - {"--block-tokens"} | {"--prefix-block-tokens"}
    for path in (("workload", "make"), ("bench",), ("sweep",), ("simulate",)):
        assert wanted <= flags_of(*path)


def test_a_shape_is_what_the_load_has(tmp_path: Path) -> None:
    out = tmp_path / "load.jsonl"
    flags = (*SHAPE, "--prefix-block-tokens", "32")
    result = CliRunner().invoke(app, ["workload", "make", "same-document", "-o", str(out), *LOAD, *flags])
    assert result.exit_code == 0, result.output
    rows = read_workload(out).rows
    assert {len(row.prefix) for row in rows} == {3}
    assert len({row.prefix for row in rows}) == len(rows) / 2  # two questions to each document


@pytest.mark.parametrize("command", [("bench", "http://127.0.0.1:1"), ("sweep", "--rates", "1", "--arms", "shared")])
def test_a_shape_is_held_against_its_rules_before_anything_runs(command: tuple[str, ...]) -> None:
    load = LOAD if command[0] == "bench" else LOAD[2:]
    given = [*command, *load, "--pattern", "same-document", *SHAPE, "--prefix-block-tokens", "64"]
    result = CliRunner().invoke(app, given)
    assert isinstance(result.exception, ConfigError), result.output
    assert "--prefix-block-tokens that divide" in str(result.exception)
