"""A memory fault of the device: both workers go, KV is not trusted, and no stream notices more than a pause."""

from __future__ import annotations

import re
import signal

import pytest

from tests.daemon import Daemon, eventually, start_daemon
from tests.limits import LIMIT_S
from tests.streams import Stream, finished, wait_mid_stream

NUM_STREAMS = 3
NUM_TOKENS = 40
SLOW = ("--profile", "tests/data/slow_profile.yaml")


def _streams(daemon: Daemon) -> list[Stream]:
    return [Stream(daemon, number, max_tokens=NUM_TOKENS) for number in range(NUM_STREAMS)]


@pytest.fixture(scope="module")
def undisturbed() -> list[list[int]]:
    with start_daemon(*SLOW) as daemon:
        return [finished(stream) for stream in _streams(daemon)]


@pytest.mark.parametrize("fault", ["decode:gpu-fault@step=10", "prefill:gpu-fault@batch=2"])
def test_both_workers_restart_and_streams_are_recomputed(undisturbed: list[list[int]], fault: str) -> None:
    struck = fault.partition(":")[0]
    other = {"decode": "prefill", "prefill": "decode"}[struck]
    # one death is all that the budget allows: it is one fault, not two
    with start_daemon(*SLOW, "--max-restarts", "1", "--fault", f"{fault},incarnation=1") as daemon:
        before = {role: pid for pid, role in daemon.pids().items()}
        streams = _streams(daemon)
        assert [finished(stream) for stream in streams] == undisturbed
        for role in (struck, other):
            daemon.wait_replaced(role, before[role])
        after = {role: pid for pid, role in daemon.pids().items()}
        assert {role for role in before if before[role] == after[role]} == {
            "supervisor",
            "keeper",
            "engine",
            "frontend",
        }
        assert f"{struck} lost" in daemon.output and f"{other} ends and starts with it" in daemon.output
        daemon.wait_pool_whole()


def test_what_was_cached_before_a_fault_is_computed_again() -> None:
    """The tree may hold garbage: a prompt that was cached is not served from it afterwards."""
    prompt = [*range(200, 264)]  # four blocks
    with start_daemon("--fault", "decode:gpu-fault@token=77,incarnation=1") as daemon:
        old = daemon.pid_of("prefill")
        daemon.complete(prompt, max_tokens=2)
        assert _cached_tokens(daemon, prompt) > 0
        assert daemon.complete([77, 5], max_tokens=4).status_code == 200
        daemon.wait_replaced("prefill", old)
        assert _cached_tokens(daemon, prompt) == 0
        assert _cached_tokens(daemon, prompt) > 0


def _cached_tokens(daemon: Daemon, prompt: list[int]) -> int:
    usage = daemon.complete(prompt, max_tokens=2).json()["usage"]
    return int(usage["prompt_tokens_details"]["cached_tokens"])


def test_faults_without_end_are_a_crash_loop() -> None:
    with start_daemon("--max-restarts", "1", "--fault", "decode:gpu-fault@step=1") as daemon:
        stream = Stream(daemon, 1)
        assert daemon.wait_exit() == 1
        assert "giving up" in daemon.output
        stream.join(LIMIT_S)
        daemon.assert_nothing_left()


def test_a_death_without_a_fault_leaves_the_other_worker_alone(undisturbed: list[list[int]]) -> None:
    with start_daemon(*SLOW) as daemon:
        prefill = daemon.pid_of("prefill")
        streams = _streams(daemon)
        wait_mid_stream(streams)
        old = daemon.kill("decode", signal.SIGSEGV)
        assert [finished(stream) for stream in streams] == undisturbed
        daemon.wait_replaced("decode", old)
        assert daemon.pid_of("prefill") == prefill


def test_a_poison_request_that_faults_the_device_is_convicted_alone() -> None:
    """In one process every death is both phases': the innocent beside it must not be charged with it."""
    arguments = (*SLOW, "--single-process", "--fault", "decode:gpu-fault@token=77", "--max-restarts", "3")
    with start_daemon(*arguments) as daemon:
        bystander = Stream(daemon, 1, max_tokens=60)
        wait_mid_stream([bystander], 2)
        poison = Stream(daemon, 9, prompt=[77, 5], max_tokens=30)
        poison.join(LIMIT_S)
        assert poison.error is not None
        assert len(finished(bystander)) == 60
        eventually(lambda: "gpu-owner" in daemon.pids().values() and daemon.is_ready(), what="the owner is back")
        assert len(re.findall("gpu-owner lost", daemon.output)) == 3
        assert "giving up" not in daemon.output
        daemon.wait_pool_whole()
