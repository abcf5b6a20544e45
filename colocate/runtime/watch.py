"""Alive is not the same as getting on: two questions to the board about a process that has not died."""

from __future__ import annotations

import time

from colocate.config.roles import ANY_WORKER, workers_in
from colocate.config.serve import SupervisorSection
from colocate.runtime.child import Child, ChildState
from colocate.transport.board import Board


def reason_to_kill(child: Child, board: Board, settings: SupervisorSection) -> str | None:
    """Why this process must be replaced although it runs; None where all is well."""
    now_ns = time.monotonic_ns()
    if child.doomed_because is not None:
        return None
    if child.state is ChildState.STARTING:
        waited_s = time.monotonic() - child.started_s
        late = waited_s > settings.start_timeout_s
        return f"not ready after {waited_s:.0f} s (start_timeout_s)" if late else None
    if child.state is not ChildState.READY:
        return None
    lines = workers_in(child.role)  # on the board: one for each loop of the process
    silent_s = (now_ns - max(min(board.beat_of(line) for line in lines), int(child.ready_s * 1e9))) / 1e9
    if silent_s > settings.heartbeat_timeout_s:
        return f"silent for {silent_s:.1f} s"
    for line in lines:
        deadline_ns = board.progress_of(line).deadline_ns if line in ANY_WORKER else 0
        if 0 < deadline_ns < now_ns:
            return f"no progress: its step is {(now_ns - deadline_ns) / 1e9:.1f} s past its deadline"
    return None
