"""NVIDIA's driver through `cuda.bindings.driver` (cuda-python 13): the seams of `driver.py` on a real GPU.

Written against the signatures of cuda-bindings 13.0; every call returns a tuple whose first entry is the CUresult.
Unproven until a GPU has run the contract tests: that an atom's size is what was asked (checked here at every split),
read-only mappings, and everything the proofs of `colocate doctor` measure.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from colocate.device.cuda.driver import (
    INVALID_CONFIGURATION,
    INVALID_VALUE,
    CudaError,
    GpuFacts,
    GreenContext,
    SmGroup,
    cuda_error,
)
from colocate.errors import ConfigError

_IPC_HANDLE_BYTES = 64
_ARGUMENT_TYPES = {"ptr": ctypes.c_void_p, "i32": ctypes.c_int, "u32": ctypes.c_uint, "u64": ctypes.c_uint64}


@dataclass(frozen=True, slots=True)
class _Group:
    resource: Any  # CUdevResource
    num_sms: int


class BindingsDriver:
    """One per process. Used from several threads only after `retain_primary` in each of them."""

    def __init__(self, api: Any = None) -> None:
        """`api` is the module `cuda.bindings.driver`, which is loaded here unless it is given. Raises ConfigError where
        cuda-python or the driver's library is missing, CudaError where cuInit fails."""
        self._api = _load_api() if api is None else api
        self._contexts: dict[int, Any] = {}  # by device: the primary context, retained once

    # DeviceDriver

    def facts(self, index: int) -> GpuFacts:
        api, device = self._api, self._device(index)
        attribute = api.CUdevice_attribute

        def ask(name: str) -> int:
            return int(self._call("cuDeviceGetAttribute", getattr(attribute, f"CU_DEVICE_ATTRIBUTE_{name}"), device))

        sm = self._sm_resource(device).sm
        name = bytes(self._call("cuDeviceGetName", 256, device)).split(b"\0", 1)[0].decode(errors="replace")
        return GpuFacts(
            index=index,
            name=name,
            uuid=_format_uuid(bytes(self._call("cuDeviceGetUuid", device).bytes)),
            driver_version=int(self._call("cuDriverGetVersion")),
            compute_capability=(ask("COMPUTE_CAPABILITY_MAJOR"), ask("COMPUTE_CAPABILITY_MINOR")),
            num_sms=ask("MULTIPROCESSOR_COUNT"),
            min_partition_sms=int(sm.minSmPartitionSize),
            partition_step_sms=int(sm.smCoscheduledAlignment),
            total_bytes=int(self._call("cuDeviceTotalMem", device)),
            free_bytes=self._free_bytes(),
            l2_bytes=ask("L2_CACHE_SIZE"),
            is_mps_client=ask("MPS_ENABLED") == 1,
        )

    def retain_primary(self, index: int) -> None:
        if index not in self._contexts:
            self._contexts[index] = self._call("cuDevicePrimaryCtxRetain", self._device(index))
        self._call("cuCtxSetCurrent", self._contexts[index])

    def synchronize(self) -> None:
        """Of the primary context: cuCtxSynchronize then waits for its green contexts, too."""
        self._call("cuCtxSynchronize")

    # PartitionDriver

    def split(self, index: int, group_sms: int) -> tuple[list[SmGroup], SmGroup | None]:
        whole = self._sm_resource(self._device(index))
        num_groups = int(whole.sm.smCount) // group_sms
        if num_groups < 1:
            raise cuda_error("cuDevSmResourceSplitByCount", INVALID_CONFIGURATION)
        resources, made, rest = self._call("cuDevSmResourceSplitByCount", num_groups, whole, 0, group_sms)
        # The driver rounds a size up to the device's alignment and then makes fewer groups: `made` of them are valid.
        groups = [_Group(resource, int(resource.sm.smCount)) for resource in list(resources)[: int(made)]]
        if not groups or any(group.num_sms != group_sms for group in groups):
            raise cuda_error("cuDevSmResourceSplitByCount", INVALID_CONFIGURATION)
        rest_sms = int(rest.sm.smCount)
        return [*groups], _Group(rest, rest_sms) if rest_sms else None

    def make_green(self, index: int, groups: Sequence[SmGroup]) -> GreenContext:
        api, device = self._api, self._device(index)
        resources = [group.resource for group in groups if isinstance(group, _Group)]
        if not resources or len(resources) != len(groups):
            raise cuda_error("cuDevResourceGenerateDesc", INVALID_VALUE)
        description = self._call("cuDevResourceGenerateDesc", resources, len(resources))
        flag = api.CUgreenCtxCreate_flags.CU_GREEN_CTX_DEFAULT_STREAM
        green = self._call("cuGreenCtxCreate", description, device, int(flag))
        try:
            got = self._call("cuGreenCtxGetDevResource", green, api.CUdevResourceType.CU_DEV_RESOURCE_TYPE_SM)
            non_blocking = int(api.CUstream_flags.CU_STREAM_NON_BLOCKING)
            stream = self._call("cuGreenCtxStreamCreate", green, non_blocking, 0)
        except CudaError:
            self._call("cuGreenCtxDestroy", green)
            raise
        return GreenContext(green, int(stream), int(got.sm.smCount))

    def destroy_green(self, green: GreenContext) -> None:
        self._call("cuStreamDestroy", self._api.CUstream(green.stream))
        self._call("cuGreenCtxDestroy", green.handle)

    # MemoryDriver

    def granularity(self, index: int) -> int:
        self._device(index)
        flag = self._api.CUmemAllocationGranularity_flags.CU_MEM_ALLOC_GRANULARITY_RECOMMENDED
        return int(self._call("cuMemGetAllocationGranularity", self._properties(index), flag))

    def create(self, index: int, num_bytes: int) -> int:
        self._device(index)
        return int(self._call("cuMemCreate", num_bytes, self._properties(index), 0))

    def export(self, handle: int) -> int:
        return int(self._call("cuMemExportToShareableHandle", self._handle(handle), self._fd_type(), 0))

    def import_(self, fd: int) -> int:
        # For descriptors, the "pointer" this call takes is the number itself.
        return int(self._call("cuMemImportFromShareableHandle", fd, self._fd_type()))

    def map(self, index: int, handle: int, num_bytes: int, *, writable: bool) -> int:
        address = self._call("cuMemAddressReserve", num_bytes, 0, 0, 0)
        try:
            self._call("cuMemMap", address, num_bytes, 0, self._handle(handle), 0)
            try:
                self._call("cuMemSetAccess", address, num_bytes, [self._access(index, writable)], 1)
            except CudaError:
                self._call("cuMemUnmap", address, num_bytes)
                raise
        except CudaError:
            self._call("cuMemAddressFree", address, num_bytes)
            raise
        return int(address)

    def unmap(self, address: int, num_bytes: int) -> None:
        self._call("cuMemUnmap", address, num_bytes)
        self._call("cuMemAddressFree", address, num_bytes)

    def release(self, handle: int) -> None:
        self._call("cuMemRelease", self._handle(handle))

    # IpcDriver

    def allocate(self, num_bytes: int) -> int:
        return int(self._call("cuMemAlloc", num_bytes))

    def ipc_handle(self, address: int) -> bytes:
        shared = self._call("cuIpcGetMemHandle", address)
        return ctypes.string_at(shared.getPtr(), _IPC_HANDLE_BYTES)

    def open_ipc(self, handle: bytes) -> int:
        if len(handle) != _IPC_HANDLE_BYTES:
            raise cuda_error("cuIpcOpenMemHandle", INVALID_VALUE)
        shared = self._api.CUipcMemHandle()
        # By address: not every version of the bindings shows the bytes as a member.
        ctypes.memmove(shared.getPtr(), handle, _IPC_HANDLE_BYTES)
        flag = self._api.CUipcMem_flags.CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS
        return int(self._call("cuIpcOpenMemHandle", shared, int(flag)))

    def close_ipc(self, address: int) -> None:
        self._call("cuIpcCloseMemHandle", address)

    def free(self, address: int) -> None:
        self._call("cuMemFree", address)

    # KernelDriver

    def load(self, image: bytes, name: str) -> BindingsKernel:
        module = self._call("cuModuleLoadData", image)
        return BindingsKernel(self, module, self._call("cuModuleGetFunction", module, name.encode()))

    def device_buffer(self, num_bytes: int) -> int:
        address = self.allocate(num_bytes)
        self.clear(address, num_bytes)
        return address

    def read(self, address: int, num_bytes: int) -> bytes:
        self.synchronize()
        host = bytearray(num_bytes)
        self._call("cuMemcpyDtoH", host, address, num_bytes)
        return bytes(host)

    def clear(self, address: int, num_bytes: int) -> None:
        """Done when this returns: lanes do not wait for the stream that clears."""
        self._call("cuMemsetD8", address, 0, num_bytes)
        self.synchronize()

    def call(self, name: str, *arguments: object) -> Any:
        """A driver function by its name, for the kernels of this driver. Raises CudaError."""
        return self._call(name, *arguments)

    def _call(self, name: str, *arguments: object) -> Any:
        """None, the one result or the tuple of results."""
        result = getattr(self._api, name)(*arguments)
        code = int(result[0])
        if code:
            raise CudaError(name, code, getattr(result[0], "name", f"CUDA error {code}"))
        return None if len(result) == 1 else result[1] if len(result) == 2 else result[1:]

    def _device(self, index: int) -> Any:
        return self._call("cuDeviceGet", index)

    def _sm_resource(self, device: Any) -> Any:
        return self._call("cuDeviceGetDevResource", device, self._api.CUdevResourceType.CU_DEV_RESOURCE_TYPE_SM)

    def _free_bytes(self) -> int:
        if not int(self._call("cuCtxGetCurrent")):
            return 0
        free, _ = self._call("cuMemGetInfo")
        return int(free)

    def _handle(self, handle: int) -> Any:
        return self._api.CUmemGenericAllocationHandle(handle)

    def _fd_type(self) -> Any:
        return self._api.CUmemAllocationHandleType.CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR

    def _properties(self, index: int) -> Any:
        properties = self._api.CUmemAllocationProp()
        properties.type = self._api.CUmemAllocationType.CU_MEM_ALLOCATION_TYPE_PINNED
        properties.location.type = self._api.CUmemLocationType.CU_MEM_LOCATION_TYPE_DEVICE
        properties.location.id = index
        properties.requestedHandleTypes = self._fd_type()
        return properties

    def _access(self, index: int, writable: bool) -> Any:
        flags = self._api.CUmemAccess_flags
        access = self._api.CUmemAccessDesc()
        access.location.type = self._api.CUmemLocationType.CU_MEM_LOCATION_TYPE_DEVICE
        access.location.id = index
        access.flags = flags.CU_MEM_ACCESS_FLAGS_PROT_READWRITE if writable else flags.CU_MEM_ACCESS_FLAGS_PROT_READ
        return access


class BindingsKernel:
    """A function of a module that stays loaded as long as this object."""

    def __init__(self, driver: BindingsDriver, module: object, function: object) -> None:
        self._driver = driver
        self._module = module
        self._function = function

    def launch(self, stream: int, grid: int, block: int, arguments: Sequence[tuple[str, int]]) -> None:
        values = tuple(value for _, value in arguments)
        types = tuple(_ARGUMENT_TYPES[kind] for kind, _ in arguments)
        self._driver.call("cuLaunchKernel", self._function, grid, 1, 1, block, 1, 1, 0, stream, (values, types), 0)


def _load_api() -> Any:
    try:
        from cuda.bindings import driver as api
    except ImportError as error:
        problem = f"the package cuda-python is missing or broken: {error}"
        raise ConfigError("device", problem, "install colocate[cuda], or use --device cpu") from error
    try:
        result = api.cuInit(0)
    except Exception as error:
        # Without libcuda.so.1 the bindings raise an error of their own whose type differs between versions.
        problem = f"the driver's library does not load: {type(error).__name__}: {str(error).splitlines()[0]}"
        raise ConfigError("device", problem, "install NVIDIA's driver, or use --device cpu") from error
    code = int(result[0])
    if code:
        raise CudaError("cuInit", code, getattr(result[0], "name", f"CUDA error {code}"))
    return api


def _format_uuid(raw: bytes) -> str:
    """As nvidia-smi writes it."""
    digits = raw.hex()
    return "GPU-" + "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))
