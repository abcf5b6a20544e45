"""A GPU that is not there: the driver seams of `driver.py` with a GPU's rules and failure codes, for one process.

For tests, and to run the GPU code paths on a laptop (`COLOCATE_FAKE_CUDA=1`, see `backend.py`). Processes that use it
share memory for real (`fake_memory.py`) and are concurrent or time-sliced as under MPS or without (`fake_kernels.py`).

Environment, read when a FakeDriver is made without arguments:
    COLOCATE_FAKE_CUDA_SMS    SMs of the device (132)
    COLOCATE_FAKE_CUDA_BYTES  its memory (64 GiB; pages come with the first touch)
    COLOCATE_FAKE_CUDA_MPS    0: no daemon is found even where CUDA_MPS_PIPE_DIRECTORY names one
    COLOCATE_FAKE_CUDA_BREAK  promises to break (`fake_breaks.py`)

With its context a process becomes a client of the daemon that CUDA_MPS_PIPE_DIRECTORY names (`fake_mps.py`). Where
none listens there it runs without, in silence, as NVIDIA's driver does: only `is_mps_client` tells.

Not modelled: that a fault spreads to MPS neighbours (only this process is poisoned), percentages of MPS, several GPUs,
work that outlasts a call, and everything named in the other files of the fake.
"""

from __future__ import annotations

import ctypes
import os
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from colocate.device.cuda import fake_mps
from colocate.device.cuda.driver import (
    ILLEGAL_ADDRESS,
    INVALID_CONFIGURATION,
    INVALID_CONTEXT,
    INVALID_DEVICE,
    INVALID_HANDLE,
    INVALID_VALUE,
    MPS_CLIENT_TERMINATED,
    MPS_SERVER_NOT_READY,
    NOT_SUPPORTED,
    CudaError,
    GpuFacts,
    GreenContext,
    SmGroup,
    cuda_error,
)
from colocate.device.cuda.fake_breaks import Break, chosen_breaks
from colocate.device.cuda.fake_kernels import FakeKernel
from colocate.device.cuda.fake_memory import GRANULARITY, FakeMemory
from colocate.errors import InvariantError

_GIB = 1 << 30
# The driver function that each method stands for: what a CudaError names.
_CALLS = {
    "facts": "cuDeviceGet",
    "retain_primary": "cuDevicePrimaryCtxRetain",
    "synchronize": "cuCtxSynchronize",
    "split": "cuDevSmResourceSplitByCount",
    "make_green": "cuGreenCtxCreate",
    "destroy_green": "cuGreenCtxDestroy",
    "granularity": "cuMemGetAllocationGranularity",
    "create": "cuMemCreate",
    "export": "cuMemExportToShareableHandle",
    "import_": "cuMemImportFromShareableHandle",
    "map": "cuMemMap",
    "unmap": "cuMemUnmap",
    "release": "cuMemRelease",
    "allocate": "cuMemAlloc",
    "ipc_handle": "cuIpcGetMemHandle",
    "open_ipc": "cuIpcOpenMemHandle",
    "close_ipc": "cuIpcCloseMemHandle",
    "free": "cuMemFree",
    "load": "cuModuleLoadData",
    "launch": "cuLaunchKernel",
    "read": "cuMemcpyDtoH",
    "clear": "cuMemsetD8",
}


@dataclass(frozen=True, slots=True)
class FakeGroup:
    """SMs of one split. `sm_ids` are what `%smid` would read on them."""

    split: int
    sm_ids: tuple[int, ...]

    @property
    def num_sms(self) -> int:
        return len(self.sm_ids)


class FakeDriver:
    """One process's view of the fake device. `fail` and `fault` break it on purpose."""

    def __init__(
        self,
        num_sms: int | None = None,
        *,
        step_sms: int = 8,
        total_bytes: int | None = None,
        is_mps_client: bool | None = None,
        lost_sms: int = 0,
    ) -> None:
        """`is_mps_client` None: whether a daemon is found; otherwise none is looked for. `lost_sms`: every green
        context gets so many SMs fewer than it was asked for, as the driver may do."""
        self._num_sms = num_sms if num_sms is not None else int(os.environ.get("COLOCATE_FAKE_CUDA_SMS", 132))
        self._step_sms = step_sms
        self._total_bytes = total_bytes or int(os.environ.get("COLOCATE_FAKE_CUDA_BYTES", 64 * _GIB))
        self._is_mps_client = is_mps_client
        self._mps: socket.socket | None = None
        self._breaks = chosen_breaks()
        self._lost_sms = lost_sms or int(Break.LOST_SM in self._breaks)
        self._memory = FakeMemory(self._total_bytes, is_private=Break.PRIVATE_MEMORY in self._breaks)
        self._replays = 0  # under way
        self._has_context = False
        self._num_splits = 0
        self._greens: dict[object, tuple[int, tuple[int, ...]]] = {}  # handle: its stream and SMs
        self._next_handle = 0x1000
        self._poison: int | None = None
        self._failures: dict[str, tuple[int, int]] = {}  # method: calls that still succeed, code
        self._lock = threading.Lock()

    # Breaking it, and looking at it.

    def fail(self, call: str, code: int, *, after: int = 0) -> None:
        """Method `call` succeeds `after` more times, then raises `code` once."""
        if call not in _CALLS:
            raise InvariantError(f"the driver has no call {call!r}; it has {', '.join(_CALLS)}")
        self._failures[call] = (after, code)

    def fault(self, code: int = ILLEGAL_ADDRESS) -> None:
        """A kernel of this process did something fatal: from now on every call raises."""
        self._poison = code

    def check(self, call: str = "cuEventQuery") -> None:
        """Raises CudaError where the device has faulted or MPS ended this client: what any call would say."""
        if self._mps is not None and not fake_mps.is_connected(self._mps):
            self._poison = self._poison or MPS_CLIENT_TERMINATED
        if self._poison is not None:
            raise cuda_error(call, self._poison)

    def sm_ids(self, green: GreenContext) -> tuple[int, ...]:
        return self._greens[green.handle][1]

    @contextmanager
    def replaying(self) -> Iterator[None]:
        """Around a graph's replay: its kernels keep to the partition they were captured in, unless that is broken."""
        self._replays += 1
        try:
            yield
        finally:
            self._replays -= 1

    def leaks(self) -> dict[str, int]:
        """What is still held: green contexts, memory handles, mappings and bytes. All 0 after a clean shutdown."""
        memory = self._memory
        return {
            "greens": len(self._greens),
            "handles": memory.num_handles,
            "mappings": memory.num_mappings,
            "bytes": memory.used_bytes,
        }

    def reachable(self, address: int, num_bytes: int) -> bool:
        """Whether a live mapping holds this range."""
        return self._memory.covers(address, num_bytes)

    def close(self) -> None:
        """Everything the end of the process would free."""
        if self._mps is not None:
            self._mps.close()
            self._mps = None
        self._greens.clear()
        self._memory.close()

    # DeviceDriver

    def facts(self, index: int) -> GpuFacts:
        self._enter("facts", index, needs_context=False)
        free = self._total_bytes - self._memory.used_bytes if self._has_context else 0
        return GpuFacts(
            index=index,
            name=f"fake GPU of {self._num_sms} SMs",
            uuid="GPU-00000000-0000-0000-0000-000000000000",
            driver_version=13000,
            compute_capability=(9, 0),
            num_sms=self._num_sms,
            min_partition_sms=self._step_sms,
            partition_step_sms=self._step_sms,
            total_bytes=self._total_bytes,
            free_bytes=free,
            l2_bytes=50 << 20,
            is_mps_client=self._runs_under_mps(),
        )

    def retain_primary(self, index: int) -> None:
        self._enter("retain_primary", index, needs_context=False)
        if not self._has_context and self._is_mps_client is None and (pipe := _daemon_at()) is not None:
            self._mps = fake_mps.connect(pipe)
            if self._mps is None:
                raise cuda_error(_CALLS["retain_primary"], MPS_SERVER_NOT_READY)
        self._has_context = True

    def synchronize(self) -> None:
        self._enter("synchronize")

    # PartitionDriver

    def split(self, index: int, group_sms: int) -> tuple[list[SmGroup], SmGroup | None]:
        self._enter("split", index, needs_context=False)
        if group_sms < self._step_sms or group_sms % self._step_sms or group_sms > self._num_sms:
            raise cuda_error(_CALLS["split"], INVALID_CONFIGURATION)
        self._num_splits += 1
        order = _physical_order(self._num_sms)
        end = self._num_sms // group_sms * group_sms
        groups: list[SmGroup] = [
            FakeGroup(self._num_splits, tuple(sorted(order[first : first + group_sms])))
            for first in range(0, end, group_sms)
        ]
        rest = tuple(sorted(order[end:]))
        if Break.ATOM_ORDER in self._breaks:
            groups.reverse()
        return groups, FakeGroup(self._num_splits, rest) if rest else None

    def make_green(self, index: int, groups: Sequence[SmGroup]) -> GreenContext:
        call = _CALLS["make_green"]
        self._enter("make_green", index)
        chosen = [group for group in groups if isinstance(group, FakeGroup)]
        if not groups or len(chosen) != len(groups):
            raise cuda_error("cuDevResourceGenerateDesc", INVALID_VALUE)
        sm_ids = [sm for group in chosen for sm in group.sm_ids]
        if len({group.split for group in chosen}) > 1 or len(set(sm_ids)) < len(sm_ids):
            raise cuda_error("cuDevResourceGenerateDesc", INVALID_CONFIGURATION)
        kept = tuple(sorted(sm_ids))[self._lost_sms :]
        if not kept:
            raise cuda_error(call, INVALID_VALUE)
        with self._lock:
            handle, stream = self._next_handle, self._next_handle + 1
            self._next_handle += 2
        self._greens[handle] = (stream, kept)
        return GreenContext(handle, stream, len(kept))

    def destroy_green(self, green: GreenContext) -> None:
        self._enter("destroy_green")
        if self._greens.pop(green.handle, None) is None:
            raise cuda_error(_CALLS["destroy_green"], INVALID_HANDLE)

    # MemoryDriver

    def granularity(self, index: int) -> int:
        self._enter("granularity", index, needs_context=False)
        return GRANULARITY

    def create(self, index: int, num_bytes: int) -> int:
        self._enter("create", index, needs_context=False)
        return self._memory.create(num_bytes)

    def export(self, handle: int) -> int:
        self._enter("export", needs_context=False)
        return self._memory.export(handle)

    def import_(self, fd: int) -> int:
        self._enter("import_", needs_context=False)
        if Break.NO_IMPORT in self._breaks:
            raise cuda_error(_CALLS["import_"], NOT_SUPPORTED)
        return self._memory.import_(fd)

    def map(self, index: int, handle: int, num_bytes: int, *, writable: bool) -> int:
        self._enter("map", index)
        return self._memory.map(handle, num_bytes, writable=writable)

    def unmap(self, address: int, num_bytes: int) -> None:
        self._enter("unmap")
        self._memory.unmap(address, num_bytes)

    def release(self, handle: int) -> None:
        self._enter("release", needs_context=False)
        self._memory.release(handle)

    # IpcDriver

    def allocate(self, num_bytes: int) -> int:
        self._enter("allocate")
        return self._memory.allocate(num_bytes)

    def ipc_handle(self, address: int) -> bytes:
        self._enter("ipc_handle")
        return self._memory.ipc_handle(address)

    def open_ipc(self, handle: bytes) -> int:
        self._enter("open_ipc")
        return self._memory.open_ipc(handle)

    def close_ipc(self, address: int) -> None:
        self._enter("close_ipc")
        self._memory.close_ipc(address)

    def free(self, address: int) -> None:
        self._enter("free")
        self._memory.free(address)

    # KernelDriver

    def load(self, image: bytes, name: str) -> FakeKernel:
        self._enter("load")
        return FakeKernel(name, image, self._sms_of, self._write, lambda: not self._runs_under_mps())

    def device_buffer(self, num_bytes: int) -> int:
        return self.allocate(num_bytes)

    def read(self, address: int, num_bytes: int) -> bytes:
        self._enter("read")
        if not self._memory.covers(address, num_bytes):
            raise cuda_error(_CALLS["read"], INVALID_VALUE)
        return ctypes.string_at(address, num_bytes)

    def clear(self, address: int, num_bytes: int) -> None:
        self._enter("clear")
        if not self._memory.covers(address, num_bytes, writable=True):
            raise cuda_error(_CALLS["clear"], INVALID_VALUE)
        ctypes.memset(address, 0, num_bytes)

    def _runs_under_mps(self) -> bool:
        """Before there is a context: whether it would."""
        if self._is_mps_client is not None:
            return self._is_mps_client
        return self._mps is not None or (not self._has_context and _daemon_at() is not None)

    def _sms_of(self, stream: int) -> tuple[int, ...]:
        """Stream 0 is the default stream, with the whole device."""
        self._enter("launch")
        if not stream or (self._replays and Break.GRAPH_ESCAPES in self._breaks):
            return tuple(range(self._num_sms))
        for known, sm_ids in list(self._greens.values()):
            if known == stream:
                return self._trespassing(sm_ids) if Break.OVERLAP in self._breaks else sm_ids
        raise cuda_error(_CALLS["launch"], INVALID_HANDLE)

    def _trespassing(self, sm_ids: tuple[int, ...]) -> tuple[int, ...]:
        last = _physical_order(self._num_sms)[-1]
        return sm_ids if last in sm_ids else (*sm_ids[1:], last)

    def _write(self, address: int, content: bytes) -> None:
        if not self._memory.covers(address, len(content), writable=True):
            self.fault()
            self.check(_CALLS["launch"])
        ctypes.memmove(address, content, len(content))

    def _enter(self, call: str, index: int = 0, *, needs_context: bool = True) -> None:
        """The rules of every call: an injected failure first, then the device's health, its number, the context."""
        with self._lock:
            if call in self._failures:
                left, code = self._failures.pop(call)
                if not left:
                    failure: CudaError = cuda_error(_CALLS[call], code)
                    self._poison = code if failure.is_fatal else self._poison
                    raise failure
                self._failures[call] = (left - 1, code)
        self.check(_CALLS[call])
        if index:
            raise cuda_error(_CALLS[call], INVALID_DEVICE)
        if needs_context and not self._has_context:
            raise cuda_error(_CALLS[call], INVALID_CONTEXT)


def _physical_order(num_sms: int) -> list[int]:
    """Pairs of SMs (a TPC) dealt to eight clusters in turn, then cluster by cluster: the numbers of a group are not in
    a row, as on a real device."""
    return sorted(range(num_sms), key=lambda sm: (sm // 2 % 8, sm))


def _daemon_at() -> str | None:
    """The pipe directory of a daemon that could be listening."""
    pipe = os.environ.get("CUDA_MPS_PIPE_DIRECTORY")
    is_found = pipe and os.environ.get("COLOCATE_FAKE_CUDA_MPS", "1") != "0" and Path(pipe, fake_mps.SOCKET).is_socket()
    return pipe if is_found else None
