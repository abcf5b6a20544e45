"""One MessagePack frame per packet between the doctor and a probe worker, with file descriptors beside it.

A `SOCK_SEQPACKET` pair: no framing to get wrong, and the end of the stream is the death of the peer.
"""

from __future__ import annotations

import os
import select
import socket
from typing import Generic, TypeVar

import msgspec

_MAX_FRAME_BYTES = 128 * 1024
_MAX_FDS = 4

Received = TypeVar("Received")


class LineClosed(Exception):
    """The peer is gone, or sent what no peer of this version sends."""


class Line(Generic[Received]):
    """One end. Owns its socket. `received` is the type of what arrives."""

    def __init__(self, fd: int, received: object) -> None:
        self._socket = socket.socket(fileno=fd)
        self._decode = msgspec.msgpack.Decoder(received).decode
        self._encode = msgspec.msgpack.Encoder().encode

    def send(self, message: msgspec.Struct, fds: tuple[int, ...] = ()) -> None:
        """Raises LineClosed. The descriptors stay the caller's to close."""
        try:
            socket.send_fds(self._socket, [self._encode(message)], list(fds), socket.MSG_NOSIGNAL)
        except OSError as error:
            raise LineClosed(str(error)) from error

    def receive(self, limit_s: float | None = None) -> tuple[Received, list[int]]:
        """The next message and its descriptors, now the caller's. Raises TimeoutError, LineClosed."""
        poller = select.poll()
        poller.register(self._socket, select.POLLIN)
        if not poller.poll(None if limit_s is None else max(0.0, limit_s) * 1000):
            raise TimeoutError
        try:
            payload, fds, _, _ = socket.recv_fds(self._socket, _MAX_FRAME_BYTES, _MAX_FDS)
        except OSError as error:
            raise LineClosed(str(error)) from error
        if not payload:
            raise LineClosed("the peer closed its end")
        try:
            message: Received = self._decode(payload)
        except msgspec.MsgspecError as error:
            for fd in fds:
                os.close(fd)
            raise LineClosed(f"an unreadable frame: {error}") from error
        return message, fds

    def fileno(self) -> int:
        return self._socket.fileno()

    def close(self) -> None:
        self._socket.close()
