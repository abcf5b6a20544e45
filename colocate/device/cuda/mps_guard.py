"""The process between a run and its MPS daemon: `python -m colocate.device.cuda.mps_guard COMMAND...`.

It lives in a session of its own, so nothing that strikes the run strikes it. It makes a private directory, says where
it is on standard output, starts the daemon in the foreground under itself and then reads its standard input, on which
nothing ever comes: the end of that pipe is the end of the run, in whatever way that came, SIGKILL included. Then it
tells the daemon to quit, kills whatever of daemon and servers remains, removes the directory, and prints the last
lines of the daemon's logs for whoever still listens.

A daemon that dies by itself ends its guard in the same way: its servers would take no new clients. One that goes to
the background after all is followed there, by the number it writes into its pipe directory.
Only the standard library is imported. Killing the guard itself is the one death that leaves the directory behind; the
daemon goes with it.
"""

from __future__ import annotations

import ctypes
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from colocate.device.cuda.mps_control import MpsControl
from colocate.family import descendants, reap_all, say, signal_all

PIPE, LOG = "p", "l"  # short: a path to a socket has about a hundred bytes
MAX_PIPE_PATH = 80  # room for the longest name the daemon puts into its pipe directory
_FOREGROUND = "foreground.log"  # what the daemon prints
PID_FILE = "nvidia-cuda-mps-control.pid"  # in the pipe directory; NVIDIA's documentation names it
_TAIL_CHARS = 2000

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_QUIT_S = 3.0
_TERM_S = 1.0
_KILL_S = 5.0  # a process that the kernel holds on to must not hold us


def main(command: list[str]) -> int:
    """Exit codes: 0 the run ended, 1 the daemon did."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    # A server whose daemon died becomes our child, so that it can be found.
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    directory = make_directory()
    try:
        say(str(directory))
        environ = mps_environment(directory)
        try:
            run_ended = _follow(_start(command, environ, directory), directory)
        except OSError as error:  # no such program, or none for this machine
            run_ended = False
            (directory / LOG / _FOREGROUND).write_text(f"{command[0]}: {error.strerror}\n")
        finally:
            _end(MpsControl(command, environ))
    finally:
        say(log_tail(directory))
        shutil.rmtree(directory, ignore_errors=True)
    return 0 if run_ended else 1


def make_directory() -> Path:
    """For this user alone. Raises OSError."""
    parent = tempfile.gettempdir()
    if len(os.fsencode(parent)) + len("/colocate-mps-12345678/p") > MAX_PIPE_PATH:
        parent = "/tmp"
    directory = Path(tempfile.mkdtemp(prefix="colocate-mps-", dir=parent))
    for name in (PIPE, LOG):
        (directory / name).mkdir(mode=0o700)
    return directory


def mps_environment(directory: Path) -> dict[str, str]:
    """Of the daemon and of everybody who talks to it."""
    names = {"CUDA_MPS_PIPE_DIRECTORY": str(directory / PIPE), "CUDA_MPS_LOG_DIRECTORY": str(directory / LOG)}
    return {**os.environ, **names}


def log_tail(directory: Path) -> str:
    """The last lines of every log, newest file last."""
    texts = []
    for path in sorted(directory.glob(f"{LOG}/*"), key=lambda path: path.stat().st_mtime):
        text = path.read_text(errors="replace").strip()
        if text:
            texts.append(f"{path.name}: {text[-_TAIL_CHARS:]}")
    return "\n".join(texts)[-_TAIL_CHARS:]


def _start(command: list[str], environ: dict[str, str], directory: Path) -> int:
    """Its number. It is reaped by `reap_all`, as whatever else becomes our child."""
    with (directory / LOG / _FOREGROUND).open("wb") as output:
        daemon = subprocess.Popen(
            [*command, "-f"],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=environ,
            preexec_fn=lambda: ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0),
        )
        return daemon.pid


def _follow(pid: int, directory: Path) -> bool:
    """True once the run is over, False once the daemon is."""
    while not _wait(pid):
        successor = _named_in(directory)
        if successor in (None, pid) or successor not in descendants(os.getpid()):
            return False
        pid = successor
    return True


def _named_in(directory: Path) -> int | None:
    try:
        return int((directory / PIPE / PID_FILE).read_text())
    except (OSError, ValueError):
        return None


def _wait(pid: int) -> bool:
    """True once the run is over, False once this child is."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return False  # it ended at once and is reaped already: whoever drops a Popen does that
    try:
        poller = select.poll()
        poller.register(0, select.POLLIN | select.POLLHUP)
        poller.register(pidfd, select.POLLIN)
        while True:
            stirred = {fd for fd, _ in poller.poll()}
            if 0 in stirred and not os.read(0, 64):
                return True
            if pidfd in stirred:
                return False
    finally:
        os.close(pidfd)


def _end(control: MpsControl) -> None:
    """The daemon is told to quit; what is left of it and its servers is asked to leave, then killed."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if descendants(os.getpid()):
        heard = control.ask("quit -t 1", _QUIT_S) is not None
        if not (heard and _all_end(_QUIT_S)):
            signal_all(signal.SIGTERM)
            _all_end(_TERM_S)
    deadline_s = time.monotonic() + _KILL_S
    while not _all_end(0.01) and time.monotonic() < deadline_s:
        signal_all(signal.SIGKILL)


def _all_end(timeout_s: float) -> bool:
    deadline_s = time.monotonic() + timeout_s
    while True:
        reap_all()
        if not descendants(os.getpid()):
            return True
        if time.monotonic() > deadline_s:
            return False
        time.sleep(0.01)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
