"""What every pair of processes talks through. Two implementations: `zmq_channel.py` and `memory_channel.py`.

A channel has exactly two ends. Messages are whole, in order, and numbered by their sender; nothing is dropped on the
way: what cannot be sent is refused to the sender, what is missing closes the channel at the receiver.
"""

from __future__ import annotations

from typing import Protocol

from msgspec import Struct

from colocate.types import Role


class Channel(Protocol):
    """One end. Owned and used by one thread of one process."""

    def send(self, message: Struct) -> bool:
        """True once the message is on its way. False at the high-water mark or while no peer is connected: then
        nothing was sent, nothing was dropped, and the caller keeps the message. Raises ChannelClosed after `close`.
        """
        ...

    def recv(self) -> Struct | None:
        """The next message, or None where there is none now; never blocks. Frames that are truncated, junk, oversized
        or of a type this end does not accept are dropped and counted. Raises ChannelClosed at a gap in the numbers.
        """
        ...

    def fileno(self) -> int:
        """A descriptor that becomes readable when a message may have arrived. Edge-triggered: after it fired, and
        after every `send`, call `recv` until it answers None before sleeping on it again.
        `waiting.Waiter` takes care of it.
        """
        ...

    def close(self) -> None:
        """Idempotent. Messages not yet handed to the transport are lost; the peer notices by its supervisor."""
        ...

    def statistics(self) -> dict[str, int]:
        """Counters since creation, by the names of `framing.FrameCounts`."""
        ...


def worker_address(run_id: str, epoch: int, role: Role, incarnation: int) -> str:
    """Where the engine of `epoch` listens for this incarnation of a worker: a name no other incarnation ever has."""
    return f"ipc://@colocate-{run_id}-e{epoch}-{role.value}-{incarnation}"


def frontend_address(run_id: str, epoch: int, incarnation: int) -> str:
    """Where the engine of `epoch` listens for this incarnation of the frontend."""
    return f"ipc://@colocate-{run_id}-e{epoch}-{Role.FRONTEND.value}-{incarnation}"


def keeper_address(run_id: str, incarnation: int) -> str:
    """Name of the keeper's abstract Unix socket, without the leading NUL byte (it is not a ZMQ address)."""
    return f"colocate-{run_id}-{Role.KEEPER.value}-{incarnation}"
