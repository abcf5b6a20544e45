"""The line between the supervisor and one child: an inherited pair of `SOCK_SEQPACKET` Unix sockets.

It needs no address, keeps message boundaries, and ends by itself when either side dies: that is how a child learns
that its parent is gone, and the supervisor that a child is, after the child's last message has been read.
"""

from __future__ import annotations

import os
import socket
from typing import Union

import msgspec

from colocate.errors import ChannelClosed, InvariantError
from colocate.messages import control

ControlMessage = Union[  # noqa: UP007 - one name for the type checker and for msgspec
    control.StartupPhase,
    control.ChildReady,
    control.ChildFailed,
    control.PoisonFailed,
    control.ChannelBroken,
    control.EngineAt,
    control.WorkerStarting,
    control.FrontendStarting,
    control.WorkerGone,
    control.FrontendGone,
    control.Drain,
    control.Drained,
    control.ReloadPlans,
    control.Shutdown,
    control.ProcessTable,
]

MAX_MESSAGE_BYTES = 64 * 1024


class ControlChannel:
    """One end. Owns the descriptor it is given; non-blocking throughout."""

    def __init__(self, fd: int) -> None:
        self._socket = socket.socket(fileno=fd)
        self._socket.setblocking(False)
        self._encode = msgspec.msgpack.Encoder().encode
        self._decode = msgspec.msgpack.Decoder(ControlMessage).decode
        self._dropped_junk = 0
        self._sent = 0
        self._received = 0

    @classmethod
    def pair(cls) -> tuple[ControlChannel, ControlChannel]:
        """Both ends, close-on-exec. The child's end is passed on by `pass_fds` (or `os.set_inheritable`)."""
        first, second = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        return cls(first.detach()), cls(second.detach())

    def send(self, message: ControlMessage) -> bool:
        """False where the peer has stopped reading and its buffer is full. Raises ChannelClosed where it is gone."""
        payload = self._encode(message)
        if len(payload) > MAX_MESSAGE_BYTES:
            raise InvariantError(f"a {type(message).__name__} of {len(payload)} bytes does not fit the control socket")
        try:
            self._socket.send(payload, socket.MSG_NOSIGNAL)
        except BlockingIOError:
            return False
        except OSError as error:
            raise ChannelClosed(f"control socket: {error}") from error
        self._sent += 1
        return True

    def recv(self) -> ControlMessage | None:
        """The next message or None. Raises ChannelClosed at the end of the stream, after every message was read."""
        while True:
            try:
                payload = self._socket.recv(MAX_MESSAGE_BYTES)
            except BlockingIOError:
                return None
            except OSError as error:
                raise ChannelClosed(f"control socket: {error}") from error
            if not payload:
                raise ChannelClosed("control socket: the peer is gone")
            try:
                message: ControlMessage = self._decode(payload)
            except (msgspec.DecodeError, msgspec.ValidationError):
                self._dropped_junk += 1
                continue
            self._received += 1
            return message

    def fileno(self) -> int:
        """Readable (level-triggered) while a message or the end of the stream waits."""
        return self._socket.fileno()

    def set_inheritable(self, inheritable: bool) -> None:
        os.set_inheritable(self.fileno(), inheritable)

    def close(self) -> None:
        self._socket.close()

    def statistics(self) -> dict[str, int]:
        return {"sent": self._sent, "received": self._received, "dropped_junk": self._dropped_junk}
