"""What is said to an MPS control daemon, and how its answers are read.

The daemon has a shell: `nvidia-cuda-mps-control` without arguments reads commands on its standard input and finds the
daemon by `CUDA_MPS_PIPE_DIRECTORY`. Commands and their meaning: NVIDIA's MPS documentation, "nvidia-cuda-mps-control".
The form of the answers is not documented, so they are read with suspicion: a list is the lines that begin with a
number, a state is a known word anywhere, and everything else counts as no answer.

Nothing here was tried against NVIDIA's own daemon yet.
"""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Mapping, Sequence

_PID = re.compile(r"^\s*(\d+)\b", re.MULTILINE)
_UNHEALTHY = re.compile(r"\b(FAULT|INITIALIZING|INACTIVE|PENDING)\b", re.IGNORECASE)
_ACTIVE = re.compile(r"\bACTIVE\b", re.IGNORECASE)
_UNREACHABLE = re.compile(r"cannot find|can't find|failed to connect|connection refused", re.IGNORECASE)
_AGAIN_S = 0.02


class MpsControl:
    """Questions to one daemon. `command` starts its shell, `environ` names its pipe directory.

    Every call is bounded by the `timeout_s` it is given, or by the one of its class: a hung daemon costs that and
    is then no answer.
    """

    def __init__(self, command: Sequence[str], environ: Mapping[str, str]) -> None:
        self._command = list(command)
        self._environ = dict(environ)

    def ask(self, line: str, timeout_s: float = 1.0) -> str | None:
        """What the daemon prints to one command; None where it does not answer in time, or is not there."""
        if timeout_s <= 0:
            return None
        try:
            done = subprocess.run(
                self._command,
                input=line + "\n",
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                timeout=timeout_s,
                env=self._environ,
            )
        except (subprocess.TimeoutExpired, OSError):
            return None
        if done.returncode != 0 or _UNREACHABLE.search(done.stdout):
            return None
        return done.stdout

    def servers(self, timeout_s: float = 1.0) -> list[int] | None:
        """Process ids of the MPS servers; None where the daemon does not answer."""
        answer = self.ask("get_server_list", timeout_s)
        return None if answer is None else pids_in(answer)

    def clients(self, server: int, timeout_s: float = 1.0) -> list[int] | None:
        """Process ids of this server's clients; None where the daemon does not answer."""
        answer = self.ask(f"get_client_list {server}", timeout_s)
        return None if answer is None else pids_in(answer)

    def server_state(self, server: int, timeout_s: float = 1.0) -> str | None:
        """FAULT, INITIALIZING or another word for a server that takes no clients now; None where nothing says so."""
        answer = self.ask(f"get_server_status {server}", timeout_s) or ""
        found = _UNHEALTHY.search(answer)
        return None if found is None or _ACTIVE.search(answer) else found.group(1).upper()

    def server_of(self, client: int, timeout_s: float = 1.0) -> int | None:
        """The server this process is a client of; None: of none, or nobody answers."""
        deadline_s = time.monotonic() + timeout_s
        for server in self.servers(timeout_s) or []:
            if client in (self.clients(server, deadline_s - time.monotonic()) or []):
                return server
        return None

    def terminate_client(self, client: int, timeout_s: float = 1.0) -> bool:
        """Have the server end this client's work and destroy its contexts; the process itself lives on. True where
        the daemon took the order, or where the process is no client."""
        deadline_s = time.monotonic() + timeout_s
        server = self.server_of(client, timeout_s)
        if server is None:
            return True
        return self.ask(f"terminate_client {server} {client}", deadline_s - time.monotonic()) is not None

    def wait_gone(self, client: int, timeout_s: float = 1.0) -> bool:
        """Until this process is in no server's list any more. False: it still is, or nobody answers."""
        deadline_s = time.monotonic() + timeout_s
        while True:
            servers = self.servers(deadline_s - time.monotonic())
            if servers is not None:
                lists = [self.clients(server, deadline_s - time.monotonic()) for server in servers]
                if all(each is not None and client not in each for each in lists):
                    return True
            if time.monotonic() + _AGAIN_S > deadline_s:
                return False
            time.sleep(_AGAIN_S)


def pids_in(answer: str) -> list[int]:
    """The numbers that lines begin with."""
    return [int(pid) for pid in _PID.findall(answer)]
