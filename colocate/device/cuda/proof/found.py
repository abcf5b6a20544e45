"""What is installed and set here, found without a CUDA context and without importing torch."""

from __future__ import annotations

import ctypes
import importlib.metadata
import importlib.util
import os
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from colocate.device.cuda.mps import check_environment, find_tools
from colocate.errors import ConfigError

PACKAGES = ("cuda-bindings", "nvidia-cuda-nvrtc", "triton", "torch", "nvidia-ml-py", "flashinfer-python")
_VERSION_LIMIT_S = 10.0


@dataclass(frozen=True, slots=True)
class NvmlFacts:
    """Settings of the GPU as NVML names them. Read only: nothing here is ever changed."""

    driver: str
    gpu: str
    uuid: str
    total_bytes: int
    compute_mode: str  # default, exclusive thread, prohibited, exclusive process
    mig: str  # on, off, not available


@dataclass(frozen=True, slots=True)
class MpsFound:
    """The daemon's program and what it calls itself, or why there is none."""

    command: tuple[str, ...] = ()
    version: str = ""
    problem: ConfigError | None = None


@dataclass(frozen=True, slots=True)
class Found:
    """All of it. `api_version` is what the driver library speaks (13000 is CUDA 13.0), 0 without the library."""

    is_fake: bool
    api_version: int
    nvml: NvmlFacts | None
    nvml_problem: str
    packages: Mapping[str, str]  # absent ones are left out
    torch_cuda: str  # the CUDA that torch was built for; empty: none
    mps: MpsFound
    variables: Mapping[str, str] = field(default_factory=dict)  # CUDA_* of this environment
    variables_problem: ConfigError | None = None


def find_everything(index: int, is_fake: bool) -> Found:
    """Of GPU `index`."""
    nvml, nvml_problem = _ask_nvml(index)
    return Found(
        is_fake=is_fake,
        api_version=_api_version(),
        nvml=nvml,
        nvml_problem=nvml_problem,
        packages={name: version for name in PACKAGES if (version := _version(name))},
        torch_cuda=_torch_cuda(),
        mps=_find_mps(),
        variables={name: value for name, value in os.environ.items() if name.startswith("CUDA_")},
        variables_problem=_problem_of_variables(),
    )


def _find_mps() -> MpsFound:
    try:
        tools = find_tools(os.environ)
    except ConfigError as error:
        return MpsFound(problem=error)
    return MpsFound(tools.command, _program_version(tools.command[0]) if len(tools.command) == 1 else "")


def _problem_of_variables() -> ConfigError | None:
    try:
        check_environment(os.environ)
    except ConfigError as error:
        return error
    return None


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _torch_cuda() -> str:
    """From the text of `torch/version.py`: importing torch takes seconds, and the wheel's metadata may not say it."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return ""
    try:
        text = (Path(spec.origin).parent / "version.py").read_text()
    except OSError:
        return ""
    match = re.search(r"^cuda(?:\s*:[^=]*)?\s*=\s*['\"]([\d.]+)['\"]", text, re.MULTILINE)
    return match.group(1) if match else ""


def _api_version() -> int:
    """cuDriverGetVersion is the one call that needs no cuInit, so this process never becomes a client of anything."""
    version = ctypes.c_int(0)
    try:
        library = ctypes.CDLL("libcuda.so.1")
        code = library.cuDriverGetVersion(ctypes.byref(version))
    except (OSError, AttributeError):
        return 0
    return version.value if code == 0 else 0


def _program_version(path: str) -> str:
    try:
        done = subprocess.run(
            [path, "-v"], capture_output=True, text=True, timeout=_VERSION_LIMIT_S, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return " ".join((done.stdout or done.stderr).split())[:120]


def _ask_nvml(index: int) -> tuple[NvmlFacts | None, str]:
    try:
        import pynvml
    except ImportError:
        return None, "the package nvidia-ml-py is not installed"
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        return None, str(error)
    try:
        handle = _handle_of(pynvml, os.environ.get("CUDA_VISIBLE_DEVICES"), index)
        modes = {
            pynvml.NVML_COMPUTEMODE_DEFAULT: "default",
            pynvml.NVML_COMPUTEMODE_EXCLUSIVE_THREAD: "exclusive thread",
            pynvml.NVML_COMPUTEMODE_PROHIBITED: "prohibited",
            pynvml.NVML_COMPUTEMODE_EXCLUSIVE_PROCESS: "exclusive process",
        }
        return NvmlFacts(
            driver=_text(pynvml.nvmlSystemGetDriverVersion()),
            gpu=_text(pynvml.nvmlDeviceGetName(handle)),
            uuid=_text(pynvml.nvmlDeviceGetUUID(handle)),
            total_bytes=int(pynvml.nvmlDeviceGetMemoryInfo(handle).total),
            compute_mode=modes.get(pynvml.nvmlDeviceGetComputeMode(handle), "unknown"),
            mig=_mig(pynvml, handle),
        ), ""
    except (pynvml.NVMLError, IndexError, ValueError) as error:
        return None, str(error)
    finally:
        pynvml.nvmlShutdown()


def _handle_of(pynvml: Any, visible: str | None, index: int) -> Any:
    """CUDA numbers the GPUs that CUDA_VISIBLE_DEVICES lets it see, NVML all of them."""
    name = visible.split(",")[index].strip() if visible else str(index)
    if name.isdigit():
        return pynvml.nvmlDeviceGetHandleByIndex(int(name))
    return pynvml.nvmlDeviceGetHandleByUUID(name)


def _mig(pynvml: Any, handle: Any) -> str:
    try:
        current, _pending = pynvml.nvmlDeviceGetMigMode(handle)
    except pynvml.NVMLError:  # not supported, on GPUs that have none
        return "not available"
    return "on" if current else "off"


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
