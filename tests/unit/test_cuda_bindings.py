"""The real driver's side of the seam, as far as it can be held against cuda-bindings without a GPU.

`ScriptedApi` stands for the module `cuda.bindings.driver`: enums and structures are the real ones, each function checks
the number of its arguments against the real signature and answers in the shape that its documentation gives. Where
there is no driver, the real function is called as well: it converts its arguments before it misses the library.
"""

from __future__ import annotations

import ctypes
import inspect
import re
from collections.abc import Callable
from typing import Any

import pytest

from colocate.device.cuda.bindings import BindingsDriver
from colocate.device.cuda.driver import FATAL, INVALID_CONFIGURATION, NAMES, CudaError, cuda_error
from colocate.device.cuda.green_lane import as_cuda_error
from colocate.errors import ConfigError

real = pytest.importorskip("cuda.bindings.driver")


def has_driver() -> bool:
    try:
        real.cuInit(0)
    except Exception:
        return False
    return True


HAS_DRIVER = has_driver()
_RETURNS = re.compile(r"^(\w+) : ", re.MULTILINE)


def sm_resource(count: int) -> Any:
    resource = real.CUdevResource()
    resource.type = real.CUdevResourceType.CU_DEV_RESOURCE_TYPE_SM
    resource.sm.smCount = count
    resource.sm.minSmPartitionSize = 8
    resource.sm.smCoscheduledAlignment = 8
    return resource


class ScriptedApi:
    """`answers` by function; a function that is not named returns nothing but success. `calls` is what was called."""

    def __init__(self, **answers: object) -> None:
        self.answers = answers
        self.failures: dict[str, int] = {}
        self.calls: list[tuple[str, tuple[Any, ...]]] = []

    def __getattr__(self, name: str) -> Any:
        member = getattr(real, name)
        return self._function(name, member) if name.startswith("cu") and not isinstance(member, type) else member

    def names(self) -> list[str]:
        return [name for name, _ in self.calls]

    def _function(self, name: str, member: Any) -> Callable[..., tuple[Any, ...]]:
        documentation = inspect.getdoc(member) or ""
        parameters = documentation.splitlines()[0].partition("(")[2].rpartition(")")[0]
        arity = len([part for part in re.sub(r"\[[^]]*\]", "", parameters).split(",") if part.strip()])
        returns = documentation.partition("Returns\n")[2].partition("See Also")[0].partition("Notes\n")[0]
        num_results = len(_RETURNS.findall(returns))

        def call(*arguments: Any) -> tuple[Any, ...]:
            assert len(arguments) == arity, f"{name}({parameters}) was called with {arguments}"
            self.calls.append((name, arguments))
            if not HAS_DRIVER:
                with pytest.raises(Exception, match=r"libcuda|NVIDIA driver library"):  # by version
                    member(*arguments)
            if name in self.failures:
                return (real.CUresult(self.failures[name]), *[None] * num_results)
            answer = self.answers.get(name, ())
            results = answer if isinstance(answer, tuple) else (answer,)
            assert len(results) == num_results, f"{name} returns {num_results} results beside the code"
            return (real.CUresult.CUDA_SUCCESS, *results)

        return call


def test_codes_are_those_of_the_header() -> None:
    assert {code: real.CUresult(code).name for code in NAMES} == NAMES
    assert all(real.CUresult(code) for code in FATAL)
    assert cuda_error("cuInit", 42).name == "CUDA error 42"


def test_without_a_driver_library_the_remedy_is_named() -> None:
    if HAS_DRIVER:
        pytest.skip("this machine has NVIDIA's driver")
    with pytest.raises(ConfigError, match=r"driver's library does not load.*install NVIDIA's driver"):
        BindingsDriver()


def test_the_script_itself_knows_the_signatures() -> None:
    with pytest.raises(AssertionError, match="cuInit"):
        ScriptedApi().cuInit()


def test_facts_are_asked_of_the_device() -> None:
    uuid = real.CUuuid()
    api = ScriptedApi(
        cuDeviceGet=real.CUdevice(0),
        cuDeviceGetAttribute=9,
        cuDeviceGetName=b"NVIDIA H200\0\0\0",
        cuDeviceGetUuid=uuid,
        cuDriverGetVersion=13000,
        cuDeviceTotalMem=150 << 30,
        cuDeviceGetDevResource=sm_resource(132),
        cuCtxGetCurrent=real.CUcontext(0),
    )
    facts = BindingsDriver(api).facts(0)
    assert (facts.name, facts.uuid) == ("NVIDIA H200", "GPU-00000000-0000-0000-0000-000000000000")
    assert (facts.min_partition_sms, facts.partition_step_sms, facts.atom_sms) == (8, 8, 8)
    assert (facts.free_bytes, facts.is_mps_client) == (0, False), "no context, and MPS_ENABLED is not 1"
    api.answers |= {"cuCtxGetCurrent": real.CUcontext(7), "cuMemGetInfo": (100, 200)}
    assert BindingsDriver(api).facts(0).free_bytes == 100


def splitting_api(sizes: list[int], rest: int) -> ScriptedApi:
    # The list is as long as what was asked for, also where the driver made fewer groups.
    groups = [sm_resource(size) for size in sizes] + [sm_resource(0)] * (16 - len(sizes))
    return ScriptedApi(
        cuDeviceGet=real.CUdevice(0),
        cuDeviceGetDevResource=sm_resource(132),
        cuDevSmResourceSplitByCount=(groups, len(sizes), sm_resource(rest)),
        cuDevResourceGenerateDesc=real.CUdevResourceDesc(),
        cuGreenCtxCreate=real.CUgreenCtx(11),
        cuGreenCtxGetDevResource=sm_resource(20),
        cuGreenCtxStreamCreate=real.CUstream(12),
    )


def test_a_split_and_a_green_context_over_groups_and_remainder() -> None:
    api = splitting_api([8] * 16, 4)
    driver = BindingsDriver(api)
    groups, remainder = driver.split(0, 8)
    assert [group.num_sms for group in groups] == [8] * 16
    assert remainder is not None and remainder.num_sms == 4
    green = driver.make_green(0, [*groups[14:], remainder])
    assert (int(green.handle), green.stream, green.num_sms) == (11, 12, 20)  # type: ignore[call-overload]
    described = dict(api.calls)["cuDevResourceGenerateDesc"]
    assert [resource.sm.smCount for resource in described[0]] == [8, 8, 4] and described[1] == 3
    driver.destroy_green(green)
    assert api.names()[-2:] == ["cuStreamDestroy", "cuGreenCtxDestroy"], "the stream first"


@pytest.mark.parametrize("sizes", [[16] * 8, [], [8] * 15 + [16]])
def test_groups_of_another_size_than_asked_are_refused(sizes: list[int]) -> None:
    with pytest.raises(CudaError) as caught:
        BindingsDriver(splitting_api(sizes, 4)).split(0, 8)
    assert caught.value.code == INVALID_CONFIGURATION


def test_a_green_context_without_a_stream_is_given_back() -> None:
    api = splitting_api([8] * 16, 4)
    driver = BindingsDriver(api)
    groups, _ = driver.split(0, 8)
    api.failures["cuGreenCtxStreamCreate"] = 2
    with pytest.raises(CudaError, match="cuGreenCtxStreamCreate: CUDA_ERROR_OUT_OF_MEMORY"):
        driver.make_green(0, groups[:2])
    assert api.names()[-1] == "cuGreenCtxDestroy"


def memory_api() -> ScriptedApi:
    return ScriptedApi(
        cuDeviceGet=real.CUdevice(0),
        cuMemGetAllocationGranularity=2 << 20,
        cuMemCreate=real.CUmemGenericAllocationHandle(5),
        cuMemExportToShareableHandle=33,
        cuMemImportFromShareableHandle=real.CUmemGenericAllocationHandle(6),
        cuMemAddressReserve=real.CUdeviceptr(0x7000),
    )


def test_memory_is_asked_for_as_exportable_memory_of_the_device() -> None:
    api = memory_api()
    driver = BindingsDriver(api)
    assert driver.granularity(0) == 2 << 20
    assert (driver.create(0, 4 << 20), driver.export(5), driver.import_(33)) == (5, 33, 6)
    size, properties, _ = dict(api.calls)["cuMemCreate"]
    handles = real.CUmemAllocationHandleType
    assert size == 4 << 20
    assert properties.requestedHandleTypes == handles.CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR
    assert properties.location.type == real.CUmemLocationType.CU_MEM_LOCATION_TYPE_DEVICE
    driver.release(6)


@pytest.mark.parametrize(("writable", "access"), [(True, "READWRITE"), (False, "READ")])
def test_a_mapping_has_the_access_that_was_asked_for(writable: bool, access: str) -> None:
    api = memory_api()
    assert BindingsDriver(api).map(0, 5, 4 << 20, writable=writable) == 0x7000
    (described,) = dict(api.calls)["cuMemSetAccess"][2]
    assert described.flags == getattr(real.CUmemAccess_flags, f"CU_MEM_ACCESS_FLAGS_PROT_{access}")


@pytest.mark.parametrize(
    ("failing", "undone"),
    [("cuMemMap", ["cuMemAddressFree"]), ("cuMemSetAccess", ["cuMemUnmap", "cuMemAddressFree"])],
)
def test_a_mapping_that_fails_half_way_is_undone(failing: str, undone: list[str]) -> None:
    api = memory_api()
    api.failures[failing] = 2
    with pytest.raises(CudaError, match=failing):
        BindingsDriver(api).map(0, 5, 4 << 20, writable=True)
    assert api.names()[api.names().index(failing) + 1 :] == undone


def test_legacy_handles_are_64_bytes_both_ways() -> None:
    shared = real.CUipcMemHandle()
    ctypes.memmove(shared.getPtr(), bytes(range(64)), 64)
    api = ScriptedApi(
        cuMemAlloc=real.CUdeviceptr(0x9000),
        cuIpcGetMemHandle=shared,
        cuIpcOpenMemHandle=real.CUdeviceptr(0xA000),
    )
    driver = BindingsDriver(api)
    handle = driver.ipc_handle(driver.allocate(4096))
    assert handle == bytes(range(64))
    high = bytes(range(192, 256))
    assert driver.open_ipc(high) == 0xA000
    assert ctypes.string_at(dict(api.calls)["cuIpcOpenMemHandle"][0].getPtr(), 64) == high
    with pytest.raises(CudaError):
        driver.open_ipc(handle[:63])
    driver.close_ipc(0xA000)
    driver.free(0x9000)


def test_kernels_get_their_arguments_with_types() -> None:
    api = ScriptedApi(
        cuModuleLoadData=real.CUmodule(1),
        cuModuleGetFunction=real.CUfunction(2),
        cuMemAlloc=real.CUdeviceptr(0x9000),
    )
    driver = BindingsDriver(api)
    kernel = driver.load(b"\x7fELF", "smid_probe")
    address = driver.device_buffer(64)
    kernel.launch(77, 10, 1024, [("ptr", address), ("u32", 3), ("i32", -3), ("u64", 1 << 40)])
    launched = dict(api.calls)["cuLaunchKernel"]
    assert launched[1:9] == (10, 1, 1, 1024, 1, 1, 0, 77)
    values, types = launched[9]
    assert values == (address, 3, -3, 1 << 40) and len(types) == 4
    assert driver.read(address, 64) == bytes(64)
    assert api.names()[-2:] == ["cuCtxSynchronize", "cuMemcpyDtoH"], "streams of lanes do not wait for this one"
    assert api.names()[api.names().index("cuMemsetD8") + 1] == "cuCtxSynchronize"


def test_the_primary_context_is_retained_once_and_made_current_each_time() -> None:
    api = ScriptedApi(cuDeviceGet=real.CUdevice(0), cuDevicePrimaryCtxRetain=real.CUcontext(3))
    driver = BindingsDriver(api)
    driver.retain_primary(0)
    driver.retain_primary(0)
    assert api.names() == ["cuDeviceGet", "cuDevicePrimaryCtxRetain", "cuCtxSetCurrent", "cuCtxSetCurrent"]


class Accelerated(RuntimeError):
    """As torch.AcceleratorError: a RuntimeError that carries the runtime's number."""

    def __init__(self, text: str, error_code: int) -> None:
        self.error_code = error_code
        super().__init__(text)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (RuntimeError("CUDA error: an illegal memory access was encountered\nCUDA kernel errors might be"), 700),
        (RuntimeError("Triton Error [CUDA]: an illegal memory access was encountered"), 700),
        (RuntimeError("CUDA error: unspecified launch failure"), 719),
        (RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB."), 2),
        (RuntimeError("CUDA error: something new"), 999),
        (Accelerated("CUDA error: whatever it says", 710), 710),
    ],
)
def test_errors_of_torch_and_triton_become_the_driver_s_codes(error: RuntimeError, code: int) -> None:
    known = as_cuda_error("cudaEventQuery", error)
    assert known is not None and known.code == code
    assert known.is_fatal == (code >= 700 and code != 999)


def test_errors_that_are_not_about_the_gpu_stay_what_they_are() -> None:
    assert as_cuda_error("cudaLaunchKernel", RuntimeError("mat1 and mat2 shapes cannot be multiplied")) is None
