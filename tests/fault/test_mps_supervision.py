"""MPS around the life of workers: who is ended before a kill, who must be gone after it, and what happens when the
daemon itself is the one that dies."""

from __future__ import annotations

import os
import signal
import socket
from pathlib import Path

import pytest

from colocate.device.cuda import fake_mps
from colocate.device.cuda.mps import NO_MPS_DIRECTORY
from tests.daemon import Daemon, eventually, start_daemon
from tests.streams import Stream, finished, wait_mid_stream

SLOW = ("--profile", "tests/data/slow_profile.yaml", "--heartbeat-timeout-s", "1.5")
NUM_TOKENS = 40


def _serve(*arguments: str, **rest: object) -> Daemon:
    return start_daemon(*SLOW, *arguments, module="tests.mps_serve", **rest)  # type: ignore[arg-type]


def _pipe_of(daemon: Daemon, role: str) -> str:
    variables = Path(f"/proc/{daemon.pid_of(role)}/environ").read_bytes().split(b"\0")
    (value,) = [each.partition(b"=")[2] for each in variables if each.startswith(b"CUDA_MPS_PIPE_DIRECTORY=")]
    return value.decode()


def _join(daemon: Daemon, role: str) -> socket.socket:
    """Become a client in the name of this worker."""
    client = fake_mps.connect(_pipe_of(daemon, role), daemon.pid_of(role))
    assert client is not None
    return client


def _streams(daemon: Daemon) -> list[Stream]:
    return [Stream(daemon, number, max_tokens=NUM_TOKENS) for number in range(2)]


@pytest.fixture(scope="module")
def undisturbed() -> list[list[int]]:
    with start_daemon(*SLOW) as daemon:
        return [finished(stream) for stream in _streams(daemon)]


def test_the_daemon_is_there_before_workers_and_gone_after_them() -> None:
    with _serve() as daemon:
        assert sorted(role for role in daemon.pids().values() if "mps" in role) == ["mps", "mps", "mps-guard"]
        assert _pipe_of(daemon, "prefill") == _pipe_of(daemon, "decode") != NO_MPS_DIRECTORY
        assert {_pipe_of(daemon, role) for role in ("keeper", "engine", "frontend")} == {NO_MPS_DIRECTORY}
        assert daemon.stop() == 0  # asserts that no process and no file is left


def test_a_hung_worker_is_ended_on_the_gpu_before_it_is_killed(undisturbed: list[list[int]]) -> None:
    with _serve() as daemon:
        decode, prefill = _join(daemon, "decode"), _join(daemon, "prefill")
        streams = _streams(daemon)
        wait_mid_stream(streams)
        old = daemon.kill("decode", signal.SIGSTOP)
        eventually(lambda: not fake_mps.is_connected(decode), what="terminate_client")
        assert [finished(stream) for stream in streams] == undisturbed
        daemon.wait_replaced("decode", old)
        assert fake_mps.is_connected(prefill), "the other worker was left alone"
        assert "ends and starts with it" not in daemon.output
        prefill.close()


def test_a_dead_worker_that_the_server_still_lists_is_a_fault_of_the_gpu(undisturbed: list[list[int]]) -> None:
    """Its kernels may still write: nothing is trusted, and both workers start again."""
    with _serve() as daemon:
        ghost = _join(daemon, "decode")
        streams = _streams(daemon)
        wait_mid_stream(streams)
        prefill, decode = daemon.pid_of("prefill"), daemon.kill("decode")
        eventually(lambda: "prefill ends and starts with it" in daemon.output, what="both are replaced")
        ghost.close()
        assert [finished(stream) for stream in streams] == undisturbed
        daemon.wait_replaced("decode", decode)
        daemon.wait_replaced("prefill", prefill)


def test_a_dead_mps_daemon_is_replaced_with_both_workers(undisturbed: list[list[int]]) -> None:
    with _serve("--max-restarts", "1") as daemon:
        pipe, prefill, decode = _pipe_of(daemon, "decode"), daemon.pid_of("prefill"), daemon.pid_of("decode")
        streams = _streams(daemon)
        wait_mid_stream(streams)
        for pid, role in daemon.pids().items():
            if role == "mps":
                os.kill(pid, signal.SIGKILL)
        assert [finished(stream) for stream in streams] == undisturbed
        daemon.wait_replaced("prefill", prefill)
        daemon.wait_replaced("decode", decode)
        assert _pipe_of(daemon, "decode") == _pipe_of(daemon, "prefill") != pipe
        assert not Path(pipe).exists()


def test_a_killed_supervisor_leaves_no_mps_daemon() -> None:
    with _serve() as daemon:
        os.kill(daemon.process.pid, signal.SIGKILL)
        assert daemon.wait_exit() == -signal.SIGKILL
        daemon.assert_nothing_left()


def test_a_daemon_that_refuses_ends_the_start_with_its_log() -> None:
    with _serve(environment={"COLOCATE_FAKE_MPS": "refuse"}, wait=False) as daemon:
        assert daemon.wait_exit() == 2
        assert "already running" in daemon.output and "--single-process" in daemon.output
        daemon.assert_nothing_left()


def test_a_second_signal_takes_the_daemon_along() -> None:
    with _serve("--drain-timeout-s", "600") as daemon:
        stream = Stream(daemon, 1, max_tokens=1900)
        wait_mid_stream([stream])
        daemon.process.send_signal(signal.SIGINT)
        eventually(lambda: "draining" in daemon.output, what="the first signal is heard")
        daemon.process.send_signal(signal.SIGINT)
        assert daemon.wait_exit() == 128 + signal.SIGINT
        daemon.assert_nothing_left()


def test_a_signal_cuts_a_start_that_waits_for_the_daemon() -> None:
    with _serve(environment={"COLOCATE_FAKE_MPS": "mute"}, wait=False) as daemon:
        eventually(lambda: "mps" in daemon.pids().values(), what="the daemon is waited for")
        daemon.process.send_signal(signal.SIGINT)
        assert daemon.wait_exit() == 128 + signal.SIGINT, "not a refusal because the daemon never answered"
        daemon.assert_nothing_left()
