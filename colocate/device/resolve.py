"""Which device this run uses, what its units are, and between which splits of them it can switch."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

from colocate.config.profile import load_profile
from colocate.config.serve import DeviceSection
from colocate.core.plan import shares_named, spread_shares
from colocate.device.cpu.topology import usable_cores
from colocate.device.cuda.backend import is_fake_chosen
from colocate.device.cuda.gpu_facts import ask_gpu
from colocate.device.cuda.mps import find_tools
from colocate.device.emulated.faults import parse_fault
from colocate.device.gpu_probe import probe_gpu
from colocate.errors import ConfigError

# The streaming multiprocessors of the device that the emulator stands in for, and the step green contexts come in.
_EMULATED_UNITS = 132
_EMULATED_GRANULARITY = 8


@dataclass(frozen=True, slots=True)
class DeviceFacts:
    """`unit_ids[i]` is the operating system's number of unit i of the plan; empty on a GPU."""

    kind: str
    name: str
    total_units: int
    unit_granularity: int
    unit_ids: tuple[int, ...]
    decode_shares: tuple[int, ...] = ()  # of the splits that are armed; empty: all
    index: int = 0  # CUDA's number of the GPU
    total_bytes: int = 0  # of the GPU's memory
    free_bytes: int = 0  # when it was asked


def resolve_device(section: DeviceSection, notes: list[str] | None = None) -> DeviceFacts:
    """Raises ConfigError where what was asked for is not there. `auto` takes a GPU that can run both phases at once,
    else the CPU; why it was not the GPU that is there goes to `notes`."""
    if section.device == "emulated":
        return _armed(_emulated(section), section.arm)
    if section.faults:
        raise ConfigError("faults", "is for the emulated device", "add --device emulated")
    if section.device == "cuda":
        return _cuda(section)
    if section.device == "auto" and _may_use_gpu(section):
        try:
            if not section.single_process:
                find_tools(os.environ)
            return _cuda(section)
        except ConfigError as error:
            if notes is not None:
                notes.append(f"running on the CPU, not the GPU: {error}")
    return _armed(_cpu(section), section.arm)


def _may_use_gpu(section: DeviceSection) -> bool:
    """Whether there is a GPU worth a note when it is not used. The fake one is taken only where it is asked for."""
    return section.units is None and not is_fake_chosen() and bool(probe_gpu().names)


def _cuda(section: DeviceSection) -> DeviceFacts:
    """Units are SMs. `--units` is refused: what is left out of the shares would stay idle, and a part of a GPU that
    others may use is not this run's to promise."""
    if section.units is not None:
        raise ConfigError("units", "a GPU is always partitioned as a whole", "choose its splits with --arm")
    gpu = ask_gpu(section.gpu)
    facts = DeviceFacts(
        "cuda",
        gpu.name,
        gpu.num_sms,
        gpu.atom_sms,
        (),
        spread_shares(gpu.num_sms, gpu.atom_sms),
        gpu.index,
        gpu.total_bytes,
        gpu.free_bytes,
    )
    return _armed(facts, section.arm)


def _armed(facts: DeviceFacts, names: tuple[str, ...]) -> DeviceFacts:
    if not names:
        return facts
    return replace(facts, decode_shares=shares_named(names, facts.total_units, facts.unit_granularity))


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
