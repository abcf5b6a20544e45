"""What this machine is: read, never changed."""

from __future__ import annotations

import os
import platform
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from gpu.setting import Setting
from gpu.sheet import Sheet

PACKAGES = (
    "torch", "triton", "numpy", "cuda-bindings", "cuda-python", "nvidia-ml-py", "nvidia-cuda-nvrtc",
    "flashinfer-python", "vllm", "sglang", "transformers", "tokenizers", "pyzmq", "msgspec", "uvloop", "fastapi",
    "starlette", "pydantic",
)  # fmt: skip
MPS_PROGRAMS = ("nvidia-cuda-mps-control", "nvidia-cuda-mps-server")
_OUTPUT_BYTES = 4000


def run(setting: Setting, sheet: Sheet) -> None:
    for name, ask in (
        ("system", _system),
        ("limits", _limits),
        ("packages", _packages),
        ("programs", _programs),
        ("variables", _variables),
        ("nvml", _nvml),
        ("nvidia-smi", lambda: _output("nvidia-smi")),
        ("clocks", lambda: _output("nvidia-smi", "-q", "-d", "CLOCK,POWER,PERFORMANCE")),
        ("nvcc", lambda: _output("nvcc", "--version")),
        ("driver", _driver),
        ("torch", _torch),
    ):
        sheet.put(name, _or_why_not(ask))
    print(f"kernel {platform.release()}, Python {platform.python_version()}, {sheet.data['nvml']}")
    print(f"MPS: {sheet.data['programs']}")


def _or_why_not(ask: Callable[[], Any]) -> Any:
    """One question that cannot be answered is an answer, too."""
    try:
        return ask()
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}


def _system() -> dict[str, Any]:
    version_text = Path("/proc/version").read_text().strip()
    kernel_log = _output("dmesg")
    return {
        "kernel": version_text,
        "is_gvisor": "gvisor" in (version_text + kernel_log).lower(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "shm_bytes": shutil.disk_usage("/dev/shm").total,
        "tmp_bytes": shutil.disk_usage("/tmp").free,
        "devices": sorted(str(path) for path in Path("/dev").glob("nvidia*")),
        "uid": os.getuid(),
        "python": sys.version,
    }


def _limits() -> dict[str, tuple[int, int]]:
    names = ("NOFILE", "NPROC", "MEMLOCK", "STACK", "AS", "CORE")
    return {name.lower(): resource.getrlimit(getattr(resource, f"RLIMIT_{name}")) for name in names}


def _packages() -> dict[str, str | None]:
    def of(name: str) -> str | None:
        try:
            return version(name)
        except PackageNotFoundError:
            return None

    return {name: of(name) for name in PACKAGES}


def _programs() -> dict[str, str | None]:
    places = os.pathsep.join(
        (os.environ.get("PATH", ""), "/usr/bin", "/usr/local/bin", "/usr/local/nvidia/bin", "/opt/bin")
    )
    return {name: shutil.which(name, path=places) for name in (*MPS_PROGRAMS, "nvidia-smi", "nvcc", "gcc", "ninja")}


def _variables() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name.startswith(("CUDA", "NVIDIA", "TORCH", "TRITON"))}


def _nvml() -> dict[str, Any]:
    """Clocks, power and memory of the moment, as read."""
    import pynvml

    pynvml.nvmlInit()
    try:
        handle = pynvml.nvmlDeviceGetHandleByIndex(0)
        memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
        asks: dict[str, Callable[[], Any]] = {
            "name": lambda: pynvml.nvmlDeviceGetName(handle),
            "driver": pynvml.nvmlSystemGetDriverVersion,
            "cuda": pynvml.nvmlSystemGetCudaDriverVersion,
            "count": pynvml.nvmlDeviceGetCount,
            "memory_bytes": lambda: memory.total,
            "used_bytes": lambda: memory.used,
            "compute_mode": lambda: pynvml.nvmlDeviceGetComputeMode(handle),
            "mig_mode": lambda: pynvml.nvmlDeviceGetMigMode(handle),
            "ecc": lambda: pynvml.nvmlDeviceGetEccMode(handle),
            "sm_clock_mhz": lambda: pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_SM),
            "max_sm_clock_mhz": lambda: pynvml.nvmlDeviceGetMaxClockInfo(handle, pynvml.NVML_CLOCK_SM),
            "memory_clock_mhz": lambda: pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_MEM),
            "power_limit_w": lambda: pynvml.nvmlDeviceGetPowerManagementLimit(handle) / 1e3,
            "temperature_c": lambda: pynvml.nvmlDeviceGetTemperature(handle, pynvml.NVML_TEMPERATURE_GPU),
        }
        return {name: _or_why_not(ask) for name, ask in asks.items()}
    finally:
        pynvml.nvmlShutdown()


def _driver() -> dict[str, Any]:
    from dataclasses import asdict

    from colocate.device.cuda.backend import open_backend

    return asdict(open_backend().driver.facts(0))


def _torch() -> dict[str, Any]:
    import torch

    facts: dict[str, Any] = {
        "version": torch.__version__,
        "cuda": torch.version.cuda,
        "archs": torch.cuda.get_arch_list(),
    }
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        facts |= {
            "name": properties.name,
            "sms": properties.multi_processor_count,
            "cudnn": torch.backends.cudnn.version(),
        }
    return facts


def _output(*command: str) -> str:
    if shutil.which(command[0]) is None:
        return ""
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    return (done.stdout or done.stderr)[:_OUTPUT_BYTES]
