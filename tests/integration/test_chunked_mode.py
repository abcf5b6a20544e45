"""Mode `chunked`: one hybrid worker, the tokens of colocated mode, and the same behaviour when something is lost."""

from __future__ import annotations

import json
import re
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest

from tests.daemon import Daemon, eventually, start_daemon
from tests.limits import LIMIT_S, START_LIMIT_S
from tests.streams import Stream, finished, wait_mid_stream

NUM_STREAMS = 4
NUM_TOKENS = 60
SLOW = ("--profile", "tests/data/slow_profile.yaml")
CHUNKED = ("--mode", "chunked", "--chunk-size", "24", "--max-num-seqs", "16")
WATCHED = ("--heartbeat-timeout-s", "1.5", "--progress-floor-s", "1.5", "--max-restarts", "20")


def streams_of(daemon: Daemon) -> list[Stream]:
    """Prompts of 5 to 125 tokens: the longer ones take several chunks beside the rows that decode already."""
    return [
        Stream(daemon, number, prompt=list(range(300, 305 + 40 * number)), max_tokens=NUM_TOKENS)
        for number in range(NUM_STREAMS)
    ]


@pytest.fixture(scope="module")
def undisturbed() -> list[list[int]]:
    """What the streams receive in colocated mode."""
    with start_daemon(*SLOW) as daemon:
        return [finished(stream) for stream in streams_of(daemon)]


def test_one_worker_gives_the_tokens_of_two(undisturbed: list[list[int]]) -> None:
    with start_daemon(*SLOW, *CHUNKED) as daemon:
        assert set(daemon.pids().values()) == {"supervisor", "frontend", "keeper", "engine", "hybrid"}
        assert re.search(r"plans +shared\n", daemon.output) and "shared, mode chunked" in daemon.output
        assert [finished(stream) for stream in streams_of(daemon)] == undisturbed
        state = daemon.state()
        assert state["mode"] == "chunked" and state["plan"]["name"] == "shared"
        assert [worker["role"] for worker in state["workers"]] == ["hybrid"]
        assert state["residency"] == {"shared": 1.0}, "in force for both phases"
        assert state["switches"]["count"] == 0
        prompt = list(range(300, 425))  # of a stream before
        usage = daemon.complete(prompt, max_tokens=1).json()["usage"]
        assert usage["prompt_tokens_details"]["cached_tokens"] == 112, "seven whole blocks"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_streams_go_on_without_the_hybrid_worker(undisturbed: list[list[int]], number: int) -> None:
    with start_daemon(*SLOW, *CHUNKED, *WATCHED) as daemon:
        streams = streams_of(daemon)
        wait_mid_stream(streams)
        old = daemon.kill("hybrid", number)
        assert [finished(stream) for stream in streams] == undisturbed
        daemon.wait_replaced("hybrid", old)
        daemon.wait_pool_whole()


def test_streams_go_on_without_the_engine(undisturbed: list[list[int]]) -> None:
    with start_daemon(*SLOW, *CHUNKED, *WATCHED) as daemon:
        streams = streams_of(daemon)
        wait_mid_stream(streams)
        old = daemon.kill("engine")
        assert [finished(stream) for stream in streams] == undisturbed
        daemon.wait_replaced("engine", old)


@pytest.mark.parametrize(
    "fault",
    [
        "hybrid:exit@batch=3,incarnation=1",  # between the chunks of a prompt
        "decode:raise@step=10,incarnation=1",
        "prefill:raise@batch=3,incarnation=1",
    ],
)
def test_injected_faults_do_not_change_a_token(undisturbed: list[list[int]], fault: str) -> None:
    with start_daemon(*SLOW, *CHUNKED, *WATCHED, "--fault", fault) as daemon:
        assert [finished(stream) for stream in streams_of(daemon)] == undisturbed
        daemon.wait_pool_whole()


def test_a_poison_prompt_fails_alone_and_is_no_crash_loop() -> None:
    with start_daemon(*SLOW, *CHUNKED, "--fault", "hybrid:exit@token=77", "--max-restarts", "3") as daemon:
        bystander = Stream(daemon, 1, max_tokens=30)
        for _ in range(2):
            poison = Stream(daemon, 9, prompt=[77, 5], max_tokens=30)
            poison.join(LIMIT_S)
            assert poison.error is not None
        assert len(finished(bystander)) == 30


@pytest.mark.parametrize("phase", ["prefill_running", "decode_running"])
def test_a_client_that_leaves_frees_its_blocks_long_before_the_end(phase: str) -> None:
    """0.1 s per forward: the prompt of 1,500 tokens takes seconds, the answer to the other minutes."""
    num_tokens = 1500 if phase == "prefill_running" else 5
    with start_daemon("--profile", "tests/data/very_slow_profile.yaml", *CHUNKED) as daemon:
        body = {"model": "demo", "prompt": [7] * num_tokens, "max_tokens": 500, "ignore_eos": True}
        with connected(daemon, body):
            eventually(lambda: daemon.state()["queue"][phase], LIMIT_S, phase)
        daemon.wait_pool_whole()
        assert daemon.state()["queue"] == {"waiting": 0, "prefill_running": 0, "decode_running": 0}


@contextmanager
def connected(daemon: Daemon, body: dict[str, Any]) -> Iterator[None]:
    """A client that has asked, and hangs up at the end of the block."""
    url, content = httpx.URL(daemon.base_url), json.dumps(body).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: {url.host}\r\nContent-Length: {len(content)}\r\n"
    with socket.create_connection((url.host, url.port)) as client:
        client.sendall(f"{head}Content-Type: application/json\r\n\r\n".encode() + content)
        yield


# -- the real model ---------------------------------------------------------------------------------------------------

CPU = ("--device", "cpu", "--kv-memory", "64MiB", "--deterministic", "--start-timeout-s", str(START_LIMIT_S))


def talk(daemon: Daemon, max_tokens: int = 120) -> list[Stream]:
    prompts = ["What does the decode worker do? " * repeat for repeat in (1, 3, 9)]
    return [
        Stream(daemon, index, prompt=prompt, max_tokens=max_tokens, temperature=0.8 * (index % 2))
        for index, prompt in enumerate(prompts)
    ]


@pytest.fixture(scope="module")
def spoken() -> Iterator[list[str]]:
    """What the demo model says in colocated mode: sampled and greedy."""
    with start_daemon(*CPU) as daemon:
        streams = talk(daemon)
        for stream in streams:
            finished(stream)
        yield [stream.text for stream in streams]


@pytest.mark.timeout(300)
def test_the_demo_model_says_the_same_to_the_byte_also_after_a_kill(spoken: list[str]) -> None:
    with start_daemon(*CPU, "--mode", "chunked", "--chunk-size", "32", "--max-num-seqs", "16") as daemon:
        streams = talk(daemon)
        wait_mid_stream(streams, 20)
        old = daemon.kill("hybrid")
        for stream in streams:
            finished(stream)
        assert [stream.text for stream in streams] == spoken
        daemon.wait_replaced("hybrid", old)
        daemon.wait_pool_whole()
