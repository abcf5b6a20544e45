"""The MPS life cycle with real processes: manager, guard and a fake daemon that speaks the same protocol."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from colocate.config.serve import DeviceSection, SchedulerSection, ServeConfig
from colocate.device.cuda import fake_mps, mps_guard
from colocate.device.cuda.mps import NO_MPS_DIRECTORY, MpsManager, MpsTools, find_tools
from colocate.device.cuda.mps_guard import LOG, MAX_PIPE_PATH, PID_FILE, PIPE
from colocate.errors import ConfigError
from colocate.runtime.gpu_guard import MpsGuard, NothingToGuard, gpu_guard_for
from colocate.types import Role
from tests.daemon import eventually
from tests.limits import START_LIMIT_S


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    """Directories of a daemon go to `tmp_path/t`."""
    temporary = tmp_path / "t"
    temporary.mkdir()
    return {**os.environ, "COLOCATE_FAKE_CUDA": "1", "TMPDIR": _short(temporary)}


def _short(directory: Path) -> str:
    """A path to it that leaves room for sockets, whatever pytest calls its directories."""
    return f"/proc/{os.getpid()}/fd/{os.open(directory, os.O_RDONLY)}" if len(str(directory)) > 50 else str(directory)


@pytest.fixture
def manager(environ: dict[str, str]) -> Iterator[MpsManager]:
    manager = MpsManager(find_tools(environ), environ)
    manager.start()
    yield manager
    manager.quit()
    assert not os.listdir(environ["TMPDIR"])  # noqa: PTH208 - a path below /proc


def _pipe(manager: MpsManager) -> str:
    pipe = manager.environment_of_client()["CUDA_MPS_PIPE_DIRECTORY"]
    assert pipe is not None
    return pipe


def _server(manager: MpsManager) -> int:
    (server,) = manager.control.servers() or []
    return server


def _client(manager: MpsManager, pid: int | None = None) -> socket.socket:
    client = fake_mps.connect(_pipe(manager), pid)
    assert client is not None
    return client


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_started_it_is_private_and_ready(manager: MpsManager) -> None:
    pipe, log = Path(_pipe(manager)), Path(manager.environment_of_client()["CUDA_MPS_LOG_DIRECTORY"] or "")
    assert (pipe.name, log.name, pipe.parent) == (PIPE, LOG, log.parent)
    assert [path.stat().st_mode & 0o777 for path in (pipe.parent, pipe, log)] == [0o700] * 3
    assert len(str(pipe)) <= MAX_PIPE_PATH
    assert manager.is_alive and manager.health() is None
    assert _runs(_server(manager)), "before the first client: a server that starts refuses clients"


def test_quit_leaves_no_process_and_says_what_the_log_said(manager: MpsManager) -> None:
    server, directory = _server(manager), Path(_pipe(manager)).parent
    tail = manager.quit()
    assert "Start" in tail and "Exit" in tail
    assert not _runs(server) and not directory.exists()
    assert manager.health() == "the MPS daemon is gone"
    assert manager.quit() == "", "again is nothing"


def test_clients_are_listed_terminated_and_gone(manager: MpsManager) -> None:
    first, second = _client(manager, 11), _client(manager, 22)
    assert manager.control.clients(_server(manager)) == [11, 22]
    assert manager.control.server_of(22) == _server(manager)
    assert not manager.control.wait_gone(11, 0.1)
    assert manager.control.terminate_client(11)
    assert manager.control.wait_gone(11)
    assert not fake_mps.is_connected(first) and fake_mps.is_connected(second)
    assert manager.control.terminate_client(33), "who is no client has nothing to end"
    second.close()
    assert manager.control.wait_gone(22)


def test_a_fault_keeps_new_clients_out_until_the_old_are_gone(manager: MpsManager) -> None:
    old = _client(manager, 11)
    manager.control.ask("fake_fault")
    assert manager.health() == "the MPS server is in state FAULT"
    assert fake_mps.connect(_pipe(manager), 22) is None
    old.close()
    eventually(lambda: manager.health() is None, what="the server recovers")


def test_a_hung_daemon_is_noticed_and_still_ends(manager: MpsManager) -> None:
    server = _server(manager)
    manager.control.ask("fake_hang")
    assert manager.health() == "the MPS daemon does not answer"
    assert not manager.control.wait_gone(11, 0.1)
    manager.quit()
    assert not _runs(server)


def test_a_daemon_that_refuses_is_an_error_with_its_log(environ: dict[str, str]) -> None:
    environ["COLOCATE_FAKE_MPS"] = "refuse"
    with pytest.raises(ConfigError) as refusal:
        MpsManager(find_tools(environ), environ).start()
    assert "already running" in refusal.value.problem
    assert not os.listdir(environ["TMPDIR"])  # noqa: PTH208


def test_a_command_that_is_none_is_an_error(environ: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="/nowhere/nvidia-cuda-mps-control: No such file"):
        MpsManager(MpsTools(("/nowhere/nvidia-cuda-mps-control",)), environ).start()
    assert not os.listdir(environ["TMPDIR"])  # noqa: PTH208


def test_a_daemon_that_goes_to_the_background_is_followed(environ: dict[str, str], tmp_path: Path) -> None:
    tool = tmp_path / "control"
    shell = " ".join(fake_mps.COMMAND)
    number = f'"$CUDA_MPS_PIPE_DIRECTORY/{PID_FILE}"'
    tool.write_text(f'#!/bin/sh\nif [ "$1" != -f ]; then exec {shell}; fi\n{shell} -f &\necho $! > {number}\n')
    tool.chmod(0o755)
    manager = MpsManager(MpsTools((str(tool),)), environ)
    manager.start()
    server = _server(manager)
    assert manager.is_alive and manager.health() is None
    assert "Exit" in manager.quit()  # it was told to quit, not killed
    assert not _runs(server)
    assert not os.listdir(environ["TMPDIR"])  # noqa: PTH208


def test_settings_of_mps_in_the_environment_reach_nobody(environ: dict[str, str]) -> None:
    settings = {
        "CUDA_MPS_PROTOCOL_VERSION": "3",  # another set of commands
        "CUDA_MPS_PINNED_DEVICE_MEM_LIMIT": "0=1G",
        "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE": "100",
    }
    manager = MpsManager(find_tools(environ), {**environ, **settings})
    manager.start()
    try:
        variables = Path(f"/proc/{_parent(_server(manager))}/environ").read_text()
        assert not [name for name in settings if name in variables]
        assert {name: manager.environment_of_client()[name] for name in settings} == dict.fromkeys(settings)
    finally:
        manager.quit()


def test_a_daemon_that_dies_takes_its_server_and_guard_along(manager: MpsManager) -> None:
    server, directory = _server(manager), Path(_pipe(manager)).parent
    os.kill(_parent(server), signal.SIGKILL)
    eventually(lambda: not manager.is_alive, what="the guard ends")
    assert not _runs(server) and not directory.exists()


def _parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])


_HOLDER = """
import os, time
from colocate.device.cuda.mps import MpsManager, find_tools
manager = MpsManager(find_tools(os.environ), os.environ)
manager.start()
print(manager.environment_of_client()["CUDA_MPS_PIPE_DIRECTORY"], *manager.control.servers(), flush=True)
time.sleep(600)
"""


def test_a_killed_owner_leaves_nothing(environ: dict[str, str]) -> None:
    """SIGKILL gives it no chance to quit: the guard sees the end of its pipe."""
    holder = subprocess.Popen([sys.executable, "-c", _HOLDER], env=environ, stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    pipe, server = holder.stdout.readline().split()
    daemon = _parent(int(server))
    guard = _parent(daemon)
    holder.kill()
    holder.wait()
    holder.stdout.close()
    eventually(lambda: not any(_runs(pid) for pid in (int(server), daemon, guard)), what="all of it ends")
    assert not Path(pipe).parent.exists()


def test_a_terminated_guard_cleans_up(manager: MpsManager) -> None:
    server = _server(manager)
    guard = _parent(_parent(server))
    os.kill(guard, signal.SIGTERM)
    eventually(lambda: not manager.is_alive, what="the guard ends")
    assert not _runs(server)


# -- what the supervisor sees of it -------------------------------------------------------------------------------


@pytest.fixture
def guard(environ: dict[str, str]) -> Iterator[tuple[MpsGuard, MpsManager]]:
    manager = MpsManager(find_tools(environ), environ)
    guard = MpsGuard(manager, keeper_is_client=False)
    yield guard, manager
    guard.close()
    assert not os.listdir(environ["TMPDIR"])  # noqa: PTH208


def test_the_first_ensure_starts_and_the_next_finds_it(guard: tuple[MpsGuard, MpsManager]) -> None:
    gpu, manager = guard
    assert gpu.problem() is None, "nothing is missed before it was there"
    assert not gpu.ensure()
    server = _server(manager)
    assert not gpu.ensure() and _server(manager) == server


def test_workers_are_clients_and_others_are_not(guard: tuple[MpsGuard, MpsManager]) -> None:
    gpu, manager = guard
    gpu.ensure()
    for role in (Role.PREFILL, Role.DECODE):
        environment = gpu.environment(role)
        assert environment["CUDA_MPS_PIPE_DIRECTORY"] == _pipe(manager)
        assert int(environment["CUDA_DEVICE_MAX_CONNECTIONS"] or 0) >= 8
    for role in (Role.KEEPER, Role.ENGINE, Role.FRONTEND):
        assert gpu.environment(role) == {"CUDA_MPS_PIPE_DIRECTORY": NO_MPS_DIRECTORY}
    keeper_too = MpsGuard(manager, keeper_is_client=True)
    assert keeper_too.environment(Role.KEEPER)["CUDA_MPS_PIPE_DIRECTORY"] == _pipe(manager)


def test_a_worker_is_ended_before_the_kill_and_gone_after_it(guard: tuple[MpsGuard, MpsManager]) -> None:
    started, manager = guard
    started.ensure()
    client = _client(manager, 11)
    gpu = MpsGuard(manager, keeper_is_client=False, step_s=START_LIMIT_S)
    gpu.before_kill(11)
    assert not fake_mps.is_connected(client)
    assert gpu.after_reap(11)


def test_a_client_that_stays_is_not_gone(guard: tuple[MpsGuard, MpsManager]) -> None:
    gpu, manager = guard
    gpu.ensure()
    client = _client(manager, 11)
    assert not gpu.after_reap(11)
    client.close()
    assert gpu.after_reap(11)


def test_a_server_that_recovers_is_kept(guard: tuple[MpsGuard, MpsManager]) -> None:
    gpu, manager = guard
    gpu.ensure()
    server, client = _server(manager), _client(manager, 11)
    manager.control.ask("fake_fault")
    client.close()
    assert not gpu.ensure() and _server(manager) == server


@pytest.mark.parametrize("trouble", ["fake_broken", "fake_hang"])
def test_a_daemon_beyond_recovery_is_replaced(guard: tuple[MpsGuard, MpsManager], trouble: str) -> None:
    gpu, manager = guard
    gpu.ensure()
    old, pipe = _server(manager), _pipe(manager)
    manager.control.ask(trouble)
    assert gpu.ensure(), "replaced: who lives has lost its server"
    assert not _runs(old) and _pipe(manager) != pipe
    assert manager.health() is None


def test_a_dead_daemon_is_a_problem_until_it_is_replaced(guard: tuple[MpsGuard, MpsManager]) -> None:
    gpu, manager = guard
    gpu.ensure()
    os.kill(_parent(_server(manager)), signal.SIGKILL)
    eventually(lambda: gpu.problem(), what="the loss is noticed")
    gpu.before_kill(11)
    assert gpu.after_reap(11), "no daemon, no client"
    assert gpu.ensure() and gpu.problem() is None


def test_runs_that_need_no_mps_start_none() -> None:
    for device in (DeviceSection(single_process=True), DeviceSection()):
        for mode in ("chunked", "colocated"):
            config = ServeConfig(device=device, scheduler=SchedulerSection(mode=mode))  # type: ignore[arg-type]
            if mode == "chunked" or device.single_process:
                gpu = gpu_guard_for(config, "cuda")
                assert isinstance(gpu, NothingToGuard)
                assert gpu.environment(Role.HYBRID) == {"CUDA_MPS_PIPE_DIRECTORY": NO_MPS_DIRECTORY}
            assert gpu_guard_for(config, "emulated").environment(Role.PREFILL) == {}


def test_two_workers_on_a_gpu_need_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLOCATE_FAKE_CUDA", "1")
    assert isinstance(gpu_guard_for(ServeConfig(), "cuda"), MpsGuard)


def test_one_process_on_a_cpu_is_refused() -> None:
    with pytest.raises(ConfigError) as refusal:
        gpu_guard_for(ServeConfig(device=DeviceSection(single_process=True)), "cpu")
    assert refusal.value.where == "single_process"


def test_a_daemon_that_is_reaped_already_has_ended() -> None:
    """It may end before anybody looks; that is its own end, with its own log, and not an error of the guard's."""
    process = subprocess.Popen(["true"])
    process.wait()
    assert mps_guard._wait(process.pid) is False
