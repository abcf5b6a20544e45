"""The backend of a real GPU: NVIDIA's driver through cuda-python, and torch on its primary context."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from colocate.device.cuda.backend import view_of
from colocate.device.cuda.bindings import BindingsDriver
from colocate.device.cuda.driver import GreenContext
from colocate.device.cuda.green_lane import GreenLane
from colocate.device.cuda.lane import Lane
from colocate.errors import ConfigError

if TYPE_CHECKING:
    import torch


class GpuBackend:
    """Opens torch on the GPU first, so that the primary context the driver then retains is torch's own."""

    def __init__(self, index: int) -> None:
        """Raises ConfigError where torch or the driver cannot use the GPU."""
        import torch

        cuda: Any = torch.cuda
        if torch.version.cuda is None:
            problem = f"torch {torch.__version__} was built without CUDA"
            raise ConfigError("device", problem, "install the CUDA build of torch, or use --device cpu")
        try:
            cuda.init()
            cuda.set_device(index)
            torch.zeros(1, device=f"cuda:{index}")
        except (RuntimeError, AssertionError) as error:
            raise ConfigError("device", f"torch cannot use GPU {index}: {error}", "see colocate doctor") from error
        self._torch_device = f"cuda:{index}"
        self._driver = BindingsDriver()
        self._driver.retain_primary(index)

    @property
    def driver(self) -> BindingsDriver:
        return self._driver

    @property
    def torch_device(self) -> str:
        return self._torch_device

    @property
    def is_fake(self) -> bool:
        return False

    def lane(self, green: GreenContext) -> Lane:
        return GreenLane(green, self._torch_device)

    def tensor(self, address: int, num_bytes: int) -> torch.Tensor:
        return view_of(address, num_bytes, self._torch_device)

    def pinned(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        import torch

        return torch.zeros(shape, dtype=dtype, pin_memory=True)

    def settle(self) -> None:
        """Of the current stream only: to wait for the whole context is illegal while another thread captures."""
        import torch

        torch.cuda.current_stream(self._torch_device).synchronize()
