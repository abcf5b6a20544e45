"""What a worker on a GPU works with: the driver, torch's name of the device, lanes and views of device memory.

COLOCATE_FAKE_CUDA=1 chooses the fake backend: the fake device of `fake.py`, torch on the CPU and Triton's interpreter,
in every process of a run. It is for tests and for looking at the GPU code paths on a machine without a GPU; nothing
about its speed means anything.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Protocol

from colocate.device.cuda.driver import INVALID_VALUE, CudaDriver, GreenContext, cuda_error
from colocate.device.cuda.fake import FakeDriver
from colocate.device.cuda.lane import InlineLane, Lane
from colocate.errors import InvariantError

if TYPE_CHECKING:
    import torch

FAKE_VARIABLE = "COLOCATE_FAKE_CUDA"


class Backend(Protocol):
    """One per process."""

    @property
    def driver(self) -> CudaDriver: ...

    @property
    def torch_device(self) -> str:
        """ "cuda:0", or "cpu" on the fake device."""
        ...

    @property
    def is_fake(self) -> bool: ...

    def lane(self, green: GreenContext) -> Lane:
        """A lane over the green context's stream, valid as long as the green context is."""
        ...

    def tensor(self, address: int, num_bytes: int) -> torch.Tensor:
        """Device memory as uint8 [num_bytes]. It does not own it: the mapping must outlive every view."""
        ...

    def pinned(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """Host memory, zeroed, that asynchronous copies can read and write; plain memory on the fake device."""
        ...

    def settle(self) -> None:
        """Wait for what this thread allocated and filled outside of every lane. Lanes do not wait for it by themselves:
        call it between making tensors and the first work on a lane that uses them."""
        ...


def is_fake_chosen() -> bool:
    return os.environ.get(FAKE_VARIABLE, "") == "1"


def open_backend(index: int = 0) -> Backend:
    """Make this process a user of GPU `index`, once, before triton is imported. Raises ConfigError, CudaError."""
    if not is_fake_chosen():
        from colocate.device.cuda.gpu_backend import GpuBackend

        return GpuBackend(index)
    if "triton" in sys.modules and os.environ.get("TRITON_INTERPRET") != "1":
        raise InvariantError("triton was imported before the fake device was opened: its kernels ask for a GPU")
    os.environ["TRITON_INTERPRET"] = "1"
    return FakeBackend(FakeDriver())


class FakeBackend:
    """Tests that need no process of their own make it directly, over a FakeDriver they can break."""

    def __init__(self, driver: FakeDriver) -> None:
        self._driver = driver
        driver.retain_primary(0)

    @property
    def driver(self) -> FakeDriver:
        return self._driver

    @property
    def torch_device(self) -> str:
        return "cpu"

    @property
    def is_fake(self) -> bool:
        return True

    def lane(self, green: GreenContext) -> Lane:
        self._driver.sm_ids(green)  # a green context that is gone has no lane
        return InlineLane(self._driver.check, self._driver.replaying)

    def tensor(self, address: int, num_bytes: int) -> torch.Tensor:
        """A write through a mapping that is read-only ends the process, as a fault on a GPU ends its work."""
        if not self._driver.reachable(address, num_bytes):
            raise cuda_error("cuPointerGetAttribute", INVALID_VALUE)
        return view_of(address, num_bytes, self.torch_device)

    def pinned(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        import torch

        return torch.zeros(shape, dtype=dtype)

    def settle(self) -> None:
        """Everything is done when its call returns."""
        self._driver.check()


def view_of(address: int, num_bytes: int, device: str) -> torch.Tensor:
    """The bytes at an address as a tensor that owns nothing."""
    import torch

    storage = torch._C._construct_storage_from_data_pointer(address, torch.device(device), num_bytes)
    return torch.empty(0, dtype=torch.uint8, device=device).set_(storage, 0, (num_bytes,), (1,))
