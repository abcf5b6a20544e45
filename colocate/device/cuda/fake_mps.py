"""A stand-in for `nvidia-cuda-mps-control` and its server: real processes, the same command line, no GPU.

    python -m colocate.device.cuda.fake_mps -f        the daemon, in the foreground
    echo get_server_list | python -m ...fake_mps      its shell
    connect(pipe_directory)                           become a client, for as long as the socket is open

It serves runs on the fake driver (`COLOCATE_FAKE_CUDA=1`) and the tests of whoever manages a daemon. What it does
beyond the original is for saboteurs: `fake_fault` (no new clients until the old ones are gone, as after an illegal
address), `fake_broken` (the same, for good) and `fake_hang` (never answer again, not even to quit).
`COLOCATE_FAKE_MPS` in its environment: `refuse` makes it end at once with a line in its log, `mute` never answer.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

COMMAND = (sys.executable, "-m", "colocate.device.cuda.fake_mps")
NOT_READY = "807"  # CUDA_ERROR_MPS_SERVER_NOT_READY, the answer to a client that comes during a fault
SOCKET = "control"


class FakeDaemon:
    """One control daemon. A thread per connection; `_lock` is around everything they share."""

    def __init__(self, pipe_directory: Path, log_directory: Path) -> None:
        self._address = str(pipe_directory / SOCKET)
        self._log_path = log_directory / "control.log"
        self._lock = threading.Lock()
        self._server: subprocess.Popen[bytes] | None = None
        self._clients: dict[int, socket.socket] = {}
        self._state = "ACTIVE"
        self._is_hung = False
        self._quits = threading.Event()

    def run(self) -> int:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(self._address)
        listener.listen(16)
        self._log("Start")
        threading.Thread(target=self._accept, args=(listener,), daemon=True).start()
        self._quits.wait()
        if self._server is not None:
            self._server.kill()
            self._server.wait()
        Path(self._address).unlink()
        self._log("Exit")
        return 0

    def _accept(self, listener: socket.socket) -> None:
        while True:
            connection, _ = listener.accept()
            threading.Thread(target=self._converse, args=(connection,), daemon=True).start()

    def _converse(self, connection: socket.socket) -> None:
        words = connection.makefile().readline().split()
        if words and words[0] == "client":
            self._serve_client(connection, int(words[1]))
        elif words and not self._is_hung:
            with self._lock:
                answer = self._answer(words)
            connection.sendall(answer.encode())
            connection.close()
            if words[0] == "quit":
                self._quits.set()

    def _serve_client(self, connection: socket.socket, pid: int) -> None:
        with self._lock:
            if self._state != "ACTIVE":
                connection.sendall(f"{NOT_READY}\n".encode())
                connection.close()
                return
            self._start_server()
            self._clients[pid] = connection
        self._log(f"client {pid}")
        connection.sendall(b"0\n")
        while connection.fileno() >= 0 and connection.recv(64):
            pass
        with self._lock:
            self._clients.pop(pid, None)
            if self._state == "FAULT" and not self._clients:
                self._state = "ACTIVE"

    def _answer(self, words: list[str]) -> str:
        verb = words[0]
        if verb == "start_server":
            self._start_server()
        elif verb == "get_server_list":
            return f"{self._server.pid}\n" if self._server is not None else ""
        elif verb in ("get_client_list", "get_server_status", "terminate_client"):
            if self._server is None or int(words[1]) != self._server.pid:
                return f"Server {words[1]} not found\n"
            return self._answer_of_server(verb, words[2:])
        elif verb == "fake_fault":
            self._state = "FAULT" if self._clients else "ACTIVE"
        elif verb == "fake_broken":
            self._state = "BROKEN"
        elif verb == "fake_hang":
            self._is_hung = True
        elif verb != "quit":
            return f"Unknown command: {verb}\n"
        return ""

    def _answer_of_server(self, verb: str, rest: list[str]) -> str:
        if verb == "get_client_list":
            return "".join(f"{pid}\n" for pid in sorted(self._clients))
        if verb == "get_server_status":
            return f"{'ACTIVE' if self._state == 'ACTIVE' else 'FAULT'}\n"
        connection = self._clients.pop(int(rest[0]), None)
        if connection is None:
            return f"Client {rest[0]} not found\n"
        connection.shutdown(socket.SHUT_RDWR)
        return ""

    def _start_server(self) -> None:
        if self._server is None:
            self._server = subprocess.Popen([*COMMAND, "--server"], stdin=subprocess.DEVNULL, start_new_session=True)

    def _log(self, line: str) -> None:
        with self._log_path.open("a") as log:
            log.write(f"[fake MPS control] {line}\n")


def connect(pipe_directory: str, pid: int | None = None) -> socket.socket | None:
    """Become a client of the daemon there. Keep the socket: closing it is the client's exit, and it reads as closed
    once the client was terminated. None where no daemon answers or its server takes no clients now."""
    peer = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        peer.connect(f"{pipe_directory}/{SOCKET}")
        peer.sendall(f"client {pid or os.getpid()}\n".encode())
        answer = peer.recv(64)
    except OSError:
        answer = b""
    if answer == b"0\n":
        return peer
    peer.close()
    return None


def is_connected(client: socket.socket) -> bool:
    """Whether this client was neither terminated nor left alone by its daemon."""
    readable, _, _ = select.select([client], [], [], 0)
    return not readable or bool(client.recv(1, socket.MSG_PEEK))


def shell(pipe_directory: str) -> int:
    """Carry each line of standard input to the daemon and print its answer."""
    for line in sys.stdin:
        peer = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            peer.connect(f"{pipe_directory}/{SOCKET}")
        except OSError:
            print("Cannot find MPS control daemon process")
            return 1
        with peer:
            peer.sendall(line.encode())
            while answer := peer.recv(4096):
                sys.stdout.write(answer.decode())
    return 0


def _serve() -> int:
    """The server: it is there, and does nothing."""
    while True:
        signal.pause()


def main(arguments: list[str]) -> int:
    if arguments == ["--server"]:
        return _serve()
    pipe_directory = os.environ.get("CUDA_MPS_PIPE_DIRECTORY", "/tmp/nvidia-mps")
    if arguments != ["-f"]:
        return shell(pipe_directory)
    if os.environ.get("COLOCATE_FAKE_MPS") == "refuse":
        print("An instance of this daemon is already running", flush=True)
        return 1
    if os.environ.get("COLOCATE_FAKE_MPS") == "mute":
        return _serve()
    return FakeDaemon(Path(pipe_directory), Path(os.environ["CUDA_MPS_LOG_DIRECTORY"])).run()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
