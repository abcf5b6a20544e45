"""What a guard does with the processes below it, its own and those it has adopted. Only the standard library."""

from __future__ import annotations

import os
import signal
from pathlib import Path


def descendants(ancestor: int) -> list[int]:
    """Children, theirs, and so on; of a subreaper also the orphans among them, which have become its own."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
            except OSError:
                continue
            parents[int(entry.name)] = int(fields[1])
    found: list[int] = []
    frontier = {ancestor}
    while frontier:
        frontier = {pid for pid, parent in parents.items() if parent in frontier}
        found += frontier
    return found


def signal_all(number: signal.Signals) -> None:
    """To every descendant of this process."""
    for pid in descendants(os.getpid()):
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            pass


def reap_all() -> None:
    """Collect every child that has ended."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


def say(text: str) -> None:
    """To whoever reads standard output, if anybody still does."""
    try:
        print(text, flush=True)
    except OSError:
        pass
