"""How much of a GPU is in use, as NVML counts it, and whether a mapping was a copy.

Unproven: NVML lists MPS clients apart from other processes and may attribute their memory to the server; memory of
cuMemCreate that a process without a context holds may belong to nobody; in a container the process numbers are those
of the host. The device's total is safe from all of that, so proofs rest on it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class DeviceUse:
    """Of one moment. `processes` has bytes by process number, for those NVML has a number for."""

    total_bytes: int
    used_bytes: int
    processes: dict[int, int] = field(default_factory=dict)


def device_use(uuid: str) -> DeviceUse | None:
    """None where NVML or this GPU cannot be asked. `uuid` is the driver's: NVML numbers GPUs in its own order."""
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception:  # no package, no library, no driver: each raises something else
        return None
    try:
        handle = pynvml.nvmlDeviceGetHandleByUUID(uuid)
        memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
        return DeviceUse(int(memory.total), int(memory.used), _processes(pynvml, handle))
    except pynvml.NVMLError:
        return None
    finally:
        pynvml.nvmlShutdown()


def _processes(pynvml: Any, handle: object) -> dict[int, int]:
    found: dict[int, int] = {}
    for ask in ("nvmlDeviceGetComputeRunningProcesses", "nvmlDeviceGetMPSComputeRunningProcesses"):
        try:
            processes = getattr(pynvml, ask)(handle)
        except (pynvml.NVMLError, AttributeError):
            continue  # a driver too old for this list
        for process in processes:
            if process.usedGpuMemory is not None:
                found[int(process.pid)] = max(found.get(int(process.pid), 0), int(process.usedGpuMemory))
    return found


@dataclass(frozen=True, slots=True)
class CopyCheck:
    """What the device's use grew by while `mapped_bytes` were mapped."""

    mapped_bytes: int
    grown_bytes: int

    @property
    def is_shared(self) -> bool:
        """A copy would have grown it by all of it; page tables take a fraction of a percent. Other programs must be
        quiet meanwhile, and the memory large against what they do: half is far from both."""
        return self.grown_bytes < self.mapped_bytes / 2


def check_one_copy(uuid: str, mapped_bytes: int, attach: Callable[[], object]) -> CopyCheck | None:
    """Run `attach`, which maps memory that exists, in a process whose context exists. None where NVML has no answer."""
    before = device_use(uuid)
    attach()
    after = device_use(uuid)
    if before is None or after is None:
        return None
    return CopyCheck(mapped_bytes, after.used_bytes - before.used_bytes)
