"""Whether this machine has a GPU that could be used, and if not, exactly what is missing. Imports nothing heavy."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from colocate.device.cuda.mps import CONTROL, SERVER, find_program

_NVIDIA_PCI_VENDOR = "0x10de"
_DISPLAY_CLASSES = ("0x0300", "0x0302")


@dataclass(frozen=True, slots=True)
class GpuReport:
    """`names` is empty where no GPU can be used; `problem` then says why."""

    names: tuple[str, ...]
    driver: str
    problem: str
    pci_devices: int
    has_device_files: bool
    mps_binaries: tuple[str, ...]


def probe_gpu() -> GpuReport:
    """Ask the driver; where it does not answer, look at what is there to find the reason."""
    names, driver, nvml_error = _ask_nvml()
    pci = _count_pci()
    has_files = any(Path("/dev").glob("nvidia[0-9]*"))
    mps = tuple(path for name in (CONTROL, SERVER) if (path := find_program(name, os.environ)) is not None)
    return GpuReport(names, driver, "" if names else _reason(nvml_error, pci, has_files), pci, has_files, mps)


def _ask_nvml() -> tuple[tuple[str, ...], str, str]:
    try:
        import pynvml
    except ImportError:
        return (), "", "the package nvidia-ml-py is not installed"
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        return (), "", str(error)
    try:
        driver = str(pynvml.nvmlSystemGetDriverVersion())
        handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
        return tuple(str(pynvml.nvmlDeviceGetName(handle)) for handle in handles), driver, ""
    except pynvml.NVMLError as error:
        return (), "", str(error)
    finally:
        pynvml.nvmlShutdown()


def _count_pci() -> int:
    count = 0
    for device in Path("/sys/bus/pci/devices").glob("*"):
        try:
            vendor, kind = (device / "vendor").read_text().strip(), (device / "class").read_text().strip()
        except OSError:
            continue
        count += vendor == _NVIDIA_PCI_VENDOR and kind.startswith(_DISPLAY_CLASSES)
    return count


def _reason(nvml_error: str, pci: int, has_files: bool) -> str:
    if pci == 0 and not has_files:
        return f"no NVIDIA GPU on the PCI bus and no /dev/nvidia* (driver library: {nvml_error or 'answers'})"
    if not has_files:
        return f"{pci} NVIDIA GPU on the PCI bus but no /dev/nvidia*: the driver is not loaded or not passed in"
    return f"/dev/nvidia* exists but the driver does not answer: {nvml_error or 'it names no GPU'}"
