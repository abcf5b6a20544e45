"""Which device this run uses, and what its units are."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from colocate.config.serve import DeviceSection
from colocate.device.cpu.topology import usable_cores
from colocate.device.gpu_probe import probe_gpu
from colocate.errors import ConfigError

# The streaming multiprocessors of the device that the emulator stands in for, and the step green contexts come in.
_EMULATED_UNITS = 132
_EMULATED_GRANULARITY = 8


@dataclass(frozen=True, slots=True)
class DeviceFacts:
    """`unit_ids[i]` is the operating system's number of unit i of the plan."""

    kind: str
    name: str
    total_units: int
    unit_granularity: int
    unit_ids: tuple[int, ...]


def resolve_device(section: DeviceSection) -> DeviceFacts:
    """Raises ConfigError where what was asked for is not there; `auto` takes the best that works."""
    if section.device == "emulated":
        return _emulated(section)
    if section.device == "cuda":
        gpu = probe_gpu()
        problem = gpu.problem or f"{gpu.names[0]} is here, but this version has no CUDA workers yet"
        raise ConfigError("device", problem, "use --device cpu, or --device auto")
    for name, value in (("profile", section.profile), ("faults", section.faults)):
        if value:
            raise ConfigError(name, "is for the emulated device", "add --device emulated")
    return _cpu(section)


def _cpu(section: DeviceSection) -> DeviceFacts:
    cores = usable_cores().select(section.units)
    return DeviceFacts("cpu", _cpu_name(), len(cores), 1, cores)


def _emulated(section: DeviceSection) -> DeviceFacts:
    if section.profile is not None and not Path(section.profile).is_file():
        raise ConfigError("profile", f"there is no file {section.profile}", "leave it out for zero device time")
    units = section.units or _EMULATED_UNITS
    granularity = _EMULATED_GRANULARITY if units >= 4 * _EMULATED_GRANULARITY else 1
    return DeviceFacts("emulated", "emulated device", units, granularity, tuple(range(units)))


def _cpu_name() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return "CPU"
