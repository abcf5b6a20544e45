"""A channel inside one process, with the semantics of the real one: for tests and for loops driven step by step."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

from msgspec import Struct

from colocate.errors import ChannelClosed
from colocate.transport.framing import MAX_FRAME_BYTES, Framer


@dataclass(slots=True)
class _Pipe:
    """One direction. The event descriptor counts the frames that wait."""

    high_water: int
    frames: deque[tuple[bytes, ...]] = field(default_factory=deque)
    event_fd: int = field(default_factory=lambda: os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC | os.EFD_SEMAPHORE))
    reader_open: bool = True


class MemoryChannel:
    """One end; make both with `memory_pair`. Messages are encoded and decoded as on the wire, never shared."""

    def __init__(self, inbound: Sequence[type[Struct]], incoming: _Pipe, outgoing: _Pipe, max_frame_bytes: int) -> None:
        self._framer = Framer(inbound, max_frame_bytes)
        self._incoming = incoming
        self._outgoing = outgoing
        self._closed = False

    def send(self, message: Struct) -> bool:
        if self._closed:
            raise ChannelClosed("this end was closed")
        frame = self._framer.pack(message)
        if not self._outgoing.reader_open or len(self._outgoing.frames) >= self._outgoing.high_water:
            self._framer.counts.refused_full += 1
            return False
        self.inject(frame)
        self._framer.mark_sent()
        return True

    def inject(self, parts: tuple[bytes, ...]) -> None:
        """Put raw parts on the wire to the peer, outside the numbering: how tests and faults send junk."""
        self._outgoing.frames.append(parts)
        os.eventfd_write(self._outgoing.event_fd, 1)

    def recv(self) -> Struct | None:
        if self._closed:
            raise ChannelClosed("this end was closed")
        frames = self._incoming.frames
        while frames:
            os.eventfd_read(self._incoming.event_fd)
            message = self._framer.unpack(frames.popleft())
            if message is not None:
                return message
        return None

    def fileno(self) -> int:
        return self._incoming.event_fd

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._incoming.reader_open = False
            self._incoming.frames.clear()
            os.close(self._incoming.event_fd)

    def statistics(self) -> dict[str, int]:
        return asdict(self._framer.counts)


def memory_pair(
    inbound_a: Sequence[type[Struct]],
    inbound_b: Sequence[type[Struct]],
    *,
    high_water: int = 4096,
    max_frame_bytes: int = MAX_FRAME_BYTES,
) -> tuple[MemoryChannel, MemoryChannel]:
    """Two connected ends: what `b` sends, `a` must accept, and the other way round."""
    to_a, to_b = _Pipe(high_water), _Pipe(high_water)
    return (
        MemoryChannel(inbound_a, to_a, to_b, max_frame_bytes),
        MemoryChannel(inbound_b, to_b, to_a, max_frame_bytes),
    )
