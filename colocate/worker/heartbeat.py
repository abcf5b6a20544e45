"""A thread that says "alive" ten times a second, whatever the main loop is doing."""

from __future__ import annotations

import threading
import time

from colocate.transport.board import Board
from colocate.types import Role

HEARTBEAT_S = 0.1


class Heartbeat:
    """Beats at once and then until `stop`. A daemon thread: it never keeps a process from ending."""

    def __init__(self, board: Board, role: Role) -> None:
        self._board = board
        self._role = role
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while True:
            self._board.beat(self._role, time.monotonic_ns())
            if self._stopped.wait(HEARTBEAT_S):
                return

    def stop(self) -> None:
        """Call before the board is closed."""
        self._stopped.set()
        self._thread.join()
