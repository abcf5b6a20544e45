"""What the supervisor knows of a GPU without touching it: asked of a short-lived process, and of NVML.

A process with a CUDA context takes memory on the GPU, and dies with its MPS neighbours; the supervisor has none.
"""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import msgspec

from colocate.device.cuda.backend import is_fake_chosen
from colocate.device.cuda.driver import GpuFacts
from colocate.device.cuda.facts_probe import Answer
from colocate.device.cuda.mps import environment_without_mps
from colocate.device.gpu_probe import probe_gpu
from colocate.errors import ConfigError

_TIMEOUT_S = 60.0
_NEEDED = {"triton": "triton", "cuda": "cuda-python", "pynvml": "nvidia-ml-py"}  # module: package
_ELSE = "or use --device cpu"
_SEE = f"see colocate doctor, {_ELSE}"


def ask_gpu(index: int) -> GpuFacts:
    """Raises ConfigError that says what is missing, from the PCI bus up to this package's requirements."""
    if not is_fake_chosen():
        _check_machine(index)
    facts = _ask_process(index)
    return replace(facts, free_bytes=facts.total_bytes if is_fake_chosen() else _free_bytes(facts.uuid))


def _check_machine(index: int) -> None:
    gpu = probe_gpu()
    if gpu.problem:
        raise ConfigError("device", gpu.problem, "use --device cpu, or --device auto")
    if index >= len(gpu.names):
        raise ConfigError("gpu", f"is {index}, this machine has {len(gpu.names)} GPU(s)", "count from 0")
    missing = [package for module, package in _NEEDED.items() if find_spec(module) is None]
    if missing:
        raise ConfigError("device", f"not installed: {', '.join(missing)}", f"install colocate[cuda], {_ELSE}")
    problem = _torch_problem()
    if problem:
        raise ConfigError("device", problem, f"install the CUDA build of torch, {_ELSE}")


def _torch_problem() -> str:
    """Read from torch's own version file: to import torch takes seconds."""
    spec = find_spec("torch")
    if spec is None or spec.origin is None:
        return "torch is not installed"
    version = runpy.run_path(str(Path(spec.origin).parent / "version.py"))
    return "" if version.get("cuda") else f"torch {version.get('__version__')} was built without CUDA"


def _ask_process(index: int) -> GpuFacts:
    command = [sys.executable, "-m", "colocate.device.cuda.facts_probe", str(index)]
    try:
        done = subprocess.run(command, capture_output=True, timeout=_TIMEOUT_S, check=True, env=_environment())
        answer = msgspec.json.decode(done.stdout, type=Answer)
    except subprocess.CalledProcessError as error:
        lines = error.stderr.decode(errors="replace").strip().splitlines()
        raise ConfigError("device", f"the GPU cannot be asked: {lines[-1] if lines else error}", _SEE) from None
    except (subprocess.SubprocessError, OSError, msgspec.DecodeError) as error:
        raise ConfigError("device", f"the GPU cannot be asked: {error}", _SEE) from None
    if answer.facts is None:
        raise ConfigError("device", answer.problem, answer.remedy or _SEE)
    return answer.facts


def _environment() -> dict[str, str]:
    changes = environment_without_mps()
    kept = {name: value for name, value in os.environ.items() if name not in changes}
    return kept | {name: value for name, value in changes.items() if value is not None}


def _free_bytes(uuid: str) -> int:
    """NVML numbers GPUs in its own order: only the UUID is the same everywhere."""
    import pynvml

    try:
        pynvml.nvmlInit()
        try:
            return int(pynvml.nvmlDeviceGetMemoryInfo(pynvml.nvmlDeviceGetHandleByUUID(uuid)).free)
        finally:
            pynvml.nvmlShutdown()
    except pynvml.NVMLError as error:
        raise ConfigError("device", f"NVML does not tell how much memory is free: {error}", _SEE) from None
