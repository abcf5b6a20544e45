"""The compute mode of a GPU: who may have a context on it. It is read and never changed."""

from __future__ import annotations

import os

from colocate.errors import ConfigError

_NAMES = {1: "EXCLUSIVE_THREAD", 2: "PROHIBITED", 3: "EXCLUSIVE_PROCESS"}


def check_compute_mode(index: int, mode: str | None, *, all_are_clients: bool) -> None:
    """Raises ConfigError where the processes of this run could not all have their contexts. `mode` as `compute_mode`
    says it.

    `all_are_clients`: every context of the run is an MPS client's; EXCLUSIVE_PROCESS allows that, because the server
    is one process. Otherwise the loader's context stands beside the workers'.
    """
    if mode is None or (mode == "EXCLUSIVE_PROCESS" and all_are_clients):
        return
    problem = f"GPU {index} is in compute mode {mode}, and this run needs contexts of more than one process"
    remedy = "have an administrator set it: nvidia-smi -c DEFAULT"
    if mode == "EXCLUSIVE_PROCESS":
        remedy += "; or make every context an MPS client's: two workers and --memory-transport ipc"
    raise ConfigError("compute mode", problem, remedy)


def compute_mode(index: int) -> str | None:
    """In NVML's words; None: the default, or not to be found out: NVML does not count as CUDA does where devices are
    hidden."""
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        return None
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception:  # no package, no library, no driver: whoever needs the GPU will say so better
        return None
    try:
        return _NAMES.get(int(pynvml.nvmlDeviceGetComputeMode(pynvml.nvmlDeviceGetHandleByIndex(index))))
    except pynvml.NVMLError:
        return None
    finally:
        pynvml.nvmlShutdown()
