"""A probe worker of the doctor that misbehaves, as PROBE_SABOTEUR says: hang, die, kill, junk, other."""

from __future__ import annotations

import os
import signal
import socket
import sys

import msgspec

from colocate.device.cuda.proof.commands import Done


def main(line_fd: int) -> None:
    line = socket.socket(fileno=line_fd)
    line.recv(65536)
    mode = os.environ["PROBE_SABOTEUR"]
    if mode == "hang":
        signal.pause()
    elif mode == "die":
        print("last words", file=sys.stderr, flush=True)
        os._exit(7)
    elif mode == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif mode == "junk":
        line.send(b"\xc1 no MessagePack")
    else:
        line.send(msgspec.msgpack.encode(Done(0.0)))
    line.recv(65536)


if __name__ == "__main__":
    main(int(sys.argv[1]))
