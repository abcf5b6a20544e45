"""A worker's view of the keeper's memory."""

from __future__ import annotations

import os
import socket
import time
from dataclasses import dataclass

from colocate.errors import ChannelClosed
from colocate.messages.spec import ProcessSpec
from colocate.worker.segments import connect_to, receive_segments

_RETRY_S = 0.02


@dataclass(frozen=True, slots=True)
class AttachedMemory:
    """Both segments, mapped: the same physical pages in every worker.

    Layouts are `WeightLayout` and `KVLayout` of the run's facts. Both views are empty on the emulated device.
    """

    weights: memoryview  # mapped without write permission: a stray write faults
    kv: memoryview
    weights_crc32: int


def attach(spec: ProcessSpec) -> AttachedMemory:
    """Map weights and KV. Waits while the keeper still loads, at most the start deadline; raises ChannelClosed."""
    deadline_s = time.monotonic() + spec.config.supervisor.start_timeout_s
    with connect_until(spec.keeper_address, deadline_s) as peer:
        peer.settimeout(max(0.1, deadline_s - time.monotonic()))
        segments, crc32 = receive_segments(peer)
    weights, kv = segments["weights"], segments["kv"]
    attached = AttachedMemory(weights.map(writable=False), kv.map(writable=True), crc32)
    # The mappings keep the pages; descriptors are no longer needed.
    os.close(weights.fd)
    os.close(kv.fd)
    return attached


def connect_until(address: str, deadline_s: float) -> socket.socket:
    """A connection to the keeper, which may still have to start. Raises ChannelClosed after the deadline."""
    while True:
        try:
            return connect_to(address)
        except OSError as error:
            if time.monotonic() > deadline_s:
                raise ChannelClosed(f"no keeper at {address}: {error}") from None
            time.sleep(_RETRY_S)
