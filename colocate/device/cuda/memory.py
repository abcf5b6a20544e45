"""Device memory that a keeper allocates and other processes map, over one of two transports.

`VmmTransport`: cuMemCreate, no context in the keeper, a fresh POSIX descriptor for every client. Memory lives until
its last handle and mapping go, so it outlives a keeper while somebody maps it, and weights can be mapped read-only.
`IpcTransport`: cuMemAlloc in a keeper with a context, and a 64-byte handle. Two things are weaker and cannot be mended
here: every mapping is writable, and mappings of a dead keeper are undefined (CUDA's documentation).

Unproven without a GPU: both under MPS. With `vmm` the keeper is no MPS client; with `ipc` it is one, as handles are
documented between clients of one server, so that a fault of a worker reaches it too.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Protocol

from colocate.device.cuda.driver import CudaDriver, CudaError
from colocate.errors import ConfigError, InvariantError


@dataclass(frozen=True, slots=True)
class DeviceSegment:
    """Memory of the keeper. `reserved_bytes` is `num_bytes` rounded up to the device's granularity; `handle` is the
    driver's handle (vmm) or the device address (ipc)."""

    name: str
    num_bytes: int
    reserved_bytes: int
    handle: int


@dataclass(frozen=True, slots=True)
class Ticket:
    """What lets ONE other process map one segment: a descriptor, owned by the holder, or a token of 64 bytes."""

    name: str
    num_bytes: int
    reserved_bytes: int
    fd: int = -1
    token: bytes = b""

    def close(self) -> None:
        """Called once by whoever holds it last in this process. A mapping made from it stays."""
        if self.fd >= 0:
            os.close(self.fd)


@dataclass(slots=True)
class DeviceMapping:
    """A segment in this process's address space of the device. Valid until `close`, also when the keeper is gone
    (vmm). `num_bytes` is what is of use, `reserved_bytes` what is mapped."""

    name: str
    address: int
    num_bytes: int
    reserved_bytes: int
    writable: bool
    _transport: MemoryTransport
    _is_open: bool = field(default=True, init=False)

    def close(self) -> None:
        """No work that touches it may be under way. Idempotent."""
        if self._is_open:
            self._is_open = False
            self._transport.unmap(self)


class MemoryTransport(Protocol):
    """One way to share device memory. Every method raises CudaError; none keeps state of a segment or a mapping."""

    name: str  # as `--memory-transport` and the keeper's packet say it

    def allocate(self, name: str, num_bytes: int) -> DeviceSegment:
        """Keeper. The contents are undefined."""
        ...

    def ticket(self, segment: DeviceSegment) -> Ticket:
        """Keeper: a fresh one for every client, closed by the keeper after it was sent."""
        ...

    def free(self, segment: DeviceSegment) -> None:
        """Keeper. Mappings keep the memory (vmm) or are undefined from here on (ipc)."""
        ...

    def map(self, ticket: Ticket, *, writable: bool) -> DeviceMapping:
        """Client, with its context current. Closes the ticket, whatever happens."""
        ...

    def unmap(self, mapping: DeviceMapping) -> None:
        """Called by `DeviceMapping.close`."""
        ...


class VmmTransport:
    """`MemoryTransport` over cuMemCreate. The keeper needs no context, the client a current one."""

    name = "vmm"

    def __init__(self, driver: CudaDriver, index: int) -> None:
        self._driver = driver
        self._index = index

    def allocate(self, name: str, num_bytes: int) -> DeviceSegment:
        reserved_bytes = round_up(num_bytes, self._driver.granularity(self._index))
        return DeviceSegment(name, num_bytes, reserved_bytes, self._driver.create(self._index, reserved_bytes))

    def ticket(self, segment: DeviceSegment) -> Ticket:
        fd = self._driver.export(segment.handle)
        return Ticket(segment.name, segment.num_bytes, segment.reserved_bytes, fd=fd)

    def free(self, segment: DeviceSegment) -> None:
        self._driver.release(segment.handle)

    def map(self, ticket: Ticket, *, writable: bool) -> DeviceMapping:
        try:
            handle = self._driver.import_(ticket.fd)
        finally:
            ticket.close()
        try:
            address = self._driver.map(self._index, handle, ticket.reserved_bytes, writable=writable)
        finally:
            self._driver.release(handle)  # the mapping keeps the memory
        return DeviceMapping(ticket.name, address, ticket.num_bytes, ticket.reserved_bytes, writable, self)

    def unmap(self, mapping: DeviceMapping) -> None:
        self._driver.unmap(mapping.address, mapping.reserved_bytes)


class IpcTransport:
    """`MemoryTransport` over cuIpcGetMemHandle. Keeper and client both have a current context. `writable` of a mapping
    is what was asked for; the driver maps everything writable.

    Sizes are rounded to the granularity of 2 MiB as well: smaller blocks of cuMemAlloc share an allocation, and the
    importer would get that one's start.
    """

    name = "ipc"

    def __init__(self, driver: CudaDriver, index: int) -> None:
        self._driver = driver
        self._index = index

    def allocate(self, name: str, num_bytes: int) -> DeviceSegment:
        reserved_bytes = round_up(num_bytes, self._driver.granularity(self._index))
        return DeviceSegment(name, num_bytes, reserved_bytes, self._driver.allocate(reserved_bytes))

    def ticket(self, segment: DeviceSegment) -> Ticket:
        token = self._driver.ipc_handle(segment.handle)
        return Ticket(segment.name, segment.num_bytes, segment.reserved_bytes, token=token)

    def free(self, segment: DeviceSegment) -> None:
        self._driver.free(segment.handle)

    def map(self, ticket: Ticket, *, writable: bool) -> DeviceMapping:
        address = self._driver.open_ipc(ticket.token)
        return DeviceMapping(ticket.name, address, ticket.num_bytes, ticket.reserved_bytes, writable, self)

    def unmap(self, mapping: DeviceMapping) -> None:
        self._driver.close_ipc(mapping.address)


def open_transport(name: str, driver: CudaDriver, index: int) -> MemoryTransport:
    """`vmm` or `ipc`, as `--memory-transport` or the keeper says."""
    if name == VmmTransport.name:
        return VmmTransport(driver, index)
    if name == IpcTransport.name:
        return IpcTransport(driver, index)
    raise InvariantError(f"no memory transport is named {name!r}")


def map_kept(transport: MemoryTransport, ticket: Ticket, *, writable: bool) -> DeviceMapping:
    """`transport.map` in a process of a run. Raises ConfigError where the driver does not share memory in this way,
    CudaError where the GPU faulted."""
    try:
        return transport.map(ticket, writable=writable)
    except CudaError as error:
        if error.is_fatal:
            raise
        raise not_shared(transport.name, error) from error


def not_shared(transport: str, error: CudaError) -> ConfigError:
    other = IpcTransport.name if transport == VmmTransport.name else VmmTransport.name
    problem = f"the driver does not share memory over {transport!r} here: {error}"
    return ConfigError("memory_transport", problem, f"--memory-transport {other}, and see colocate doctor")


def round_up(num_bytes: int, granularity: int) -> int:
    """The next multiple; at least one, because a driver allocates no empty memory."""
    return max(1, -(-num_bytes // granularity)) * granularity
