"""How the keeper hands its segments to a worker: one packet with their names and sizes, the descriptors beside it.

Host memory travels as memfd descriptors, memory of a GPU as descriptors of the driver (vmm) or as tokens (ipc).

The address is an abstract Unix socket. Both ends check that the other runs as the same user; anyone may connect to an
abstract address, and anyone may have taken it first.
"""

from __future__ import annotations

import os
import socket
import struct

from msgspec import Struct, ValidationError, msgpack

from colocate.device.cpu.memory import Segment, adopt_segment
from colocate.errors import ChannelClosed

_MAX_PACKET_BYTES = 4096
_MAX_SEGMENTS = 8
_UCRED = struct.Struct("3i")  # pid, uid, gid


class SegmentEntry(Struct, frozen=True, array_like=True):
    """One segment. `reserved_bytes` is `num_bytes` rounded up to what the device allocates in; `token` is of ipc."""

    name: str
    num_bytes: int
    reserved_bytes: int
    token: bytes = b""


class SegmentTable(Struct, frozen=True):
    """What lies in the segments. `weights_crc32` is of the weights as loaded, so that a worker can prove what it
    maps."""

    transport: str  # memfd, vmm or ipc
    segments: list[SegmentEntry]  # in the order of the descriptors; ipc has none
    weights_crc32: int


MEMFD = "memfd"


def listen_at(address: str) -> socket.socket:
    """A listening socket at the abstract `address` (without its leading zero byte)."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
    listener.bind(b"\0" + address.encode())
    listener.listen(16)
    return listener


def connect_to(address: str) -> socket.socket:
    """Raises OSError while nobody listens there, ChannelClosed if it is another user's socket."""
    peer = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
    try:
        peer.connect(b"\0" + address.encode())
    except OSError:
        peer.close()
        raise
    if not is_same_user(peer):
        peer.close()
        raise ChannelClosed(f"{address} belongs to another user")
    return peer


def is_same_user(peer: socket.socket) -> bool:
    """By the kernel's word, not by the peer's."""
    _, uid, _ = _UCRED.unpack(peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    return bool(uid == os.geteuid())


def send_table(peer: socket.socket, table: SegmentTable, fds: list[int]) -> None:
    """Descriptors stay the caller's. Raises OSError where the peer is gone."""
    socket.send_fds(peer, [msgpack.encode(table)], fds)


def receive_table(peer: socket.socket) -> tuple[SegmentTable, list[int]]:
    """The table and its descriptors, owned by the caller. Blocks as long as the socket's time-out.

    Raises ChannelClosed if the keeper went away or what came is not a table with its descriptors.
    """
    try:
        packet, fds, flags, _ = socket.recv_fds(peer, _MAX_PACKET_BYTES, _MAX_SEGMENTS, socket.MSG_CMSG_CLOEXEC)
    except TimeoutError:
        raise ChannelClosed("the keeper did not hand out its memory in time") from None
    except OSError as error:
        raise ChannelClosed(f"the keeper is gone: {error.strerror}") from None
    try:
        if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
            raise ChannelClosed("the keeper's packet was cut short")
        if not packet:
            raise ChannelClosed("the keeper closed the connection")
        table = msgpack.decode(packet, type=SegmentTable)
        due = 0 if any(entry.token for entry in table.segments) else len(table.segments)
        if due != len(fds):
            raise ChannelClosed(f"{len(table.segments)} segments were named, {len(fds)} descriptors came")
    except (ValidationError, ChannelClosed) as error:
        for fd in fds:
            os.close(fd)
        raise ChannelClosed(str(error)) from None
    return table, fds


def send_segments(peer: socket.socket, segments: list[Segment], weights_crc32: int) -> None:
    """Host memory. Raises OSError where the peer is gone."""
    entries = [SegmentEntry(segment.name, segment.num_bytes, segment.num_bytes) for segment in segments]
    send_table(peer, SegmentTable(MEMFD, entries, weights_crc32), [segment.fd for segment in segments])


def receive_segments(peer: socket.socket) -> tuple[dict[str, Segment], int]:
    """Host memory: the segments by name, owned by the caller, and the checksum. Blocks and raises as `receive_table`,
    and ChannelClosed where the keeper holds memory of a GPU."""
    table, fds = receive_table(peer)
    if table.transport != MEMFD:
        for fd in fds:
            os.close(fd)
        raise ChannelClosed(f"the keeper hands out {table.transport!r} memory, not host memory")
    pairs = zip(table.segments, fds, strict=True)
    return {entry.name: adopt_segment(entry.name, fd, entry.num_bytes) for entry, fd in pairs}, table.weights_crc32
