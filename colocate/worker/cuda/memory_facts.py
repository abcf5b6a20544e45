"""What a worker on a GPU has measured of its memory when it is ready: for `ChildReady.facts`, and so for the ledger."""

from __future__ import annotations

import os

from colocate.device.cuda.backend import Backend
from colocate.device.cuda.nvml import device_use
from colocate.worker.cuda.attach import CudaMemory


def memory_facts(
    backend: Backend, index: int, memory: CudaMemory, graph_bytes: int = 0
) -> dict[str, int | float | str]:
    """Sizes in bytes. `device_used_bytes` is of everybody on the GPU; `allocated_bytes` is the most that torch has
    taken from it in this process, graphs included; `nvml_bytes` is left out where NVML names no number for us. On the
    fake GPU nothing of it can be measured: it counts by process, and torch's memory is the host's."""
    gpu = backend.driver.facts(index)
    facts: dict[str, int | float | str] = {"gpu_uuid": gpu.uuid, "mapped_bytes": memory.mapped_bytes}
    if backend.is_fake:
        return facts
    import torch

    facts["device_used_bytes"] = gpu.total_bytes - gpu.free_bytes
    facts["allocated_bytes"] = torch.cuda.max_memory_reserved(backend.torch_device)
    facts["graph_bytes"] = graph_bytes
    use = device_use(gpu.uuid)
    own = None if use is None else use.processes.get(os.getpid())
    if own is not None:
        facts["nvml_bytes"] = own
    return facts
