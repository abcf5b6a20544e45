"""What the supervisor says of the other processes, and whether this daemon may take a request."""

from __future__ import annotations

import math
import time

from colocate.errors import Overloaded
from colocate.messages.control import ProcessInfo, ProcessTable
from colocate.types import Role

DRAINING = "draining"
READY = "ready"


class DaemonStatus:
    """Written by the control channel's reader, read by the handlers; both on the event loop."""

    def __init__(self) -> None:
        self._table = ProcessTable(phase="starting", processes=[], startup_s={})
        self._drain_until_s: float | None = None
        self._was_ready = False

    def update(self, table: ProcessTable) -> None:
        self._table = table
        self._was_ready = self._was_ready or table.phase == READY

    def drain(self, deadline_s: float) -> None:
        self._drain_until_s = time.monotonic() + deadline_s

    @property
    def draining(self) -> bool:
        return self._drain_until_s is not None

    @property
    def phase(self) -> str:
        return DRAINING if self.draining else self._table.phase

    @property
    def ready(self) -> bool:
        return self.phase == READY

    @property
    def startup_s(self) -> dict[str, float]:
        return self._table.startup_s

    @property
    def gpu_memory(self) -> dict[str, int]:
        return self._table.gpu_memory

    @property
    def processes(self) -> list[ProcessInfo]:
        return self._table.processes

    def process(self, role: Role) -> ProcessInfo | None:
        return next((process for process in self._table.processes if process.role is role), None)

    def check_admission(self) -> None:
        """Raises Overloaded before the first start has succeeded and while draining. A worker's restart in between
        does not turn clients away: their requests wait, as those in flight do."""
        if self._drain_until_s is not None:
            left_s = max(1.0, self._drain_until_s - time.monotonic())
            raise Overloaded("the server is shutting down", retry_after_s=math.ceil(left_s), status=503)
        if not self._was_ready:
            raise Overloaded(f"the server is starting: {self._table.phase}", retry_after_s=2.0, status=503)
