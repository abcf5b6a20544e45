"""The fake GPU where it differs from a wish: faults on purpose, real processes, and MPS or not."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from colocate.device.cuda.atoms import split_into_atoms
from colocate.device.cuda.backend import FakeBackend
from colocate.device.cuda.driver import (
    ILLEGAL_ADDRESS,
    INVALID_CONTEXT,
    INVALID_DEVICE,
    INVALID_HANDLE,
    INVALID_VALUE,
    MPS_CLIENT_TERMINATED,
    MPS_SERVER_NOT_READY,
    OUT_OF_MEMORY,
    CudaError,
)
from colocate.device.cuda.fake import FakeDriver, FakeGroup
from colocate.device.cuda.fake_memory import GRANULARITY
from colocate.device.cuda.fake_mps import FakeDaemon
from colocate.errors import InvariantError
from tests.limits import LIMIT_S


@pytest.fixture
def driver() -> Iterator[FakeDriver]:
    driver = FakeDriver(is_mps_client=True)
    driver.retain_primary(0)
    yield driver
    driver.close()


def code_of(error: pytest.ExceptionInfo[CudaError]) -> int:
    return error.value.code


def test_independent_splits_overlap_and_equal_ones_are_equal_in_every_process(driver: FakeDriver) -> None:
    eights, remainder = driver.split(0, 8)
    sixteens, _ = driver.split(0, 16)
    again, _ = FakeDriver().split(0, 8)
    sms = [[set(group.sm_ids) for group in groups if isinstance(group, FakeGroup)] for groups in (eights, again)]
    assert sms[0] == sms[1]
    assert remainder is not None and remainder.num_sms == 4
    second = sixteens[0]
    assert isinstance(second, FakeGroup)
    assert any(group & set(second.sm_ids) for group in sms[0])
    assert set(second.sm_ids) != set(range(16)), "numbers of a group are not in a row"


@pytest.mark.parametrize("num_sms", [132, 114, 20, 8])
def test_any_size_of_device_splits_into_disjoint_atoms(num_sms: int) -> None:
    driver = FakeDriver(num_sms)
    atoms = split_into_atoms(driver, 0, 8, num_sms)
    seen = [sm for group in atoms.of(range(num_sms)) if isinstance(group, FakeGroup) for sm in group.sm_ids]
    assert sorted(seen) == list(range(num_sms))


def test_without_a_context_only_what_needs_none_works() -> None:
    driver = FakeDriver()
    assert driver.facts(0).free_bytes == 0, "nothing is known of it"
    handle = driver.create(0, GRANULARITY)
    os.close(driver.export(handle))
    groups, _ = driver.split(0, 8)
    for call in (
        lambda: driver.make_green(0, groups[:1]),
        lambda: driver.map(0, handle, GRANULARITY, writable=True),
        lambda: driver.allocate(64),
        driver.synchronize,
    ):
        with pytest.raises(CudaError) as caught:
            call()
        assert code_of(caught) == INVALID_CONTEXT
    with pytest.raises(CudaError) as caught:
        driver.facts(1)
    assert code_of(caught) == INVALID_DEVICE


def test_an_injected_failure_happens_once_and_when_it_was_asked_for(driver: FakeDriver) -> None:
    driver.fail("create", OUT_OF_MEMORY, after=2)
    handles = [driver.create(0, GRANULARITY) for _ in range(2)]
    with pytest.raises(CudaError, match=r"cuMemCreate: CUDA_ERROR_OUT_OF_MEMORY \(2\)"):
        driver.create(0, GRANULARITY)
    handles.append(driver.create(0, GRANULARITY))
    for handle in handles:
        driver.release(handle)
    assert not any(driver.leaks().values())
    with pytest.raises(InvariantError, match="has no call 'creat'"):
        driver.fail("creat", 1)


def test_after_a_fatal_fault_every_call_and_every_mark_raises(driver: FakeDriver) -> None:
    backend = FakeBackend(driver)
    groups, _ = driver.split(0, 8)
    lane = backend.lane(driver.make_green(0, groups[:1]))
    mark = lane.mark()
    graph = lane.capture(lambda: None)
    assert mark.is_done()
    driver.fault()
    for call in (mark.is_done, mark.wait, graph.replay, lane.mark, lane.use, driver.synchronize):
        with pytest.raises(CudaError) as caught:
            call()
        assert code_of(caught) == ILLEGAL_ADDRESS and caught.value.is_fatal


def test_a_kernel_that_writes_where_nothing_is_mapped_poisons_the_process(driver: FakeDriver) -> None:
    buffer = driver.device_buffer(4096)
    kernel = driver.load(b"smid_probe", "smid_probe")
    with pytest.raises(CudaError) as caught:
        kernel.launch(0, 4, 1024, [("ptr", 0x10), ("ptr", buffer), ("ptr", buffer), ("u64", 1)])
    assert code_of(caught) == ILLEGAL_ADDRESS
    with pytest.raises(CudaError):
        driver.read(buffer, 4)


def test_nothing_is_destroyed_freed_or_released_twice(driver: FakeDriver) -> None:
    groups, _ = driver.split(0, 8)
    green = driver.make_green(0, groups[:2])
    driver.destroy_green(green)
    with pytest.raises(CudaError) as caught:
        driver.destroy_green(green)
    assert code_of(caught) == INVALID_HANDLE
    kernel = driver.load(b"smid_probe", "smid_probe")
    with pytest.raises(CudaError) as caught:
        kernel.launch(green.stream, 1, 32, [])
    assert code_of(caught) == INVALID_HANDLE
    buffer, handle = driver.allocate(64), driver.create(0, GRANULARITY)
    mapped = driver.map(0, handle, GRANULARITY, writable=True)
    driver.free(buffer)
    driver.unmap(mapped, GRANULARITY)
    driver.release(handle)
    for call in (
        lambda: driver.free(buffer),
        lambda: driver.unmap(mapped, GRANULARITY),
        lambda: driver.release(handle),
        lambda: driver.export(handle),
    ):
        with pytest.raises(CudaError) as caught:
            call()
        assert code_of(caught) == INVALID_VALUE
    assert not any(driver.leaks().values())


def test_memory_is_taken_until_its_last_user_goes() -> None:
    driver = FakeDriver(total_bytes=2 * GRANULARITY)
    driver.retain_primary(0)
    handle = driver.create(0, 2 * GRANULARITY)
    mapped = driver.map(0, handle, 2 * GRANULARITY, writable=True)
    driver.release(handle)
    assert driver.facts(0).free_bytes == 0
    with pytest.raises(CudaError) as caught:
        driver.create(0, GRANULARITY)
    assert code_of(caught) == OUT_OF_MEMORY
    driver.unmap(mapped, 2 * GRANULARITY)
    driver.release(driver.create(0, GRANULARITY))


def test_tensors_are_views_of_mapped_memory(driver: FakeDriver) -> None:
    torch = pytest.importorskip("torch")
    backend = FakeBackend(driver)
    handle = driver.create(0, GRANULARITY)
    writable = driver.map(0, handle, GRANULARITY, writable=True)
    readable = driver.map(0, handle, GRANULARITY, writable=False)
    backend.tensor(writable, GRANULARITY).view(torch.float32).fill_(1.5)
    seen = backend.tensor(readable + 64, 64)
    assert seen.data_ptr() == readable + 64
    assert seen.view(torch.float32).tolist() == [1.5] * 16
    with pytest.raises(CudaError):
        backend.tensor(writable, GRANULARITY + 1)
    driver.unmap(readable, GRANULARITY)
    with pytest.raises(CudaError):
        backend.tensor(readable, 64)
    assert backend.pinned((2, 3), torch.int32).shape == (2, 3)


def run_python(code: str, **keywords: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=False, **keywords)  # type: ignore[call-overload]


def test_a_write_through_a_read_only_mapping_ends_the_process() -> None:
    done = run_python(
        "import ctypes\n"
        "from colocate.device.cuda.fake import FakeDriver\n"
        "driver = FakeDriver(); driver.retain_primary(0)\n"
        "address = driver.map(0, driver.create(0, 1 << 21), 1 << 21, writable=False)\n"
        "print(ctypes.string_at(address, 4), flush=True)\n"
        "ctypes.memset(address, 1, 1)\n"
    )
    assert done.stdout.strip() == str(bytes(4))
    assert done.returncode == -signal.SIGSEGV


def test_memory_of_a_killed_process_lives_in_whoever_mapped_it(driver: FakeDriver) -> None:
    ours, theirs = socket.socketpair()
    code = (
        "import socket, sys\n"
        "from colocate.device.cuda.fake import FakeDriver\n"
        "driver = FakeDriver(); handle = driver.create(0, 1 << 21)\n"
        "line = socket.socket(fileno=int(sys.argv[1]))\n"
        "socket.send_fds(line, [b'x'], [driver.export(handle)])\n"
        "line.recv(1)\n"
    )
    keeper = subprocess.Popen([sys.executable, "-c", code, str(theirs.fileno())], pass_fds=[theirs.fileno()])
    theirs.close()
    try:
        _, fds, _, _ = socket.recv_fds(ours, 1, 1)
        handle = driver.import_(fds[0])
        os.close(fds[0])
    finally:
        keeper.kill()
        keeper.wait()
        ours.close()
    address = driver.map(0, handle, 1 << 21, writable=True)
    driver.clear(address, 1 << 21)
    assert driver.read(address, 4) == bytes(4)


def test_legacy_sharing_ends_with_the_process_that_shares(driver: FakeDriver) -> None:
    backend = FakeBackend(driver)
    code = (
        "import ctypes, sys\n"
        "from colocate.device.cuda.fake import FakeDriver\n"
        "driver = FakeDriver(); driver.retain_primary(0)\n"
        "address = driver.allocate(4096); ctypes.memset(address, 7, 4096)\n"
        "print(driver.ipc_handle(address).hex(), flush=True)\n"
        "sys.stdin.read()\n"
    )
    exporter = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert exporter.stdin is not None and exporter.stdout is not None
    try:
        handle = bytes.fromhex(exporter.stdout.readline())
        address = driver.open_ipc(handle)
        assert driver.read(address, 4) == b"\7" * 4
        backend.tensor(address, 16)
    finally:
        exporter.kill()
        exporter.wait()
        exporter.stdin.close()
        exporter.stdout.close()
    with pytest.raises(CudaError):
        backend.tensor(address, 16)
    with pytest.raises(CudaError):
        driver.read(address, 4)
    with pytest.raises(CudaError) as caught:
        driver.open_ipc(handle)
    assert code_of(caught) == INVALID_HANDLE
    driver.close_ipc(address)
    own = driver.allocate(64)
    with pytest.raises(CudaError) as caught:
        driver.open_ipc(driver.ipc_handle(own))
    assert code_of(caught) == INVALID_CONTEXT, "not in the process that shares"


_BURN = """
import sys
from array import array
from colocate.device.cuda.fake import FakeDriver

driver = FakeDriver(is_mps_client=sys.argv[1] == "mps")
driver.retain_primary(0)
buffers = [driver.device_buffer(4096) for _ in range(4)]
kernel = driver.load(b"burn", "burn")
print("ready", flush=True)
sys.stdin.readline()
kernel.launch(0, 132, 256, [*(("ptr", buffer) for buffer in buffers), ("u32", 200_000)])
begin, end = (array("Q", driver.read(buffer, 8 * 132)) for buffer in buffers[1:3])
print(min(begin), max(end), flush=True)
"""


@pytest.mark.parametrize(("kind", "is_side_by_side"), [("mps", True), ("sliced", False)])
def test_two_processes_run_side_by_side_only_under_mps(kind: str, is_side_by_side: bool) -> None:
    alone_ns = 200_000 * 150
    processes = [
        subprocess.Popen([sys.executable, "-c", _BURN, kind], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    spans = []
    try:
        for process in processes:
            assert process.stdout is not None and process.stdout.readline() == "ready\n"
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        for process in processes:
            assert process.stdout is not None
            begin, end = map(int, process.stdout.readline().split())
            spans.append((begin, end))
    finally:
        for process in processes:
            process.communicate(timeout=LIMIT_S)
    if is_side_by_side:
        assert [end - begin for begin, end in spans] == [alone_ns] * 2
    else:
        assert max(end for _, end in spans) - min(begin for begin, _ in spans) >= 2 * alone_ns


@pytest.fixture
def daemon(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The fake MPS daemon as a process; its pipe directory is in the environment."""
    with tempfile.TemporaryDirectory(prefix="mps") as folder:
        monkeypatch.setenv("CUDA_MPS_PIPE_DIRECTORY", folder)
        environment = os.environ | {"CUDA_MPS_LOG_DIRECTORY": folder}
        daemon = subprocess.Popen([sys.executable, "-m", FakeDaemon.__module__, "-f"], env=environment)
        try:
            while not Path(folder, "control").is_socket() or command(folder, "get_server_list") is None:
                assert daemon.poll() is None
            yield Path(folder)
            command(folder, "quit")
            daemon.wait(LIMIT_S)
        finally:
            daemon.kill()
            daemon.wait()


def command(folder: str | Path, line: str) -> str | None:
    """None while nobody listens."""
    peer = socket.socket(socket.AF_UNIX)
    with peer:
        try:
            peer.connect(str(Path(folder, "control")))
        except OSError:
            return None
        peer.sendall(f"{line}\n".encode())
        return peer.makefile().read()


def test_a_process_with_a_context_is_a_client_until_it_is_terminated(daemon: Path) -> None:
    driver = FakeDriver()
    assert driver.facts(0).is_mps_client, "it would be"
    driver.retain_primary(0)
    assert driver.facts(0).is_mps_client
    (server,) = (command(daemon, "get_server_list") or "").split()
    assert (command(daemon, f"get_client_list {server}") or "").split() == [str(os.getpid())]
    command(daemon, f"terminate_client {server} {os.getpid()}")
    with pytest.raises(CudaError) as caught:
        driver.synchronize()
    assert code_of(caught) == MPS_CLIENT_TERMINATED and caught.value.is_fatal
    driver.close()


def test_a_server_in_its_fault_state_takes_no_new_client(daemon: Path) -> None:
    first, second = FakeDriver(), FakeDriver()
    first.retain_primary(0)
    command(daemon, "fake_fault")
    with pytest.raises(CudaError) as caught:
        second.retain_primary(0)
    assert code_of(caught) == MPS_SERVER_NOT_READY
    first.close()


def test_where_no_daemon_listens_the_process_runs_without_mps_in_silence(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CUDA_MPS_PIPE_DIRECTORY", str(tmp_path))
    driver = FakeDriver()
    driver.retain_primary(0)
    assert not driver.facts(0).is_mps_client
