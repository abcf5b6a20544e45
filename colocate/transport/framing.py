"""How a message becomes a frame: `[8-byte little-endian sequence number, MessagePack of one tagged Struct]`.

Both channel implementations frame through this, so numbering, gaps and junk are handled in one place.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Union

import msgspec
from msgspec import Struct

from colocate.errors import ChannelClosed, FrameTooLarge, InvariantError

MAX_FRAME_BYTES = 16 * 1024 * 1024

_SEQUENCE = struct.Struct("<Q")


@dataclass(slots=True)
class FrameCounts:
    """What went through one end of a channel; `statistics()` of the channel."""

    sent: int = 0
    received: int = 0
    refused_full: int = 0  # sends answered False: high-water mark, or the peer is not connected (yet)
    dropped_truncated: int = 0  # not two parts, or no whole sequence number
    dropped_oversized: int = 0
    dropped_junk: int = 0  # not MessagePack, an unknown type, or fields of the wrong type
    disconnects: int = 0  # how often the transport lost a peer: its exit, or a frame over the hard limit


class Framer:
    """Sequence numbers and the codec of one end of a channel. `inbound` are the only types this end accepts."""

    def __init__(self, inbound: Sequence[type[Struct]], max_frame_bytes: int = MAX_FRAME_BYTES) -> None:
        if not inbound:
            raise InvariantError("a channel end that accepts no message type is a mistake")
        self.counts = FrameCounts()
        self.max_frame_bytes = max_frame_bytes
        self._encode = msgspec.msgpack.Encoder().encode
        union: Any = Union[tuple(inbound)]  # noqa: UP007 - built at run time
        self._decode = msgspec.msgpack.Decoder(union).decode
        self._next_out = 0
        self._next_in = 0

    def pack(self, message: Struct) -> tuple[bytes, bytes]:
        """The frame of the next message. It counts as sent only after `mark_sent`, so a refused send leaves no gap."""
        payload = self._encode(message)
        if len(payload) > self.max_frame_bytes:
            raise FrameTooLarge(
                f"a {type(message).__name__} of {len(payload)} bytes is over the channel's limit of "
                f"{self.max_frame_bytes} bytes; split it"
            )
        return _SEQUENCE.pack(self._next_out), payload

    def mark_sent(self) -> None:
        self._next_out += 1
        self.counts.sent += 1

    def unpack(self, parts: Sequence[bytes]) -> Struct | None:
        """The message of a frame, or None where the frame was dropped (and counted).

        Raises ChannelClosed where a well-formed message does not carry the next number: something before it is lost.
        """
        if len(parts) != 2 or len(parts[0]) != _SEQUENCE.size:
            self.counts.dropped_truncated += 1
            return None
        if len(parts[1]) > self.max_frame_bytes:
            self.counts.dropped_oversized += 1
            return None
        try:
            message: Struct = self._decode(parts[1])
        except (msgspec.DecodeError, msgspec.ValidationError, RecursionError):
            self.counts.dropped_junk += 1
            return None
        (sequence,) = _SEQUENCE.unpack(parts[0])
        if sequence != self._next_in:
            raise ChannelClosed(
                f"expected message {self._next_in} and got {sequence} ({type(message).__name__}): messages were lost"
            )
        self._next_in += 1
        self.counts.received += 1
        return message
