"""A worker's view of the keeper's memory on a GPU."""

from __future__ import annotations

import time
from dataclasses import dataclass

from torch import Tensor

from colocate.device.cuda.backend import Backend
from colocate.device.cuda.memory import DeviceMapping, Ticket, map_kept, open_transport
from colocate.errors import ChannelClosed
from colocate.messages.spec import ProcessSpec
from colocate.worker.attach import connect_until
from colocate.worker.segments import SegmentTable, receive_table


@dataclass(frozen=True, slots=True)
class CudaMemory:
    """Both segments, mapped: the same device memory in every worker. Layouts are `WeightLayout` and `KVLayout` of the
    run's facts, over uint8 tensors. The tensors are valid until `close`."""

    weights: Tensor  # read-only over vmm: a write is a fatal fault of the GPU
    kv: Tensor
    weights_crc32: int  # of the weights as loaded; `loader.read_back` of `weights` proves it
    mappings: tuple[DeviceMapping, ...]

    @property
    def mapped_bytes(self) -> int:
        """Shared with the other workers: counted once on the device."""
        return sum(mapping.reserved_bytes for mapping in self.mappings)

    def close(self) -> None:
        """No work that touches the memory may be under way, and no tensor over it may be used again. Idempotent."""
        for mapping in self.mappings:
            mapping.close()


def attach_cuda(spec: ProcessSpec, backend: Backend) -> CudaMemory:
    """Map weights and KV in the current context. Waits while the keeper still loads, at most the start deadline.

    Raises ChannelClosed where the keeper is gone or late, and as `map_kept`.
    """
    deadline_s = time.monotonic() + spec.config.supervisor.start_timeout_s
    with connect_until(spec.keeper_address, deadline_s) as peer:
        peer.settimeout(max(0.1, deadline_s - time.monotonic()))
        table, fds = receive_table(peer)
    tickets = _tickets(table, fds)
    transport = open_transport(table.transport, backend.driver, spec.facts.device_index)
    mappings: dict[str, DeviceMapping] = {}
    try:
        for name in ("weights", "kv"):
            mappings[name] = map_kept(transport, tickets.pop(name), writable=name == "kv")
    except BaseException:
        for mapping in mappings.values():
            mapping.close()
        raise
    finally:
        for ticket in tickets.values():
            ticket.close()
    weights, kv = mappings["weights"], mappings["kv"]
    return CudaMemory(
        backend.tensor(weights.address, weights.num_bytes),
        backend.tensor(kv.address, kv.num_bytes),
        table.weights_crc32,
        (weights, kv),
    )


def _tickets(table: SegmentTable, fds: list[int]) -> dict[str, Ticket]:
    numbers = fds or [-1] * len(table.segments)
    tickets = {
        entry.name: Ticket(entry.name, entry.num_bytes, entry.reserved_bytes, fd, entry.token)
        for entry, fd in zip(table.segments, numbers, strict=True)
    }
    if table.transport not in ("vmm", "ipc") or tickets.keys() != {"weights", "kv"}:
        for ticket in tickets.values():
            ticket.close()
        raise ChannelClosed(f"the keeper hands out {sorted(tickets)} over {table.transport!r}, not a GPU's memory")
    return tickets
