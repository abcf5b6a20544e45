"""Any other server, by its command line, as a file of `colocate sweep --config` names it under `peers`:

    peers:
      vllm:
        command: [.venv-vllm/bin/vllm, serve, "{model}", --port, "{port}", --served-model-name, bench]
        ready: /health
        model: bench
        environment: {VLLM_NO_USAGE_STATS: "1"}
        version: [.venv-vllm/bin/vllm, --version]
        variants:
          default: []
          chunk512: [--max-num-batched-tokens, "512"]

Arms `peer:vllm` (its first variant, or all of them with `peer:vllm:*`) and `peer:vllm:chunk512`. In `command`, `model`
and `environment`, `{model}` is the sweep's MODEL and `{port}` the port to listen on at 127.0.0.1.
"""

from __future__ import annotations

import os
import string
import subprocess
from itertools import chain
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from colocate.bench.systems.system import READY_TIMEOUT_S, STOP_S, Launch
from colocate.errors import ConfigError

_HOLES = frozenset({"model", "port"})
_VERSION_S = 60.0


class PeerEntry(Struct, frozen=True, forbid_unknown_fields=True, rename="kebab"):
    """One system under `peers`. Times in seconds."""

    command: Annotated[tuple[str, ...], Meta(min_length=1)]
    ready: str = "/health"  # answers 200 once it can serve
    model: str | None = None  # what requests call the model; None: the first one it offers
    environment: dict[str, str] = {}
    version: tuple[str, ...] = ()  # a command that prints it
    variants: dict[str, tuple[str, ...]] = {}  # name -> flags appended to the command
    ready_timeout_s: float = READY_TIMEOUT_S
    stop_s: float = STOP_S


def parse_peers(where: str, document: object) -> dict[str, PeerEntry]:
    """The mapping under `peers`, checked. Raises ConfigError at `where`."""
    try:
        peers = msgspec.convert(document, dict[str, PeerEntry])
    except msgspec.ValidationError as error:
        raise ConfigError(where, str(error), "see docs/sweep.md for an entry") from None
    for name, entry in peers.items():
        for text in (
            *entry.command,
            entry.model or "",
            *entry.environment.values(),
            *chain.from_iterable(entry.variants.values()),
        ):
            _check_holes(f"{where}: {name}", text)
        if not any("{port}" in text for text in (*entry.command, *entry.environment.values())):
            raise ConfigError(f"{where}: {name}", "never says {port}", "let the server listen where the sweep asks it")
    return peers


class CommandSystem:
    """Implements `System`."""

    def __init__(self, name: str, entry: PeerEntry, model: str) -> None:
        self.name = name
        self._entry = entry
        self._model = model

    def launch(self, flags: tuple[str, ...], port: int) -> Launch:
        entry = self._entry

        def fill(text: str) -> str:
            return text.format(model=self._model, port=port)

        return Launch(
            command=(*map(fill, entry.command), *map(fill, flags)),
            url=f"http://127.0.0.1:{port}",
            ready_path=entry.ready,
            environ={key: fill(text) for key, text in entry.environment.items()},
            model=None if entry.model is None else fill(entry.model),
            ready_timeout_s=entry.ready_timeout_s,
            stop_s=entry.stop_s,
        )

    def version(self) -> str:
        if not self._entry.version:
            return ""
        try:
            done = subprocess.run(
                self._entry.version,
                capture_output=True,
                text=True,
                timeout=_VERSION_S,
                check=False,
                env={**os.environ, **self._entry.environment},
            )
        except (OSError, subprocess.TimeoutExpired):
            return ""
        lines = done.stdout.strip().splitlines()
        return lines[-1].strip() if done.returncode == 0 and lines else ""


def _check_holes(where: str, text: str) -> None:
    try:
        holes = {name for _, name, _, _ in string.Formatter().parse(text) if name is not None}
    except ValueError as error:
        raise ConfigError(where, f"{text!r}: {error}", "write {{ and }} for braces") from None
    unknown = sorted(holes - _HOLES)
    if unknown:
        raise ConfigError(where, f"{text!r} names {{{unknown[0]}}}", "known are {model} and {port}; {{ }} for braces")
