"""The fake device's memory: memfd segments that real processes pass by descriptor, mapped for the host to reach.

A device address is the host address of the mapping, so torch on the CPU and Triton's interpreter work on it. The rules
are the kernel's and as hard as a GPU's: a write through a read-only mapping or a touch after `unmap` ends the process.

Not modelled: free memory of the moment across processes (each process counts what it created), fragmentation, the
cost of mapping, and peers whose memory vanishes while a tensor over it is in use (undefined on a GPU, too).
"""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import struct
from dataclasses import dataclass
from pathlib import Path

from colocate.device.cuda.driver import INVALID_CONTEXT, INVALID_HANDLE, INVALID_VALUE, OUT_OF_MEMORY, cuda_error

GRANULARITY = 2 * 1024 * 1024
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW
_SEGMENT = "colocate-fake-gpu"
_IPC_MAGIC = b"fakeipc1"
_IPC_FORMAT = "<8sqqqqq"  # magic, process, its start time, descriptor, bytes, address
_MAP_FAILED = ctypes.c_void_p(-1).value

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]


@dataclass(slots=True)
class _Block:
    """Physical memory: alive while a handle or a mapping is."""

    num_bytes: int
    is_own: bool  # counted here; memory that was imported is counted by who made it
    users: int = 1


@dataclass(frozen=True, slots=True)
class _Handle:
    fd: int
    block: _Block


@dataclass(frozen=True, slots=True)
class _Mapping:
    num_bytes: int
    block: _Block
    is_writable: bool
    fd: int = -1  # kept where legacy IPC hands it on
    exporter: tuple[int, int] | None = None  # process and start time of an IPC peer


class FakeMemory:
    """All device memory one process sees. Owned by its FakeDriver."""

    def __init__(self, total_bytes: int, *, is_private: bool = False) -> None:
        """`is_private`: broken on purpose, what is written through a mapping stays in this process."""
        self._total_bytes = total_bytes
        self._sharing = mmap.MAP_PRIVATE if is_private else mmap.MAP_SHARED
        self._used_bytes = 0
        self._handles: dict[int, _Handle] = {}
        self._mappings: dict[int, _Mapping] = {}
        self._next_handle = 1

    @property
    def used_bytes(self) -> int:
        return self._used_bytes

    @property
    def num_handles(self) -> int:
        return len(self._handles)

    @property
    def num_mappings(self) -> int:
        return len(self._mappings)

    def close(self) -> None:
        """What the end of a process does: everything goes."""
        for address in list(self._mappings):
            self._unmap(address)
        for handle in list(self._handles):
            self.release(handle)

    def create(self, num_bytes: int) -> int:
        if num_bytes <= 0 or num_bytes % GRANULARITY:
            raise cuda_error("cuMemCreate", INVALID_VALUE)
        block = self._take(num_bytes, "cuMemCreate")
        return self._new_handle(_new_segment(num_bytes), block)

    def export(self, handle: int) -> int:
        return fcntl.fcntl(self._handle(handle, "cuMemExportToShareableHandle").fd, fcntl.F_DUPFD_CLOEXEC, 0)

    def import_(self, fd: int) -> int:
        call = "cuMemImportFromShareableHandle"
        if not _is_segment(fd):
            raise cuda_error(call, INVALID_VALUE)
        block = _Block(os.fstat(fd).st_size, is_own=False)
        return self._new_handle(fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 0), block)

    def map(self, handle: int, num_bytes: int, *, writable: bool) -> int:
        known = self._handle(handle, "cuMemMap")
        if num_bytes != known.block.num_bytes:
            raise cuda_error("cuMemMap", INVALID_VALUE)
        address = _map(known.fd, num_bytes, writable, "cuMemMap", self._sharing)
        known.block.users += 1
        self._mappings[address] = _Mapping(num_bytes, known.block, writable)
        return address

    def unmap(self, address: int, num_bytes: int) -> None:
        mapping = self._mappings.get(address)
        if mapping is None or mapping.num_bytes != num_bytes or mapping.fd >= 0 or mapping.exporter is not None:
            raise cuda_error("cuMemUnmap", INVALID_VALUE)
        self._unmap(address)

    def release(self, handle: int) -> None:
        known = self._handle(handle, "cuMemRelease")
        del self._handles[handle]
        os.close(known.fd)
        self._drop(known.block)

    def allocate(self, num_bytes: int) -> int:
        if num_bytes <= 0:
            raise cuda_error("cuMemAlloc", INVALID_VALUE)
        whole = -(-num_bytes // mmap.PAGESIZE) * mmap.PAGESIZE
        block = self._take(whole, "cuMemAlloc")
        fd = _new_segment(whole)
        address = _map(fd, whole, True, "cuMemAlloc")
        self._mappings[address] = _Mapping(whole, block, True, fd=fd)
        return address

    def free(self, address: int) -> None:
        mapping = self._mappings.get(address)
        if mapping is None or mapping.fd < 0:
            raise cuda_error("cuMemFree", INVALID_VALUE)
        self._unmap(address)

    def ipc_handle(self, address: int) -> bytes:
        mapping = self._mappings.get(address)
        if mapping is None or mapping.fd < 0:
            raise cuda_error("cuIpcGetMemHandle", INVALID_VALUE)
        pid = os.getpid()
        packed = struct.pack(
            _IPC_FORMAT, _IPC_MAGIC, pid, _start_time(pid) or 0, mapping.fd, mapping.num_bytes, address
        )
        return packed.ljust(64, b"\0")

    def open_ipc(self, handle: bytes) -> int:
        """The exporter's descriptor is opened through /proc: nothing has a name, so nothing can stay behind."""
        call = "cuIpcOpenMemHandle"
        if len(handle) != 64 or handle[:8] != _IPC_MAGIC:
            raise cuda_error(call, INVALID_HANDLE)
        _, pid, started, fd, num_bytes, _ = struct.unpack_from(_IPC_FORMAT, handle)
        if pid == os.getpid():
            raise cuda_error(call, INVALID_CONTEXT)
        if _start_time(pid) != started:
            raise cuda_error(call, INVALID_HANDLE)
        try:
            own_fd = os.open(f"/proc/{pid}/fd/{fd}", os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            raise cuda_error(call, INVALID_HANDLE) from None
        try:
            if not _is_segment(own_fd) or os.fstat(own_fd).st_size != num_bytes:
                raise cuda_error(call, INVALID_HANDLE)
            address = _map(own_fd, num_bytes, True, call)
        finally:
            os.close(own_fd)
        block = _Block(num_bytes, is_own=False)
        self._mappings[address] = _Mapping(num_bytes, block, True, exporter=(pid, started))
        return address

    def close_ipc(self, address: int) -> None:
        mapping = self._mappings.get(address)
        if mapping is None or mapping.exporter is None:
            raise cuda_error("cuIpcCloseMemHandle", INVALID_VALUE)
        self._unmap(address)

    def covers(self, address: int, num_bytes: int, *, writable: bool = False) -> bool:
        """Whether a live mapping holds all of this range; memory of an IPC exporter that died is not there."""
        for start, mapping in list(self._mappings.items()):
            if start <= address and address + num_bytes <= start + mapping.num_bytes:
                if mapping.exporter is not None and _start_time(mapping.exporter[0]) != mapping.exporter[1]:
                    return False
                return mapping.is_writable or not writable
        return False

    def _take(self, num_bytes: int, call: str) -> _Block:
        if self._used_bytes + num_bytes > self._total_bytes:
            raise cuda_error(call, OUT_OF_MEMORY)
        self._used_bytes += num_bytes
        return _Block(num_bytes, is_own=True)

    def _drop(self, block: _Block) -> None:
        block.users -= 1
        if not block.users and block.is_own:
            self._used_bytes -= block.num_bytes

    def _new_handle(self, fd: int, block: _Block) -> int:
        handle, self._next_handle = self._next_handle, self._next_handle + 1
        self._handles[handle] = _Handle(fd, block)
        return handle

    def _handle(self, handle: int, call: str) -> _Handle:
        known = self._handles.get(handle)
        if known is None:
            raise cuda_error(call, INVALID_VALUE)
        return known

    def _unmap(self, address: int) -> None:
        mapping = self._mappings.pop(address)
        _libc.munmap(address, mapping.num_bytes)
        if mapping.fd >= 0:
            os.close(mapping.fd)
        self._drop(mapping.block)


def _new_segment(num_bytes: int) -> int:
    """Pages come with the first touch, as zeros."""
    fd = os.memfd_create(_SEGMENT, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, num_bytes)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
    return fd


def _is_segment(fd: int) -> bool:
    try:
        sealed = fcntl.fcntl(fd, fcntl.F_GET_SEALS) & _SEALS == _SEALS
        return sealed and str(Path(f"/proc/self/fd/{fd}").readlink()).startswith(f"/memfd:{_SEGMENT}")
    except OSError:
        return False


def _map(fd: int, num_bytes: int, writable: bool, call: str, sharing: int = mmap.MAP_SHARED) -> int:
    access = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
    address = _libc.mmap(None, num_bytes, access, sharing, fd, 0)
    if address is None or address == _MAP_FAILED:
        raise cuda_error(call, OUT_OF_MEMORY)
    return int(address)


def _start_time(pid: int) -> int | None:
    """In clock ticks since boot, which tells a process from a later one of the same number; None: it is gone."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if state in "ZX" else int(fields[18])
