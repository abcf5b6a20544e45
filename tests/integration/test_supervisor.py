"""The table of the supervisor, with real processes on the emulated device."""

from __future__ import annotations

import os
import signal
import threading

import httpx
import pytest

from tests.daemon import ROLES, Daemon, eventually, start_daemon
from tests.limits import LIMIT_S


def test_starts_serves_and_stops_cleanly() -> None:
    with start_daemon() as daemon:
        assert set(daemon.pids().values()) == {"supervisor", *ROLES}
        assert daemon.complete().status_code == 200
        state = daemon.state()
        assert {worker["role"]: worker["pid"] for worker in state["workers"]} == {
            "prefill": daemon.pid_of("prefill"),
            "decode": daemon.pid_of("decode"),
        }
        assert daemon.stop() == 0


@pytest.mark.parametrize("role", ["prefill", "decode", "frontend", "engine"])
def test_a_killed_process_alone_is_replaced(role: str) -> None:
    with start_daemon() as daemon:
        before = {name: pid for pid, name in daemon.pids().items()}
        old = daemon.kill(role)
        new = daemon.wait_replaced(role, old)
        after = {name: pid for pid, name in daemon.pids().items()}
        assert after == {**before, role: new}
        assert daemon.complete().status_code == 200


def test_a_killed_keeper_takes_engine_and_workers_with_it_but_not_the_frontend() -> None:
    with start_daemon() as daemon:
        before = {name: pid for pid, name in daemon.pids().items()}
        daemon.wait_replaced("keeper", daemon.kill("keeper"))
        after = {name: pid for pid, name in daemon.pids().items()}
        assert {role for role in before if before[role] == after[role]} == {"supervisor", "frontend"}
        assert daemon.complete().status_code == 200


def test_the_same_worker_can_be_lost_again_and_again() -> None:
    with start_daemon("--max-restarts", "5") as daemon:
        for _ in range(4):
            daemon.wait_replaced("decode", daemon.kill("decode"))
            assert daemon.complete().status_code == 200


@pytest.mark.parametrize("role", ["prefill", "decode", "engine", "keeper"])
def test_a_stopped_process_is_killed_and_replaced(role: str) -> None:
    with start_daemon("--heartbeat-timeout-s", "1.5") as daemon:
        old = daemon.kill(role, signal.SIGSTOP)
        daemon.wait_replaced(role, old)
        assert f"{role} lost (silent for" in daemon.output
        assert daemon.complete().status_code == 200


def test_too_many_deaths_end_the_daemon_with_code_1() -> None:
    with start_daemon("--max-restarts", "1") as daemon:
        daemon.wait_replaced("prefill", daemon.kill("prefill"))
        daemon.kill("prefill")
        assert daemon.wait_exit() == 1
        assert "prefill" in daemon.output and "giving up" in daemon.output
        daemon.assert_nothing_left()
        daemon.process.poll()


def test_killing_the_supervisor_leaves_no_orphan() -> None:
    with start_daemon() as daemon:
        sockets = daemon._sockets()
        assert sockets
        os.kill(daemon.process.pid, signal.SIGKILL)
        assert daemon.wait_exit() == -signal.SIGKILL
        daemon.assert_nothing_left(sockets)


def _stream(daemon: Daemon, max_tokens: int, received: list[str]) -> None:
    body = {"model": "demo", "prompt": "hello", "max_tokens": max_tokens, "stream": True, "ignore_eos": True}
    try:
        with httpx.stream("POST", f"{daemon.base_url}/v1/completions", json=body, timeout=LIMIT_S) as response:
            received.extend(line for line in response.iter_lines() if line.startswith("data:"))
    except httpx.HTTPError as error:
        received.append(f"cut: {error!r}")


def _running(daemon: Daemon) -> bool:
    return bool(daemon.state()["queue"]["decode_running"])


def _start_stream(daemon: Daemon, max_tokens: int) -> tuple[threading.Thread, list[str]]:
    """A client under way, and the lines it has received so far."""
    received: list[str] = []
    client = threading.Thread(target=_stream, args=(daemon, max_tokens, received))
    client.start()
    eventually(lambda: _running(daemon), what="the request runs")
    return client, received


def test_sigterm_lets_running_requests_finish() -> None:
    with start_daemon("--profile", "tests/data/slow_profile.yaml", "--drain-timeout-s", "100") as daemon:
        client, received = _start_stream(daemon, 150)
        daemon.process.send_signal(signal.SIGTERM)
        client.join(LIMIT_S)
        assert received[-1] == "data: [DONE]"
        assert daemon.stop() == 0


def test_a_second_signal_stops_at_once() -> None:
    """Neither the request, of minutes, nor the time of the drain would let it end before the test's patience does."""
    with start_daemon("--profile", "tests/data/very_slow_profile.yaml", "--drain-timeout-s", "600") as daemon:
        client, _ = _start_stream(daemon, 2000)
        daemon.process.send_signal(signal.SIGINT)
        eventually(lambda: "draining" in daemon.output, what="the first signal is heard")
        assert daemon.process.poll() is None
        daemon.process.send_signal(signal.SIGINT)
        assert daemon.wait_exit() == 128 + signal.SIGINT
        client.join(LIMIT_S)
        daemon.assert_nothing_left()


def test_the_drain_ends_at_its_deadline() -> None:
    with start_daemon("--profile", "tests/data/very_slow_profile.yaml", "--drain-timeout-s", "0.5") as daemon:
        client, received = _start_stream(daemon, 2000)
        assert daemon.stop(is_idle=False) == 0
        client.join(LIMIT_S)
        assert any('"error"' in line for line in received), "a cut stream must say so"
