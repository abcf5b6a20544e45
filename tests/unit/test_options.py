"""Flags of the command line: their spellings, and what `--help` says of them."""

from __future__ import annotations

import re

import pytest
import typer
from typer.testing import CliRunner

from colocate.cli.app import app
from colocate.cli.options import SERVE_OPTIONS, SIMULATE_OPTIONS, with_settings


def given(*arguments: str, names: tuple[str, ...] = SERVE_OPTIONS) -> dict[str, object]:
    """What a command with these options is told."""
    told: dict[str, object] = {}

    def command(flags: dict[str, object]) -> None:
        told.update(flags)

    one = typer.Typer()
    one.command()(with_settings(names)(command))
    result = CliRunner().invoke(one, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return told


@pytest.mark.parametrize("names", [SERVE_OPTIONS, SIMULATE_OPTIONS])
@pytest.mark.parametrize("flag", ["prefix-caching", "enable-prefix-caching"])
def test_the_switch_has_two_spellings(names: tuple[str, ...], flag: str) -> None:
    assert given(f"--{flag}", names=names) == {"prefix_caching": True}
    assert given(f"--no-{flag}", names=names) == {"prefix_caching": False}
    assert given(names=names) == {}


def test_a_chunk_is_a_number_of_batched_tokens() -> None:
    for flag in ("--max-num-batched-tokens", "--chunk-size"):
        assert given(flag, "96") == {"max_num_batched_tokens": "96"}


def help_of(command: str) -> str:
    result = CliRunner().invoke(
        app, [command, "--help"], env={"COLUMNS": "160", "TERM": "dumb"}, catch_exceptions=False
    )
    return re.sub(r"\s+", " ", re.sub(r"[│╭╮╰╯─]|\x1b\[[0-9;]*m", " ", result.stdout))


def test_help_gives_the_name_first_and_says_what_is_easily_missed() -> None:
    told = help_of("serve")
    for text in (
        "--max-num-batched-tokens,--chunk-size",
        "elastic:SPLIT",
        "every split, or 16 of them",
        "itl 100 ms",
        "--enable-prefix-caching",
        "which to hold out",
    ):
        assert text in told
    assert "--max-num-batched-tokens,--chunk-size" in help_of("plan")
    assert "--check" in help_of("replay")
