"""The process between a sweep and a server: `python -m colocate.bench.systems.guard LOG STOP_S COMMAND...`.

It lives in a session of its own, so a Ctrl-C in the sweep's terminal does not strike the server in the middle of a
request. It starts the command with its output in the file LOG, prints its pid, and then reads standard input, on which
nothing ever comes: the end of that pipe is the end of the sweep or of this run, in whatever way that came, SIGKILL
included. Then it sends SIGTERM to the server, waits STOP_S seconds, and kills whatever is left of it: orphans of the
server have become our children, wherever they have put themselves.

A server that ends by itself ends its guard, with its own exit code. If the guard is killed the server dies with it;
what the server has started is then its own affair. Only the standard library is imported.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

from colocate.family import descendants, reap_all, say, signal_all

NOT_STARTED = 127

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_KILL_S = 10.0  # a process that the kernel holds on to must not hold us


def main(log: Path, stop_s: float, command: list[str]) -> int:
    """The server's exit code; as a shell has it where a signal ended the server."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    stopped = _stop_pipe()
    libc = ctypes.CDLL(None)
    libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    with log.open("ab") as output:
        try:
            server = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                preexec_fn=lambda: libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0),
            )
        except OSError as error:
            say(f"{command[0]}: {error.strerror}")
            return NOT_STARTED
    say(str(server.pid))
    try:
        if _wait(server, stopped):
            _stop(server, stop_s)
    finally:
        _kill_rest(server)
    code = server.poll()
    return 1 if code is None else code if code >= 0 else 128 - code


def _stop_pipe() -> int:
    """SIGTERM means what the end of standard input means; it is readable once that came."""
    read, write = os.pipe()
    os.set_blocking(write, False)
    signal.signal(signal.SIGTERM, lambda *_: None)
    signal.set_wakeup_fd(write)
    return read


def _wait(server: subprocess.Popen[bytes], stopped: int) -> bool:
    """True once the server is to be stopped, False once it has ended."""
    pidfd = os.pidfd_open(server.pid)
    try:
        poller = select.poll()
        for fd in (0, pidfd, stopped):
            poller.register(fd, select.POLLIN | select.POLLHUP)
        while True:
            stirred = {fd for fd, _ in poller.poll()}
            if pidfd in stirred:
                return False
            if (0 in stirred and not os.read(0, 64)) or (stopped in stirred and signal.SIGTERM in os.read(stopped, 64)):
                return True
    finally:
        os.close(pidfd)


def _stop(server: subprocess.Popen[bytes], stop_s: float) -> None:
    server.terminate()
    try:
        server.wait(stop_s)
    except subprocess.TimeoutExpired:
        pass


def _kill_rest(server: subprocess.Popen[bytes]) -> None:
    server.poll()
    deadline_s = time.monotonic() + _KILL_S
    while descendants(os.getpid()) and time.monotonic() < deadline_s:
        signal_all(signal.SIGKILL)
        server.poll()
        reap_all()
        time.sleep(0.01)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), float(sys.argv[2]), sys.argv[3:]))
