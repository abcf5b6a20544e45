"""A process is lost in mid-stream: every stream goes on, and no sent token changes, vanishes or doubles."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator

import pytest

from tests.daemon import Daemon, eventually, start_daemon
from tests.streams import Stream, finished, wait_mid_stream

NUM_STREAMS = 4
SLOW = ("--profile", "tests/data/slow_profile.yaml", "--heartbeat-timeout-s", "0.6", "--progress-floor-s", "0.6")


@pytest.fixture(scope="module")
def undisturbed() -> list[list[int]]:
    """What the streams receive when nothing happens."""
    with start_daemon(*SLOW) as daemon:
        streams = _streams(daemon)
        return [finished(stream) for stream in streams]


def _streams(daemon: Daemon) -> list[Stream]:
    return [Stream(daemon, number) for number in range(NUM_STREAMS)]


@pytest.mark.parametrize(
    ("role", "number"),
    [
        ("prefill", signal.SIGKILL),
        ("prefill", signal.SIGSTOP),
        ("decode", signal.SIGKILL),
        ("decode", signal.SIGSTOP),
        ("engine", signal.SIGKILL),
        ("engine", signal.SIGSTOP),
        ("keeper", signal.SIGKILL),
        ("keeper", signal.SIGSTOP),
    ],
)
def test_streams_go_on(undisturbed: list[list[int]], role: str, number: int) -> None:
    with start_daemon(*SLOW) as daemon:
        streams = _streams(daemon)
        wait_mid_stream(streams)
        old = daemon.kill(role, number)
        assert [finished(stream) for stream in streams] == undisturbed
        daemon.wait_replaced(role, old)
        daemon.wait_pool_whole()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_lost_frontend_ends_its_streams_and_frees_their_blocks(number: int) -> None:
    with start_daemon(*SLOW) as daemon:
        streams = _streams(daemon)
        wait_mid_stream(streams)
        daemon.wait_replaced("frontend", daemon.kill("frontend", number))
        for stream in streams:
            stream.join(10.0)
            assert stream.error is not None and not stream.is_done
        daemon.wait_pool_whole()
        assert finished(Stream(daemon, 0))


@pytest.mark.parametrize(
    "fault",
    [
        "decode:exit@step=10,incarnation=1",
        "prefill:exit@batch=2,incarnation=1",
        "decode:hang@step=10,incarnation=1",
        "decode:freeze@step=10,incarnation=1",
        "decode:slow@step=10,ms=300,incarnation=1",
        "decode:garbage@step=10,incarnation=1",
        "prefill:garbage@batch=2,incarnation=1",
        "decode:raise@step=10,incarnation=1",
        "prefill:raise@batch=2,incarnation=1",
        "decode:exit@switch=2,incarnation=1",
        "prefill:exit@switch=2,incarnation=1",
    ],
)
def test_injected_faults_do_not_change_a_token(undisturbed: list[list[int]], fault: str) -> None:
    with start_daemon(*SLOW, "--fault", fault) as daemon:
        streams = _streams(daemon)
        assert [finished(stream) for stream in streams] == undisturbed
        daemon.wait_pool_whole()


def test_a_poison_request_fails_alone_and_is_no_crash_loop() -> None:
    with start_daemon(*SLOW, "--fault", "decode:exit@token=77", "--max-restarts", "3") as daemon:
        bystander = Stream(daemon, 1, max_tokens=30)
        for _ in range(2):
            poison = Stream(daemon, 9, prompt=[77, 5], max_tokens=30)
            poison.join(60.0)
            assert poison.error is not None
        assert len(finished(bystander)) == 30
        assert len(finished(Stream(daemon, 2, max_tokens=5))) == 5
        assert "giving up" not in daemon.output
        daemon.wait_pool_whole()


def test_deaths_under_continuous_load_lose_nothing(undisturbed: list[list[int]]) -> None:
    with start_daemon(*SLOW, "--max-restarts", "20") as daemon:
        streams = _streams(daemon)
        for role in _rotation(("decode", "prefill", "decode"), streams):
            daemon.kill(role)
            time.sleep(0.4)
        assert [finished(stream) for stream in streams] == undisturbed
        daemon.wait_pool_whole()


def _rotation(roles: tuple[str, ...], streams: list[Stream]) -> Iterator[str]:
    for role in roles:
        wait_mid_stream(streams)
        yield role


def test_both_workers_are_lost_at_once(undisturbed: list[list[int]]) -> None:
    with start_daemon(*SLOW) as daemon:
        streams = _streams(daemon)
        wait_mid_stream(streams)
        pids = {role: daemon.pid_of(role) for role in ("prefill", "decode")}
        for pid in pids.values():
            os.kill(pid, signal.SIGKILL)
        assert [finished(stream) for stream in streams] == undisturbed
        for role, pid in pids.items():
            daemon.wait_replaced(role, pid)


def test_requests_that_wait_outlive_the_engine(undisturbed: list[list[int]]) -> None:
    with start_daemon(*SLOW, "--max-num-seqs", "2") as daemon:
        streams = _streams(daemon)
        eventually(lambda: daemon.state()["queue"]["waiting"] >= 1, what="a request waits")
        wait_mid_stream(streams[:1], 2)
        old = daemon.kill("engine")
        assert [finished(stream) for stream in streams] == undisturbed
        daemon.wait_replaced("engine", old)


def test_a_drain_survives_the_loss_of_decode(undisturbed: list[list[int]]) -> None:
    with start_daemon(*SLOW) as daemon:
        streams = _streams(daemon)
        wait_mid_stream(streams)
        daemon.process.send_signal(signal.SIGTERM)
        eventually(lambda: not daemon.is_ready(), what="draining")
        daemon.kill("decode")
        assert not any(stream.is_done for stream in streams), "too late: nothing was in flight"
        assert [finished(stream) for stream in streams] == undisturbed
        assert daemon.stop() == 0
        assert "decode lost" in daemon.output
