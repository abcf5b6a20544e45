"""What the operator sees of a start: one line per step with its seconds, then where to go."""

from __future__ import annotations

import json
import shlex
import sys
import time
from typing import TextIO


class Console:
    """Lines to standard error, dimmed and coloured on a terminal. Quiet mode keeps warnings only."""

    def __init__(self, stream: TextIO | None = None, *, quiet: bool = False) -> None:
        self._stream = stream or sys.stderr
        self._styled = self._stream.isatty()
        self._quiet = quiet
        self._started_s = time.monotonic()

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
        try:
            self._stream.write(text + "\n")
            self._stream.flush()
        except (OSError, ValueError):
            pass  # a closed terminal must not stop the daemon


def curl_line(url: str, model_name: str, needs_key: bool) -> str:
    """A chat completion that works when pasted into a shell, with a key once `KEY` is exported. It is printed and may
    be logged: the key itself is never in it."""
    body = json.dumps({"model": model_name, "messages": [{"role": "user", "content": "What is colocate?"}]})
    key = ' -H "Authorization: Bearer $KEY"' if needs_key else ""
    return f"curl {url}/v1/chat/completions -H 'Content-Type: application/json'{key} -d {shlex.quote(body)}"
