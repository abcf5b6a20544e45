"""What a start looks like: lines that stay, and one that is replaced."""

from __future__ import annotations

import io

import pytest

from colocate.runtime.console import Console, progress_bar


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("detail", "cells"), [("0/96", 0), ("48/96", 12), ("96/96", 24), ("graphs 12/24", 12), ("25%", 6), ("0/0", 0)]
)
def test_a_share_is_drawn_as_a_bar(detail: str, cells: int) -> None:
    assert progress_bar(detail) == "█" * cells + " " * (24 - cells) + " "


def test_what_states_no_share_has_no_bar() -> None:
    assert progress_bar("weights and KV") == progress_bar("") == ""


def test_progress_is_replaced_by_the_next_line() -> None:
    terminal = Terminal()
    console = Console(terminal)
    console.progress("decode", "graphs", "1/2")
    console.progress("decode", "graphs", "2/2")
    console.warn("something")
    console.line("more")
    text = terminal.getvalue()
    assert text.count("\n") == 2 and text.count("\r\x1b[2K") == 3
    assert text.rpartition("\x1b[2K")[2].splitlines()[1] == "more"


def test_a_file_gets_no_progress() -> None:
    stream = io.StringIO()
    console = Console(stream)
    console.progress("decode", "graphs", "1/2")
    console.line("text")
    assert stream.getvalue() == "text\n"


def test_quiet_is_quiet() -> None:
    terminal = Terminal()
    Console(terminal, quiet=True).progress("decode", "graphs", "1/2")
    assert terminal.getvalue() == ""
