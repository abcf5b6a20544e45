"""A driver for Triton that compiles for sm_90 what is launched, and launches nothing (see aot.py).

Triton asks its driver for the device, and keeps compiled kernels by device: so the device here has a number that no GPU
has, and there is one driver per process.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from triton.backends.compiler import GPUTarget
from triton.backends.driver import DriverBase
from triton.runtime.cache import get_cache_manager

from tests.cuda.aot import SHARED_LIMIT_BYTES, CompiledForH200, Launch, read_compiled

_NO_DEVICE = -90


class CompilingDriver(DriverBase):
    """What triton 3.6 asks of a driver between a launch and its kernel."""

    def __init__(self) -> None:
        super().__init__()
        self.launches: list[Launch] = []
        self.launcher_cls = _Launcher
        self.utils = self

    @classmethod
    def is_active(cls) -> bool:
        return False

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return _NO_DEVICE

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {"max_shared_mem": SHARED_LIMIT_BYTES}

    def load_binary(self, name: str, cubin: bytes, shared: int, device: int) -> tuple[object, int, int, int, int]:
        """(module, function, registers, spills, most threads of a block)"""
        return object(), 0, 0, 0, 1024

    def map_python_to_cpp_type(self, ty: str) -> str:
        raise NotImplementedError(ty)

    def get_active_torch_device(self) -> object:
        raise NotImplementedError

    def get_benchmarker(self) -> Any:
        raise NotImplementedError


class _Launcher:
    """Stands for one compiled kernel: triton makes it at the first launch and calls it at each."""

    def __init__(self, source: Any, metadata: Any) -> None:
        self._metadata = metadata
        self._kernel: CompiledForH200 | None = None

    def __call__(self, x: int, y: int, z: int, *_: object) -> None:
        if self._kernel is None:
            files = get_cache_manager(self._metadata.hash).get_group(f"{self._metadata.name}.json") or {}
            paths = {Path(name).suffix[1:]: Path(path) for name, path in files.items()}
            texts = {kind: paths[kind].read_text() for kind in ("ttgir", "ptx")}
            self._kernel = read_compiled(texts | {"cubin": paths["cubin"].read_bytes()}, self._metadata)
        COMPILING.launches.append(Launch(self._metadata.name, (x, y, z), self._kernel))


COMPILING = CompilingDriver()
