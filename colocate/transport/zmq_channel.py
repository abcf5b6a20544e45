"""A channel between two processes: a ZMQ DEALER pair on an abstract Unix socket."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict

import zmq
from msgspec import Struct
from zmq.utils.monitor import recv_monitor_message

from colocate.errors import ChannelClosed, ConfigError
from colocate.transport.framing import MAX_FRAME_BYTES, Framer
from colocate.transport.vocabulary import ENGINE_TO, FROM_FRONTEND, FROM_WORKER
from colocate.types import Role

# Only peers of our own user may connect (zmq_setsockopt(3), ZMQ_IPC_FILTER_UID); pyzmq gives it no name.
_ZMQ_IPC_FILTER_UID = 59
_RECONNECT_MS = 10
_HIGH_WATER_MESSAGES = 4096


class ZmqChannel:
    """One end of a DEALER pair. The engine binds, its peer connects; both speak as soon as they are connected."""

    def __init__(self, socket: zmq.Socket[bytes], framer: Framer) -> None:
        self.socket = socket
        self._framer = framer
        self._monitor = socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)

    @classmethod
    def bind(
        cls,
        address: str,
        inbound: Sequence[type[Struct]],
        *,
        high_water: int = _HIGH_WATER_MESSAGES,
        max_frame_bytes: int = MAX_FRAME_BYTES,
    ) -> ZmqChannel:
        """Listen at `address` for the one peer that knows it. Raises ConfigError where the address is taken."""
        socket = _new_socket(high_water, max_frame_bytes)
        socket.setsockopt(_ZMQ_IPC_FILTER_UID, os.getuid())
        channel = cls(socket, Framer(inbound, max_frame_bytes))
        try:
            socket.bind(address)
        except zmq.ZMQError as error:
            channel.close()
            raise ConfigError(
                address, f"cannot listen: {error}", "addresses are unique per run; is this one in use?"
            ) from error
        return channel

    @classmethod
    def connect(
        cls,
        address: str,
        inbound: Sequence[type[Struct]],
        *,
        high_water: int = _HIGH_WATER_MESSAGES,
        max_frame_bytes: int = MAX_FRAME_BYTES,
    ) -> ZmqChannel:
        """Connect in the background, again and again until the peer listens; `send` answers False until then."""
        socket = _new_socket(high_water, max_frame_bytes)
        channel = cls(socket, Framer(inbound, max_frame_bytes))
        socket.connect(address)
        return channel

    def send(self, message: Struct) -> bool:
        if self.socket.closed:
            raise ChannelClosed("this end was closed")
        framer = self._framer
        head, payload = framer.pack(message)
        try:
            self.socket.send(head, zmq.SNDMORE | zmq.NOBLOCK, copy=True)
        except zmq.Again:
            framer.counts.refused_full += 1
            return False
        # A first part accepted reserves the pipe for the whole message: the second is never refused.
        self.socket.send(payload, 0, copy=True)
        framer.mark_sent()
        return True

    def recv(self) -> Struct | None:
        if self.socket.closed:
            raise ChannelClosed("this end was closed")
        socket = self.socket
        # Asking for the events costs a tenth of the exception that an empty socket raises.
        while int(socket.get(zmq.EVENTS)) & zmq.POLLIN:
            try:
                parts = socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return None
            message = self._framer.unpack(parts)
            if message is not None:
                return message
        return None

    def inject(self, parts: tuple[bytes, ...]) -> None:
        """Put raw parts on the wire, outside the numbering: how tests and injected faults send junk."""
        self.socket.send_multipart(parts, zmq.NOBLOCK)

    def fileno(self) -> int:
        return int(self.socket.FD)

    def close(self) -> None:
        if not self.socket.closed:
            self._count_disconnects()
            self.socket.disable_monitor()
            self._monitor.close(linger=0)
            self.socket.close(linger=0)

    def statistics(self) -> dict[str, int]:
        if not self.socket.closed:
            self._count_disconnects()
        return asdict(self._framer.counts)

    def _count_disconnects(self) -> None:
        while int(self._monitor.get(zmq.EVENTS)) & zmq.POLLIN:
            if recv_monitor_message(self._monitor, zmq.NOBLOCK)["event"] == zmq.EVENT_DISCONNECTED:
                self._framer.counts.disconnects += 1


def bind_for_worker(address: str, role: Role) -> ZmqChannel:
    """The engine's end of the channel to a worker."""
    return ZmqChannel.bind(address, FROM_WORKER[role])


def bind_for_frontend(address: str) -> ZmqChannel:
    """The engine's end of the channel to the frontend."""
    return ZmqChannel.bind(address, FROM_FRONTEND)


def connect_to_engine(address: str, role: Role) -> ZmqChannel:
    """A worker's or the frontend's end of its channel to the engine."""
    return ZmqChannel.connect(address, ENGINE_TO[role])


def _new_socket(high_water: int, max_frame_bytes: int) -> zmq.Socket[bytes]:
    socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.DEALER)
    socket.set_hwm(high_water)
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.IMMEDIATE, 1)  # queue nothing for a peer that is not there
    socket.setsockopt(zmq.RECONNECT_IVL, _RECONNECT_MS)
    socket.setsockopt(zmq.RECONNECT_IVL_MAX, 0)
    # The hard limit: libzmq disconnects a peer that announces more, before any memory is taken for it.
    socket.setsockopt(zmq.MAXMSGSIZE, max_frame_bytes)
    return socket
