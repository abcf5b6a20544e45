"""What the operator sees of a start: one line per step with its seconds, then where to go."""

from __future__ import annotations

import json
import re
import shlex
import sys
import time
from typing import TextIO

_BAR_CELLS = 24
_CLEAR_LINE = "\r\x1b[2K"


class Console:
    """Lines to standard error, dimmed and coloured on a terminal. Quiet mode keeps warnings only."""

    def __init__(self, stream: TextIO | None = None, *, quiet: bool = False) -> None:
        self._stream = stream or sys.stderr
        self._styled = self._stream.isatty()
        self._quiet = quiet
        self._started_s = time.monotonic()
        self._has_progress = False  # the cursor stands behind a line that the next one replaces

    def progress(self, role: str, phase: str, detail: str) -> None:
        """What a process does now, on a line that the next one replaces; only on a terminal. `12/96` and `40%` in
        `detail` are drawn as a bar."""
        if self._quiet or not self._styled:
            return
        bar = progress_bar(detail)
        self._has_progress = True
        self._emit(f"{_CLEAR_LINE}  {self._style('36', f'{role:<10}')} {phase} {bar}{detail}")

    def step(self, name: str, detail: str, seconds: float | None = None) -> None:
        """`  keeper     weights 12 MiB, KV pool 1 GiB                      0.31 s`"""
        if self._quiet:
            return
        took = "" if seconds is None else self._style("2", f"{seconds:6.2f} s")
        self._write(f"  {self._style('36', f'{name:<10}')} {detail:<76} {took}".rstrip())

    def ready(self) -> None:
        if not self._quiet:
            self._write(self._style("1;32", f"ready in {time.monotonic() - self._started_s:.1f} s"))

    def line(self, text: str = "") -> None:
        if not self._quiet:
            self._write(text)

    def warn(self, text: str) -> None:
        self._write(f"{self._style('33', 'colocate:')} {text}")

    def goodbye(self, text: str) -> None:
        if not self._quiet:
            self._write(self._style("2", text))

    def _style(self, code: str, text: str) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if self._styled else text

    def _write(self, text: str) -> None:
        replaced, self._has_progress = _CLEAR_LINE if self._has_progress else "", False
        self._emit(f"{replaced}{text}\n")

    def _emit(self, text: str) -> None:
        try:
            self._stream.write(text)
            self._stream.flush()
        except (OSError, ValueError):
            pass  # a closed terminal must not stop the daemon


def progress_bar(detail: str) -> str:
    """`████████                 ` for `32/96`, with a space behind it; empty where `detail` states no share."""
    found = re.search(r"(\d+)/(\d+)|(\d+)%", detail)
    if found is None:
        return ""
    done, total = (int(found[3]), 100) if found[3] else (int(found[1]), int(found[2]))
    cells = _BAR_CELLS * min(done, total) // total if total else 0
    return f"{'█' * cells}{' ' * (_BAR_CELLS - cells)} "


def curl_line(url: str, model_name: str, needs_key: bool) -> str:
    """A chat completion that works when pasted into a shell, with a key once `KEY` is exported. It is printed and may
    be logged: the key itself is never in it."""
    body = json.dumps({"model": model_name, "messages": [{"role": "user", "content": "What is colocate?"}]})
    key = ' -H "Authorization: Bearer $KEY"' if needs_key else ""
    return f"curl {url}/v1/chat/completions -H 'Content-Type: application/json'{key} -d {shlex.quote(body)}"
