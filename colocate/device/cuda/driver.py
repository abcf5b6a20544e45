"""What this package asks of the CUDA driver, in four seams.

Implementations: `device/cuda/bindings.py` (NVIDIA's driver through cuda-python) and `device/cuda/fake.py` (no GPU: the
same rules and failure codes, memory in memfd segments). Handles are opaque to callers; sizes are bytes. Every method
raises CudaError.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

# Codes that callers tell apart (cuda.h's CUresult; tests hold them against the enum of cuda-bindings).
INVALID_VALUE = 1
OUT_OF_MEMORY = 2
NOT_INITIALIZED = 3
NO_DEVICE = 100
INVALID_DEVICE = 101
INVALID_CONTEXT = 201
INVALID_HANDLE = 400
NOT_FOUND = 500
ILLEGAL_ADDRESS = 700
NOT_SUPPORTED = 801
MPS_CONNECTION_FAILED = 805
MPS_RPC_FAILURE = 806
MPS_SERVER_NOT_READY = 807
MPS_CLIENT_TERMINATED = 810
INVALID_RESOURCE = 914  # of the wrong type
INVALID_CONFIGURATION = 915  # groups of two splits, sizes that the device does not have
UNKNOWN = 999
# After one of these a process can do nothing more with the GPU. cuda.h says so of the faults of a kernel (700 to 721)
# and of uncorrectable errors of memory and links (214, 220, 226); 709 is a context that somebody destroyed; after 806
# and 810 the MPS server is gone or has ended this client. A kernel's fault reaches its MPS neighbours, too.
FATAL = frozenset(
    {
        214,
        220,
        226,
        ILLEGAL_ADDRESS,
        702,
        709,
        710,
        714,
        715,
        716,
        717,
        718,
        719,
        721,
        MPS_RPC_FAILURE,
        MPS_CLIENT_TERMINATED,
    }
)

NAMES = {
    INVALID_VALUE: "CUDA_ERROR_INVALID_VALUE",
    OUT_OF_MEMORY: "CUDA_ERROR_OUT_OF_MEMORY",
    NOT_INITIALIZED: "CUDA_ERROR_NOT_INITIALIZED",
    NO_DEVICE: "CUDA_ERROR_NO_DEVICE",
    INVALID_DEVICE: "CUDA_ERROR_INVALID_DEVICE",
    INVALID_CONTEXT: "CUDA_ERROR_INVALID_CONTEXT",
    INVALID_HANDLE: "CUDA_ERROR_INVALID_HANDLE",
    NOT_FOUND: "CUDA_ERROR_NOT_FOUND",
    ILLEGAL_ADDRESS: "CUDA_ERROR_ILLEGAL_ADDRESS",
    NOT_SUPPORTED: "CUDA_ERROR_NOT_SUPPORTED",
    MPS_CONNECTION_FAILED: "CUDA_ERROR_MPS_CONNECTION_FAILED",
    MPS_RPC_FAILURE: "CUDA_ERROR_MPS_RPC_FAILURE",
    MPS_SERVER_NOT_READY: "CUDA_ERROR_MPS_SERVER_NOT_READY",
    MPS_CLIENT_TERMINATED: "CUDA_ERROR_MPS_CLIENT_TERMINATED",
    INVALID_RESOURCE: "CUDA_ERROR_INVALID_RESOURCE_TYPE",
    INVALID_CONFIGURATION: "CUDA_ERROR_INVALID_RESOURCE_CONFIGURATION",
    UNKNOWN: "CUDA_ERROR_UNKNOWN",
}


class CudaError(Exception):
    """A driver call failed. `call` is the function's name, `code` and `name` the driver's."""

    def __init__(self, call: str, code: int, name: str) -> None:
        self.call = call
        self.code = code
        self.name = name
        super().__init__(f"{call}: {name} ({code})")

    @property
    def is_fatal(self) -> bool:
        return self.code in FATAL


def cuda_error(call: str, code: int) -> CudaError:
    """One of the codes above, by its name in cuda.h."""
    return CudaError(call, code, NAMES.get(code, f"CUDA error {code}"))


@dataclass(frozen=True, slots=True)
class GpuFacts:
    """One GPU as the driver describes it to this process."""

    index: int
    name: str
    uuid: str
    driver_version: int  # of the CUDA API the driver speaks: 13000 is 13.0
    compute_capability: tuple[int, int]
    num_sms: int
    min_partition_sms: int  # smallest group of SMs, and the step between sizes; asked of the device, never tabulated
    partition_step_sms: int
    total_bytes: int
    free_bytes: int  # of the moment
    l2_bytes: int
    is_mps_client: bool  # CU_DEVICE_ATTRIBUTE_MPS_ENABLED: this process runs under an MPS server

    @property
    def atom_sms(self) -> int:
        """What shares are made of: the smallest group there is, in whole steps."""
        return -(-self.min_partition_sms // self.partition_step_sms) * self.partition_step_sms


class SmGroup(Protocol):
    """A set of SMs out of one split; opaque but for its size. Valid for the life of the process."""

    @property
    def num_sms(self) -> int: ...


@dataclass(frozen=True, slots=True)
class GreenContext:
    """A partition of this process. `stream` runs on exactly its SMs; `num_sms` was read back after creation."""

    handle: object
    stream: int  # a CUstream, for torch.cuda.ExternalStream
    num_sms: int


class DeviceDriver(Protocol):
    """Asking, and this process's primary context."""

    def facts(self, index: int) -> GpuFacts:
        """Initialises the driver; makes no context but for reading `free_bytes`, which is 0 without one."""
        ...

    def retain_primary(self, index: int) -> None:
        """Make the primary context and make it current in this thread: the one that torch uses. Idempotent."""
        ...

    def synchronize(self) -> None:
        """Wait for all work of this process."""
        ...


class PartitionDriver(Protocol):
    """Green contexts. The primary context is retained before."""

    def split(self, index: int, group_sms: int) -> tuple[list[SmGroup], SmGroup | None]:
        """All groups of `group_sms` SMs that the device yields, and what remains (None: nothing).

        Identical arguments give the same SMs in every process (proven at start, not promised). Two calls with different
        sizes overlap: one split per process.
        """
        ...

    def make_green(self, index: int, groups: Sequence[SmGroup]) -> GreenContext:
        """A green context over groups of ONE split, with a non-blocking stream."""
        ...

    def destroy_green(self, green: GreenContext) -> None:
        """Stream first, then the context. No work of it may be under way."""
        ...


class MemoryDriver(Protocol):
    """Device memory that other processes map, by file descriptor. `create` and `export` need no context."""

    def granularity(self, index: int) -> int:
        """Sizes of `create` are multiples of this."""
        ...

    def create(self, index: int, num_bytes: int) -> int:
        """A handle to device memory of this size. It lives until its last handle and mapping go."""
        ...

    def export(self, handle: int) -> int:
        """A fresh POSIX descriptor for it, owned by the caller."""
        ...

    def import_(self, fd: int) -> int:
        """A handle from a descriptor, which stays the caller's to close."""
        ...

    def map(self, index: int, handle: int, num_bytes: int, *, writable: bool) -> int:
        """The device address of a new mapping. A write through a read-only one is a fatal fault."""
        ...

    def unmap(self, address: int, num_bytes: int) -> None: ...

    def release(self, handle: int) -> None:
        """Give the handle back; mappings keep the memory."""
        ...


class IpcDriver(Protocol):
    """Legacy sharing: memory of a process with a context. The importer's mapping dies with the exporter's process."""

    def allocate(self, num_bytes: int) -> int:
        """cuMemAlloc: a device address in the current context."""
        ...

    def ipc_handle(self, address: int) -> bytes:
        """64 bytes that another process opens."""
        ...

    def open_ipc(self, handle: bytes) -> int: ...

    def close_ipc(self, address: int) -> None: ...

    def free(self, address: int) -> None: ...


class Kernel(Protocol):
    """A compiled function of this process."""

    def launch(self, stream: int, grid: int, block: int, arguments: Sequence[tuple[str, int]]) -> None:
        """One-dimensional launch. `arguments` are ("ptr" | "i32" | "u32" | "u64", value) in order."""
        ...


class KernelDriver(Protocol):
    """Small kernels of our own (`native/cuda`), outside torch; used by proofs."""

    def load(self, image: bytes, name: str) -> Kernel:
        """A function of a cubin; needs a context."""
        ...

    def device_buffer(self, num_bytes: int) -> int:
        """Zeroed device memory."""
        ...

    def read(self, address: int, num_bytes: int) -> bytes:
        """Wait for all work and copy to the host."""
        ...

    def clear(self, address: int, num_bytes: int) -> None: ...

    def free(self, address: int) -> None: ...


class CudaDriver(DeviceDriver, PartitionDriver, MemoryDriver, IpcDriver, KernelDriver, Protocol):
    """All of it: what `device.cuda.backend.open_backend().driver` is."""
