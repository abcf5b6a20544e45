"""Which device this run uses, and what its units are."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from colocate.config.profile import load_profile
from colocate.config.serve import DeviceSection
from colocate.device.cpu.topology import usable_cores
from colocate.device.emulated.faults import parse_fault
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
    decode_shares: tuple[int, ...] = ()  # of the splits that are armed; empty: all
    index: int = 0  # CUDA's number of the GPU
    total_bytes: int = 0  # of the GPU's memory
    free_bytes: int = 0


def resolve_device(section: DeviceSection) -> DeviceFacts:
    """Raises ConfigError where what was asked for is not there; `auto` takes the best that works."""
    if section.device == "emulated":
        return _emulated(section)
    if section.device == "cuda":
        gpu = probe_gpu()
        problem = gpu.problem or f"{gpu.names[0]} is here, but this version has no CUDA workers yet"
        raise ConfigError("device", problem, "use --device cpu, or --device auto")
    if section.faults:
        raise ConfigError("faults", "is for the emulated device", "add --device emulated")
    return _cpu(section)


def _cpu(section: DeviceSection) -> DeviceFacts:
    cores = usable_cores().select(section.units)
    return DeviceFacts("cpu", _cpu_name(), len(cores), 1, cores)


def _emulated(section: DeviceSection) -> DeviceFacts:
    """Size and step of the device are the profile's; `--units` takes a part of it. Faults are refused here if they
    are misspelt, before anything starts."""
    for fault in section.faults:
        parse_fault(fault)
    name, units, granularity = "emulated device", _EMULATED_UNITS, _EMULATED_GRANULARITY
    if section.profile is not None:
        profile = load_profile(Path(section.profile))
        name, units, granularity = profile.name, profile.units, profile.granularity
    if section.units is not None:
        if section.profile is not None and section.units > units:
            raise ConfigError("units", f"is {section.units}, the profile knows {units}", f"give at most {units}")
        units = section.units
        granularity = granularity if units >= 2 * granularity else 1
    return DeviceFacts("emulated", name, units, granularity, tuple(range(units)))


def _cpu_name() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return "CPU"
