"""The keeper's memory on a real GPU: filled, checked, mapped once, and alive when the keeper is not."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from colocate.config.serve import MemoryTransport
from colocate.device.cuda.backend import Backend, open_backend
from colocate.device.cuda.nvml import check_one_copy
from colocate.device.gpu_probe import probe_gpu
from colocate.model.config import load_model_config
from colocate.model.layout import KVLayout
from colocate.worker.cuda.attach import CudaMemory, attach_cuda
from colocate.worker.cuda.loader import read_back
from colocate.worker.cuda.memory_facts import memory_facts
from tests.cuda_keeper import DEMO, KeeperUnderTest, gpu_facts, keeper_process

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not probe_gpu().names or os.environ.get("COLOCATE_FAKE_CUDA") == "1", reason="no GPU"),
]

_POOL_BYTES = 2 << 30  # large against what other programs may do meanwhile
NUM_BLOCKS = _POOL_BYTES // KVLayout(load_model_config(DEMO), "bfloat16", 1, 16).nbytes


@pytest.fixture(scope="module")
def backend() -> Backend:
    return open_backend()


@pytest.fixture(params=["vmm", "ipc"])
def keeper(request: pytest.FixtureRequest) -> Iterator[KeeperUnderTest]:
    transport: MemoryTransport = request.param
    with keeper_process(gpu_facts(num_blocks=NUM_BLOCKS), transport=transport, is_fake=False) as running:
        running.ready()
        yield running


def test_weights_arrive_whole_and_both_segments_are_mapped_not_copied(
    keeper: KeeperUnderTest, backend: Backend
) -> None:
    uuid = backend.driver.facts(0).uuid
    attached: list[CudaMemory] = []
    check = check_one_copy(uuid, _POOL_BYTES, lambda: attached.append(attach_cuda(keeper.spec, backend)))
    (memory,) = attached
    assert read_back(backend, memory.weights) == memory.weights_crc32
    assert not memory.kv.any()
    memory.kv[:4] = 9
    second = attach_cuda(keeper.spec, backend)
    backend.driver.synchronize()
    assert second.kv[:4].tolist() == [9] * 4
    assert check is not None and check.is_shared, check
    facts = memory_facts(backend, 0, memory)
    assert int(facts["device_used_bytes"]) > _POOL_BYTES
    second.close()
    memory.close()


def test_memory_outlives_a_killed_keeper(backend: Backend) -> None:
    with keeper_process(gpu_facts(num_blocks=NUM_BLOCKS), is_fake=False) as running:
        running.ready()
        memory = attach_cuda(running.spec, backend)
        running.process.kill()
        running.process.wait()
        assert read_back(backend, memory.weights) == memory.weights_crc32
        memory.kv[:4] = 9
        assert memory.kv[:4].tolist() == [9] * 4
        memory.close()
