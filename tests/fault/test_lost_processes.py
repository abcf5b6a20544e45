"""A process is lost in mid-stream: every stream goes on, and no sent token changes, vanishes or doubles."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator

import pytest

from tests.daemon import Daemon, eventually, start_daemon
from tests.limits import LIMIT_S
from tests.streams import Stream, finished, wait_mid_stream

NUM_STREAMS = 4
NUM_TOKENS = 60
SLOW = ("--profile", "tests/data/slow_profile.yaml")
VERY_SLOW = ("--profile", "tests/data/very_slow_profile.yaml")
# Short limits for processes that stop. On a busy machine they may mistake a slow process for a stopped one, which must
# not be noticed either, except that it counts as a death.
WATCHED = ("--heartbeat-timeout-s", "1.5", "--progress-floor-s", "1.5", "--max-restarts", "20")
LONG = 250  # tokens: for what must happen while streams run


@pytest.fixture(scope="module")
def reference() -> list[list[int]]:
    """What the streams receive when nothing happens. A token depends on its place, not on how many follow."""
    with start_daemon(*SLOW) as daemon:
        streams = _streams(daemon, LONG)
        return [finished(stream) for stream in streams]


@pytest.fixture(scope="module")
def undisturbed(reference: list[list[int]]) -> list[list[int]]:
    """The same of streams of the usual length."""
    return [tokens[:NUM_TOKENS] for tokens in reference]


def _streams(daemon: Daemon, max_tokens: int = NUM_TOKENS) -> list[Stream]:
    return [Stream(daemon, number, max_tokens=max_tokens) for number in range(NUM_STREAMS)]


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
    with start_daemon(*SLOW, *WATCHED) as daemon:
        streams = _streams(daemon)
        wait_mid_stream(streams)
        old = daemon.kill(role, number)
        assert [finished(stream) for stream in streams] == undisturbed
        daemon.wait_replaced(role, old)
        daemon.wait_pool_whole()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_lost_frontend_ends_its_streams_and_frees_their_blocks(number: int) -> None:
    with start_daemon(*VERY_SLOW, *WATCHED) as daemon:
        streams = _streams(daemon, 1500)  # minutes: they end because the frontend does
        wait_mid_stream(streams)
        daemon.wait_replaced("frontend", daemon.kill("frontend", number))
        for stream in streams:
            stream.join(LIMIT_S)
            assert stream.error is not None and not stream.is_done
        daemon.wait_pool_whole()
        assert finished(Stream(daemon, 0, max_tokens=5))


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
    with start_daemon(*SLOW, *WATCHED, "--fault", fault) as daemon:
        streams = _streams(daemon)
        assert [finished(stream) for stream in streams] == undisturbed
        daemon.wait_pool_whole()


def test_a_poison_request_fails_alone_and_is_no_crash_loop() -> None:
    with start_daemon(*SLOW, "--fault", "decode:exit@token=77", "--max-restarts", "3") as daemon:
        bystander = Stream(daemon, 1, max_tokens=30)
        for _ in range(2):
            poison = Stream(daemon, 9, prompt=[77, 5], max_tokens=30)
            poison.join(LIMIT_S)
            assert poison.error is not None
        assert len(finished(bystander)) == 30
        assert len(finished(Stream(daemon, 2, max_tokens=5))) == 5
        assert "giving up" not in daemon.output
        daemon.wait_pool_whole()


def test_deaths_under_continuous_load_lose_nothing(undisturbed: list[list[int]]) -> None:
    with start_daemon(*SLOW, "--max-restarts", "20") as daemon:
        streams = _streams(daemon)
        for role in _rotation(("decode", "prefill", "decode"), streams):
            eventually(lambda role=role: role in daemon.pids().values(), what=f"{role} runs again")
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


def test_requests_that_wait_outlive_the_engine(reference: list[list[int]]) -> None:
    with start_daemon(*SLOW, "--max-num-seqs", "2") as daemon:
        streams = _streams(daemon, 120)
        eventually(lambda: daemon.state()["queue"]["waiting"] >= 1, what="a request waits")
        eventually(lambda: any(len(stream.token_ids) >= 2 for stream in streams), what="tokens arrive")
        old = daemon.kill("engine")
        assert [finished(stream) for stream in streams] == [tokens[:120] for tokens in reference]
        daemon.wait_replaced("engine", old)


def test_a_drain_survives_the_loss_of_decode(reference: list[list[int]]) -> None:
    with start_daemon(*SLOW, "--drain-timeout-s", "100") as daemon:
        streams = _streams(daemon, LONG)
        wait_mid_stream(streams)
        daemon.process.send_signal(signal.SIGTERM)
        eventually(lambda: not daemon.is_ready(), what="draining")
        daemon.kill("decode")
        assert not any(stream.is_done for stream in streams), "too late: nothing was in flight"
        assert [finished(stream) for stream in streams] == reference
        assert daemon.stop() == 0
        assert "decode lost" in daemon.output
