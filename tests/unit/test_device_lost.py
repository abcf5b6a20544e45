"""Which exceptions mean that the GPU is lost, whoever raises them."""

from __future__ import annotations

import pytest

from colocate.device.cuda.device_lost import device_lost_raised, is_device_lost
from colocate.device.cuda.driver import FATAL, ILLEGAL_ADDRESS, OUT_OF_MEMORY, CudaError
from colocate.errors import DeviceLost


class AcceleratorError(RuntimeError):
    """As torch raises it: a text, and the runtime's code beside it."""

    def __init__(self, text: str, error_code: int) -> None:
        super().__init__(text)
        self.error_code = error_code


LOST = [
    DeviceLost("gone"),
    *(CudaError("cuEventQuery", code, "CUDA_ERROR") for code in sorted(FATAL)),
    CudaError("cuDevicePrimaryCtxRetain", 807, "CUDA_ERROR_MPS_SERVER_NOT_READY"),
    CudaError("cuLaunchKernel", 810, "CUDA_ERROR_MPS_CLIENT_TERMINATED"),
    AcceleratorError("CUDA error: something of tomorrow", ILLEGAL_ADDRESS),
    RuntimeError("CUDA error: an illegal memory access was encountered\nCUDA kernel errors might be reported later"),
    RuntimeError("Triton Error [CUDA]: unspecified launch failure"),
]
KEPT = [
    CudaError("cuMemAlloc", OUT_OF_MEMORY, "CUDA_ERROR_OUT_OF_MEMORY"),
    AcceleratorError("CUDA error: out of memory", OUT_OF_MEMORY),
    RuntimeError("CUDA error: invalid argument"),
    ValueError("an illegal memory access was encountered"),
    KeyError("x"),
]


@pytest.mark.parametrize("error", LOST, ids=str)
def test_a_lost_device_is_named_as_one(error: Exception) -> None:
    assert is_device_lost(error)
    with pytest.raises(DeviceLost) as lost, device_lost_raised():
        raise error
    assert lost.value is error or lost.value.__cause__ is error


@pytest.mark.parametrize("error", KEPT, ids=str)
def test_other_failures_stay_what_they_are(error: Exception) -> None:
    assert not is_device_lost(error)
    with pytest.raises(type(error)) as kept, device_lost_raised():
        raise error
    assert kept.value is error


def test_the_cause_of_a_failure_counts() -> None:
    with pytest.raises(DeviceLost), device_lost_raised():
        try:
            raise CudaError("cuStreamSynchronize", ILLEGAL_ADDRESS, "CUDA_ERROR_ILLEGAL_ADDRESS")
        except CudaError as error:
            raise RuntimeError("the step failed") from error


def test_causes_that_go_in_a_circle_end() -> None:
    first, second = RuntimeError("first"), RuntimeError("second")
    first.__cause__, second.__cause__ = second, first
    assert not is_device_lost(first)
