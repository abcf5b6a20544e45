"""How answers of an MPS daemon are read, and what environment is refused."""

from __future__ import annotations

import stat
import sys
from pathlib import Path

import pytest

from colocate.device.cuda.compute_mode import check_compute_mode
from colocate.device.cuda.driver import GpuFacts
from colocate.device.cuda.mps import (
    CONTROL,
    NO_MPS_DIRECTORY,
    SERVER,
    MpsManager,
    MpsTools,
    assert_mps_client,
    check_environment,
    environment_without_mps,
    find_tools,
)
from colocate.device.cuda.mps_control import MpsControl, pids_in
from colocate.errors import ConfigError


@pytest.mark.parametrize(
    ("answer", "pids"),
    [
        ("", []),
        ("4711\n", [4711]),
        ("  4711\n4712 \n\n", [4711, 4712]),
        ("Server 99 not found\n", []),
        ("4711 GPU-1f2e 0.5\n", [4711]),
        ("garbage\0\n12x\n", []),
    ],
)
def test_lists_are_the_lines_that_begin_with_a_number(answer: str, pids: list[int]) -> None:
    assert pids_in(answer) == pids


def _tool(folder: Path, name: str, script: str) -> str:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


@pytest.mark.parametrize(
    ("script", "answer"),
    [
        ("read line; echo you said $line", "you said get_server_list\n"),
        ("echo Cannot find MPS control daemon process; exit 1", None),
        ("echo Cannot find MPS control daemon process", None),
        ("exit 1", None),
        ("exec sleep 60", None),
    ],
)
def test_no_answer_is_told_from_an_empty_one(tmp_path: Path, script: str, answer: str | None) -> None:
    control = MpsControl([_tool(tmp_path, "control", script)], {"PATH": "/usr/bin:/bin"})
    assert control.ask("get_server_list", 0.5) == answer


def test_a_daemon_that_is_not_there_is_no_answer(tmp_path: Path) -> None:
    control = MpsControl([str(tmp_path / "nothing")], {})
    assert control.servers() is None
    assert control.clients(1) is None
    assert control.server_of(1) is None
    assert control.server_state(1) is None
    assert not control.wait_gone(1, 0.05), "nobody said that it is gone"


@pytest.mark.parametrize(
    ("said", "state"),
    [
        ("ACTIVE", None),
        ("Server status: FAULT", "FAULT"),
        ("server is initializing", "INITIALIZING"),
        ("states are ACTIVE, INITIALIZING and FAULT", None),
        ("who knows", None),
        ("", None),
    ],
)
def test_only_a_known_word_makes_a_server_unhealthy(tmp_path: Path, said: str, state: str | None) -> None:
    control = MpsControl([_tool(tmp_path, "control", f"echo '{said}'")], {"PATH": "/usr/bin:/bin"})
    assert control.server_state(1) == state


def test_tools_are_found_together_or_refused(tmp_path: Path) -> None:
    environ = {"PATH": str(tmp_path)}
    _tool(tmp_path, CONTROL, "")
    with pytest.raises(ConfigError) as refusal:
        find_tools(environ)
    assert SERVER in refusal.value.problem and "--single-process" in refusal.value.remedy
    _tool(tmp_path, SERVER, "")
    assert find_tools(environ) == MpsTools((str(tmp_path / CONTROL),), str(tmp_path))


def test_the_fake_driver_has_a_fake_daemon(tmp_path: Path) -> None:
    tools = find_tools({"PATH": str(tmp_path), "COLOCATE_FAKE_CUDA": "1"})
    assert tools.command[0] == sys.executable and tools.folder == ""


@pytest.mark.parametrize("percentage", ["50", "99.9", "0", "many", ""])
def test_a_percentage_below_100_is_refused(percentage: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        check_environment({"CUDA_MPS_ACTIVE_THREAD_PERCENTAGE": percentage})
    assert refusal.value.where == "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE"


def test_all_of_the_device_is_no_restriction() -> None:
    check_environment({"CUDA_MPS_ACTIVE_THREAD_PERCENTAGE": "100"})


def test_somebody_else_s_daemon_is_not_used() -> None:
    with pytest.raises(ConfigError) as refusal:
        MpsManager(MpsTools(("true",)), {"CUDA_MPS_PIPE_DIRECTORY": "/tmp/nvidia-mps"})
    assert "/tmp/nvidia-mps" in refusal.value.problem and "unset" in refusal.value.remedy


def test_who_is_no_client_finds_no_daemon_anywhere() -> None:
    assert environment_without_mps()["CUDA_MPS_PIPE_DIRECTORY"] == NO_MPS_DIRECTORY
    with pytest.raises(NotADirectoryError):
        Path(NO_MPS_DIRECTORY).mkdir(parents=True)


@pytest.mark.parametrize(
    ("mode", "all_are_clients", "is_refused"),
    [
        (None, False, False),
        ("EXCLUSIVE_PROCESS", True, False),
        ("EXCLUSIVE_PROCESS", False, True),
        ("EXCLUSIVE_THREAD", True, True),
        ("PROHIBITED", True, True),
    ],
)
def test_a_compute_mode_is_refused_and_not_changed(mode: str | None, all_are_clients: bool, is_refused: bool) -> None:
    if not is_refused:
        check_compute_mode(0, mode, all_are_clients=all_are_clients)
        return
    with pytest.raises(ConfigError) as refusal:
        check_compute_mode(0, mode, all_are_clients=all_are_clients)
    assert mode is not None and mode in refusal.value.problem and "nvidia-smi -c DEFAULT" in refusal.value.remedy


def _facts(is_mps_client: bool) -> GpuFacts:
    return GpuFacts(0, "a GPU", "GPU-0", 13000, (9, 0), 132, 8, 8, 1 << 37, 0, 1 << 25, is_mps_client)


def test_a_worker_outside_mps_stops() -> None:
    assert_mps_client(_facts(True))
    with pytest.raises(ConfigError) as refusal:
        assert_mps_client(_facts(False))
    assert refusal.value.where == "mps" and "--single-process" in refusal.value.remedy
