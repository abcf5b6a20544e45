"""Checks that look at what is installed and set: pure functions of what was found."""

from __future__ import annotations

from colocate.config.sizes import format_size
from colocate.device.cuda.proof.check import Check, CheckSpec, Group
from colocate.device.cuda.proof.found import Found

DRIVER = CheckSpec("driver", "driver speaks a CUDA that has green contexts", Group.ENVIRONMENT)
PACKAGES = CheckSpec("packages", "packages of the CUDA backend", Group.ENVIRONMENT)
GPU_MODE = CheckSpec("gpu_mode", "compute mode and MIG, as found", Group.ENVIRONMENT)
MPS_INSTALLED = CheckSpec("mps_installed", "MPS programs", Group.ENVIRONMENT)
VARIABLES = CheckSpec("variables", "no CUDA variable breaks the partition", Group.ENVIRONMENT)

# cuGreenCtxCreate came with CUDA 12.4.
_LEAST_API = 12040
_NEEDED = ("cuda-bindings", "nvidia-cuda-nvrtc", "triton", "torch")
_INSTALL = "pip install 'colocate[cuda]'"


def check_environment(found: Found) -> list[Check]:
    return [
        check_driver(found),
        check_packages(found),
        check_gpu_mode(found),
        check_mps_installed(found),
        check_variables(found),
    ]


def check_driver(found: Found) -> Check:
    data = {"api_version": found.api_version, "driver": found.nvml.driver if found.nvml else ""}
    if found.is_fake:
        return DRIVER.passed("the fake driver of this package (COLOCATE_FAKE_CUDA=1): nothing is proven of a GPU")
    if not found.api_version:
        return DRIVER.failed(
            "libcuda.so.1 cannot be loaded", "install the NVIDIA driver, or pass it into this container", **data
        )
    version = f"CUDA {_dotted(found.api_version)}" + (f", driver {found.nvml.driver}" if found.nvml else "")
    torch_api = _api_of(found.torch_cuda)
    # A torch of the same major version runs on an older minor one (CUDA's minor version compatibility).
    if found.api_version < _LEAST_API or found.api_version // 1000 < torch_api // 1000:
        least = max(_LEAST_API, torch_api // 1000 * 1000)
        return DRIVER.failed(version, f"install a driver of CUDA {_dotted(least)} or newer", **data)
    return DRIVER.passed(version, **data)


def check_packages(found: Found) -> Check:
    data = {"packages": dict(found.packages), "torch_cuda": found.torch_cuda}
    text = ", ".join(f"{name} {version}" for name, version in found.packages.items())
    missing = [name for name in _NEEDED if name not in found.packages]
    if missing:
        return PACKAGES.failed(f"missing: {', '.join(missing)}", _INSTALL, **data)
    if not found.torch_cuda and not found.is_fake:
        return PACKAGES.failed(
            f"torch {found.packages['torch']} is built without CUDA", "install torch's CUDA build", **data
        )
    return PACKAGES.passed(f"{text}; torch for CUDA {found.torch_cuda or 'none'}", **data)


def check_gpu_mode(found: Found) -> Check:
    if found.is_fake:
        return GPU_MODE.untestable("the fake driver has no modes")
    if found.nvml is None:
        return GPU_MODE.untestable(f"NVML does not answer: {found.nvml_problem}", "pip install nvidia-ml-py")
    nvml = found.nvml
    data = {"compute_mode": nvml.compute_mode, "mig": nvml.mig, "gpu": nvml.gpu, "uuid": nvml.uuid}
    detail = f"{nvml.gpu}, {format_size(nvml.total_bytes)}; compute mode {nvml.compute_mode}, MIG {nvml.mig}"
    if nvml.compute_mode == "prohibited":
        remedy = "the owner of the machine can allow it: nvidia-smi -c DEFAULT (colocate never changes it)"
        return GPU_MODE.failed(detail, remedy, **data)
    return GPU_MODE.passed(detail, **data)


def check_mps_installed(found: Found) -> Check:
    if found.is_fake:
        return MPS_INSTALLED.passed("not needed by the fake driver")
    mps = found.mps
    if mps.problem is not None:
        return MPS_INSTALLED.failed(mps.problem.problem, mps.problem.remedy)
    return MPS_INSTALLED.passed(mps.version or mps.command[0], command=list(mps.command), version=mps.version)


def check_variables(found: Found) -> Check:
    data = {"variables": dict(found.variables)}
    if found.variables_problem is not None:
        error = found.variables_problem
        return VARIABLES.failed(f"{error.where} {error.problem}", error.remedy, **data)
    if found.variables.get("CUDA_LAUNCH_BLOCKING", "0") not in ("", "0"):
        problem = "CUDA_LAUNCH_BLOCKING is set: every launch waits for its kernel"
        return VARIABLES.failed(problem, "unset CUDA_LAUNCH_BLOCKING", **data)
    return VARIABLES.passed(", ".join(f"{name}={value}" for name, value in found.variables.items()) or "none", **data)


def _dotted(api_version: int) -> str:
    return f"{api_version // 1000}.{api_version % 1000 // 10}"


def _api_of(dotted: str) -> int:
    major, _, minor = dotted.partition(".")
    return int(major) * 1000 + int(minor.partition(".")[0] or 0) * 10 if major.isdigit() else 0
