"""The keeper of a GPU's memory, its loader and its clients: real processes over the fake GPU."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
import torch

from colocate.config.serve import ModelConfigSection
from colocate.device.cuda.backend import FakeBackend
from colocate.device.cuda.driver import CudaError
from colocate.device.cuda.fake import FakeDriver
from colocate.device.cuda.memory import Ticket, VmmTransport, open_transport
from colocate.errors import ChannelClosed, ConfigError
from colocate.model.config import load_model_config
from colocate.model.layout import KVLayout, WeightLayout
from colocate.model.llama import map_kv, map_weights
from colocate.model.loader import HostMemory, load_weights
from colocate.worker.cuda.loader import read_back
from colocate.worker.segments import SegmentEntry, SegmentTable, connect_to, receive_segments, send_table
from tests.checkpoints import make_checkpoint
from tests.cuda_keeper import DEMO, NUM_BLOCKS, KeeperUnderTest, children_of, gpu_facts, keeper_process
from tests.daemon import eventually
from tests.limits import LIMIT_S

CONFIG = load_model_config(DEMO)
LAYOUT = WeightLayout.of(CONFIG, "bfloat16")


@pytest.fixture(scope="module")
def keeper() -> Iterator[KeeperUnderTest]:
    with keeper_process() as running:
        running.ready()
        yield running


@pytest.fixture(scope="module")
def host_weights() -> bytes:
    """As the CPU's keeper would load them."""
    buffer = bytearray(LAYOUT.nbytes)
    load_weights(DEMO, CONFIG, LAYOUT, HostMemory(memoryview(buffer)), lambda done, total: None)
    return bytes(buffer)


def test_a_worker_maps_what_the_checkpoint_holds(keeper: KeeperUnderTest, host_weights: bytes) -> None:
    memory = keeper.attach()
    assert memory.weights.numpy().tobytes() == host_weights
    assert memory.weights_crc32 == zlib.crc32(host_weights)
    assert read_back(FakeBackend(FakeDriver()), memory.weights) == memory.weights_crc32
    assert set(map_weights(LAYOUT, memory.weights)) == {entry.name for entry in LAYOUT.entries}
    pool = map_kv(KVLayout(CONFIG, "bfloat16", NUM_BLOCKS, 16), memory.kv)
    assert not pool.any(), "blocks nobody has written hold zeros"
    assert memory.mapped_bytes >= memory.weights.numel() + memory.kv.numel()
    memory.close()
    memory.close()


def test_workers_see_each_others_kv(keeper: KeeperUnderTest) -> None:
    first, second = keeper.attach(), keeper.attach()
    first.kv[4096:4099] = torch.tensor([1, 2, 3], dtype=torch.uint8)
    assert second.kv[4096:4099].tolist() == [1, 2, 3]
    first.kv[4096:4099] = 0
    first.close()
    second.close()


def test_the_keeper_has_no_torch_and_the_loader_is_gone(keeper: KeeperUnderTest) -> None:
    maps = Path(f"/proc/{keeper.process.pid}/maps").read_text()
    assert "libtorch" not in maps and "libc.so" in maps
    assert children_of(keeper.process.pid) == []


def test_descriptors_do_not_pile_up_in_the_keeper(keeper: KeeperUnderTest) -> None:
    def count() -> int:
        return len(list(Path(f"/proc/{keeper.process.pid}/fd").iterdir()))

    keeper.attach().close()
    before = count()
    for _ in range(10):
        keeper.attach().close()
    # one more client: its answer comes after the ten before it were closed
    keeper.attach().close()
    eventually(lambda: count() <= before, what="closed descriptors")


_WRITE_WEIGHTS = """
import sys, msgspec
from colocate.messages.spec import ProcessSpec
from colocate.device.cuda.backend import open_backend
from colocate.worker.cuda.attach import attach_cuda
spec = msgspec.msgpack.decode(sys.stdin.buffer.read(), type=ProcessSpec)
memory = attach_cuda(spec, open_backend())
what = getattr(memory, sys.argv[1])
print("attached", flush=True)
while True:
    what[:64] = 7
    print("written", flush=True)
"""


def writer(keeper: KeeperUnderTest, what: str) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        [sys.executable, "-c", _WRITE_WEIGHTS, what],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "COLOCATE_FAKE_CUDA": "1"},
    )
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(msgspec.msgpack.encode(keeper.spec))
    process.stdin.close()
    assert process.stdout.readline() == b"attached\n"
    return process


def test_a_write_to_the_weights_ends_the_writer_and_changes_nothing(
    keeper: KeeperUnderTest, host_weights: bytes
) -> None:
    with writer(keeper, "weights") as process:
        assert process.wait(LIMIT_S) == -signal.SIGSEGV
    memory = keeper.attach()
    assert memory.weights.numpy().tobytes() == host_weights
    memory.close()


def test_a_writer_killed_in_mid_write_leaves_the_memory_to_a_reader(keeper: KeeperUnderTest) -> None:
    reader = keeper.attach()
    with writer(keeper, "kv") as process:
        assert process.stdout is not None and process.stdout.readline() == b"written\n"
        process.kill()
    assert reader.kv[:64].tolist() == [7] * 64
    again = keeper.attach()
    assert again.kv[:64].tolist() == [7] * 64
    again.kv[:64] = 0
    reader.close()
    again.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become another user")
def test_another_user_gets_nothing(keeper: KeeperUnderTest) -> None:
    probe = (
        "import socket, sys\n"
        "peer = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)\n"
        "peer.settimeout(60)\n"
        "peer.connect(b'\\0' + sys.argv[1].encode())\n"
        "data, fds, _, _ = socket.recv_fds(peer, 4096, 8)\n"
        "print(len(data), len(fds))\n"
    )
    command = ["/usr/bin/env", "python3", "-c", probe, keeper.spec.keeper_address]
    done = subprocess.run(command, capture_output=True, text=True, user=65534, cwd="/")
    if done.returncode != 0 and "Permission denied" in done.stderr:
        pytest.skip("the other user may not run this interpreter")
    assert done.stdout.split() == ["0", "0"], done.stderr


def test_a_client_of_host_memory_is_told_what_this_is(keeper: KeeperUnderTest) -> None:
    with connect_to(keeper.spec.keeper_address) as peer, pytest.raises(ChannelClosed, match="'vmm' memory"):
        peer.settimeout(LIMIT_S)
        receive_segments(peer)


def test_a_segment_of_the_wrong_size_is_refused_and_its_descriptor_closed() -> None:
    driver = FakeDriver()
    driver.retain_primary(0)
    transport = VmmTransport(driver, 0)
    segment = transport.allocate("kv", 5 << 20)
    assert segment.reserved_bytes == 6 << 20
    good = transport.ticket(segment)
    with pytest.raises(CudaError):
        transport.map(Ticket("kv", good.num_bytes, 8 << 20, good.fd), writable=True)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(good.fd)
    assert driver.leaks()["handles"] == 1, "the keeper's own"
    transport.free(segment)
    assert set(driver.leaks().values()) == {0}


def test_a_table_without_its_descriptors_is_refused() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        send_table(theirs, SegmentTable("vmm", [SegmentEntry("kv", 1, 1)], 0), [])
        with pytest.raises(ChannelClosed, match="0 descriptors"):
            receive_segments(ours)


def test_what_is_mapped_outlives_a_killed_keeper(host_weights: bytes) -> None:
    with keeper_process() as running:
        running.ready()
        memory = running.attach()
        running.process.kill()
        running.process.wait()
        memory.kv[:3] = 1
        assert memory.weights.numpy().tobytes() == host_weights
        memory.close()


def test_ipc_hands_out_the_same_memory(host_weights: bytes) -> None:
    with keeper_process(transport="ipc") as running:
        assert running.ready().facts["transport"] == "ipc"
        first, second = running.attach(), running.attach()
        assert first.weights.numpy().tobytes() == host_weights
        first.kv[10:12] = 5
        assert second.kv[10:12].tolist() == [5, 5]
        first.close()
        second.close()


def test_no_other_transport_exists() -> None:
    with pytest.raises(Exception, match="no memory transport"):
        open_transport("carrier pigeon", FakeDriver(), 0)


def test_a_loader_dies_with_its_keeper() -> None:
    with keeper_process() as running:
        loader = running.loader_pid()
        running.process.kill()
        running.process.wait()
        eventually(lambda: not Path(f"/proc/{loader}").exists(), what="the loader's end")


def test_a_killed_loader_fails_the_start() -> None:
    with keeper_process() as running:
        os.kill(running.loader_pid(), signal.SIGKILL)
        failure = running.failed()
        assert not failure.operator and "weight loader ended with code -9" in failure.problem
        assert running.process.wait(LIMIT_S) == 1


def test_a_broken_checkpoint_is_refused_in_the_words_of_the_cpu(tmp_path: Path) -> None:
    make_checkpoint(tmp_path, "llama")
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    config = load_model_config(tmp_path)
    layout = WeightLayout.of(config, "float32")
    with pytest.raises(ConfigError) as caught:
        load_weights(
            tmp_path, config, layout, HostMemory(memoryview(bytearray(layout.nbytes))), lambda done, total: None
        )
    with keeper_process(gpu_facts(tmp_path, "float32")) as running:
        failure = running.failed()
        assert failure.operator
        said = (failure.where, failure.problem, failure.remedy)
        assert said == (caught.value.where, caught.value.problem, caught.value.remedy)
        assert running.process.wait(LIMIT_S) == 2


def test_a_gpu_that_is_too_full_is_refused_before_anything_is_loaded() -> None:
    with keeper_process(total_bytes=2 << 20) as running:
        failure = running.failed()
        assert failure.operator and failure.where == "gpu_memory_utilization"
        assert "--kv-memory" in failure.remedy
        assert running.process.wait(LIMIT_S) == 2


def test_dummy_weights_need_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((DEMO / "config.json").read_bytes())
    with keeper_process(gpu_facts(tmp_path), model=ModelConfigSection(load_format="dummy", seed=3)) as running:
        running.ready()
        memory = running.attach()
        weights = map_weights(LAYOUT, memory.weights)
        assert bool((weights["norm"] == 1).all())
        assert 0.015 < float(weights["embed"].float().std()) < 0.025
        memory.close()
