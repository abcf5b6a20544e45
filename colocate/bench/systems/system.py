"""What a sweep must know about a system to run it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

READY_TIMEOUT_S = 600.0
STOP_S = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """One server as it is to be started. `url` is where it will answer, `ready_path` what says 200 once it can serve
    (empty: `/v1/models`). `model` is the name that requests carry; None: the first one it offers."""

    command: tuple[str, ...]
    url: str
    ready_path: str = "/ready"
    environ: Mapping[str, str] = field(default_factory=dict)  # on top of ours
    model: str | None = None
    ready_timeout_s: float = READY_TIMEOUT_S
    stop_s: float = STOP_S  # after SIGTERM; then everything it has started is killed
    written: tuple[str, ...] = ()  # the command as it can be published; empty: as it is


class System(Protocol):
    """A way to serve. Stateless, so one object serves every run of a sweep.

    Implementations: `colocate.py` (this package), `command.py` (anybody, from a few lines of YAML).
    """

    @property
    def name(self) -> str:
        """Goes into `SweepArm.system`."""
        ...

    def launch(self, flags: tuple[str, ...], port: int) -> Launch:
        """How to start it with an arm's flags on this port of this machine. Starts nothing."""
        ...

    def version(self) -> str:
        """As the system itself tells it; empty where it does not. May run its command for a moment."""
        ...
