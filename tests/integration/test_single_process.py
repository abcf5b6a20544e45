"""`--single-process`: both workers as threads of one process. Nobody outside can tell, but for the process table."""

from __future__ import annotations

import signal

import pytest

from tests.daemon import Daemon, start_daemon
from tests.streams import Stream, finished, wait_mid_stream

SLOW = ("--profile", "tests/data/slow_profile.yaml")
NUM_TOKENS = 50
WATCHED = ("--heartbeat-timeout-s", "1.5", "--progress-floor-s", "1.5", "--max-restarts", "20")


def _streams(daemon: Daemon) -> list[Stream]:
    return [Stream(daemon, number, max_tokens=NUM_TOKENS) for number in range(3)]


@pytest.fixture(scope="module")
def two_processes() -> list[list[int]]:
    """What the streams receive from a run of the usual kind."""
    with start_daemon(*SLOW) as daemon:
        return [finished(stream) for stream in _streams(daemon)]


def test_the_tokens_are_those_of_two_processes(two_processes: list[list[int]]) -> None:
    with start_daemon(*SLOW, "--single-process") as daemon:
        assert set(daemon.pids().values()) == {"supervisor", "gpu-owner", "keeper", "engine", "frontend"}
        assert [finished(stream) for stream in _streams(daemon)] == two_processes
        (worker,) = daemon.state()["workers"]
        assert (worker["role"], worker["pid"]) == ("gpu-owner", daemon.pid_of("gpu-owner"))
        daemon.wait_pool_whole()


def test_both_phases_follow_the_plan(two_processes: list[list[int]]) -> None:
    """Each acknowledges every switch on its own: a static plan is in force only when both have."""
    with start_daemon(*SLOW, "--single-process", "--plan", "static:p12d4") as daemon:
        assert [finished(stream) for stream in _streams(daemon)] == two_processes
        assert daemon.state()["plan"]["name"] == "p12d4"


@pytest.mark.parametrize(
    ("role", "number"),
    [
        ("gpu-owner", signal.SIGKILL),
        ("gpu-owner", signal.SIGSTOP),
        ("engine", signal.SIGKILL),
        ("keeper", signal.SIGKILL),
    ],
)
def test_streams_go_on_after_a_loss(two_processes: list[list[int]], role: str, number: int) -> None:
    with start_daemon(*SLOW, *WATCHED, "--single-process") as daemon:
        streams = _streams(daemon)
        wait_mid_stream(streams)
        old = daemon.kill(role, number)
        assert [finished(stream) for stream in streams] == two_processes
        daemon.wait_replaced(role, old)
        daemon.wait_pool_whole()


@pytest.mark.parametrize("fault", ["prefill:hang@batch=2", "decode:gpu-fault@step=8"])
def test_a_failure_in_one_thread_is_the_process_s(two_processes: list[list[int]], fault: str) -> None:
    with start_daemon(*SLOW, *WATCHED, "--single-process", "--fault", f"{fault},incarnation=1") as daemon:
        assert [finished(stream) for stream in _streams(daemon)] == two_processes
        daemon.wait_pool_whole()


def test_a_worker_that_cannot_start_says_why() -> None:
    with start_daemon("--single-process", "--max-restarts", "0", "--fault", "gpu-fault@start", wait=False) as daemon:
        assert daemon.wait_exit() == 1
        assert "gpu-owner (was exited with code 1: DeviceLost: injected" in daemon.output
        daemon.assert_nothing_left()


def test_a_cpu_refuses_and_says_why() -> None:
    with start_daemon("--device", "cpu", "--single-process", wait=False) as daemon:
        assert daemon.wait_exit() == 2
        assert "affinity" in daemon.output
        daemon.assert_nothing_left()
