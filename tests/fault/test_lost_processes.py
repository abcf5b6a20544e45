"""A process is lost in mid-stream: every stream goes on, and no sent token changes, vanishes or doubles."""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Iterator

import httpx
import pytest

from tests.daemon import Daemon, eventually, start_daemon

NUM_STREAMS = 4
NUM_TOKENS = 60
SLOW = ("--profile", "tests/data/slow_profile.yaml", "--heartbeat-timeout-s", "0.6", "--progress-floor-s", "0.6")


class Stream(threading.Thread):
    """One streaming client. `token_ids` is what it has received; `error` how it ended, if not by [DONE]."""

    def __init__(self, daemon: Daemon, number: int, **fields: object) -> None:
        super().__init__(daemon=True)
        self._url = f"{daemon.base_url}/v1/completions"
        self._body = {
            "model": "demo",
            "prompt": [100 + number, 101, 102],
            "max_tokens": NUM_TOKENS,
            "stream": True,
            "ignore_eos": True,
            "return_token_ids": True,
            "temperature": 1.0,
            "seed": number,
            **fields,
        }
        self.token_ids: list[int] = []
        self.error: object = None
        self.is_done = False
        self.start()

    def run(self) -> None:
        try:
            with httpx.stream("POST", self._url, json=self._body, timeout=60.0) as response:
                if response.status_code != 200:
                    self.error = response.read().decode()
                    return
                for line in response.iter_lines():
                    self._take(line)
        except httpx.HTTPError as error:
            self.error = error

    def _take(self, line: str) -> None:
        if line == "data: [DONE]":
            self.is_done = True
        elif line.startswith("data: "):
            chunk = json.loads(line[6:])
            if "error" in chunk:
                self.error = chunk["error"]
            for choice in chunk.get("choices", ()):
                self.token_ids += choice.get("token_ids") or []


@pytest.fixture(scope="module")
def undisturbed() -> list[list[int]]:
    """What the streams receive when nothing happens."""
    with start_daemon(*SLOW) as daemon:
        streams = _streams(daemon)
        return [_finished(stream) for stream in streams]


def _streams(daemon: Daemon) -> list[Stream]:
    return [Stream(daemon, number) for number in range(NUM_STREAMS)]


def _finished(stream: Stream) -> list[int]:
    stream.join(60.0)
    assert stream.is_done and stream.error is None, stream.error
    return stream.token_ids


def _in_mid_stream(streams: list[Stream]) -> None:
    eventually(lambda: all(len(stream.token_ids) >= 5 for stream in streams), 20.0, "tokens arrive")


def _assert_pool_is_whole(daemon: Daemon) -> None:
    def whole() -> bool:
        kv = daemon.state()["kv"]
        return bool(kv["blocks_free"] == kv["blocks_total"])

    eventually(whole, 5.0, f"all blocks free: {daemon.state()['kv']}")


@pytest.mark.parametrize(
    ("role", "number"),
    [
        ("prefill", signal.SIGKILL),
        ("decode", signal.SIGKILL),
        ("decode", signal.SIGSTOP),
        ("engine", signal.SIGKILL),
        ("engine", signal.SIGSTOP),
        ("keeper", signal.SIGKILL),
    ],
)
def test_streams_go_on(undisturbed: list[list[int]], role: str, number: int) -> None:
    with start_daemon(*SLOW) as daemon:
        streams = _streams(daemon)
        _in_mid_stream(streams)
        old = daemon.kill(role, number)
        assert [_finished(stream) for stream in streams] == undisturbed
        daemon.wait_replaced(role, old)
        _assert_pool_is_whole(daemon)


def test_a_lost_frontend_ends_its_streams_and_frees_their_blocks() -> None:
    with start_daemon(*SLOW) as daemon:
        streams = _streams(daemon)
        _in_mid_stream(streams)
        daemon.wait_replaced("frontend", daemon.kill("frontend"))
        for stream in streams:
            stream.join(10.0)
            assert stream.error is not None and not stream.is_done
        _assert_pool_is_whole(daemon)
        assert _finished(Stream(daemon, 0))


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
        assert [_finished(stream) for stream in streams] == undisturbed
        _assert_pool_is_whole(daemon)


def test_a_poison_request_fails_alone_and_is_no_crash_loop() -> None:
    with start_daemon(*SLOW, "--fault", "decode:exit@token=77", "--max-restarts", "3") as daemon:
        bystander = Stream(daemon, 1, max_tokens=30)
        for _ in range(2):
            poison = Stream(daemon, 9, prompt=[77, 5], max_tokens=30)
            poison.join(60.0)
            assert poison.error is not None
        assert len(_finished(bystander)) == 30
        assert len(_finished(Stream(daemon, 2, max_tokens=5))) == 5
        assert "giving up" not in daemon.output
        _assert_pool_is_whole(daemon)


def test_deaths_under_continuous_load_lose_nothing(undisturbed: list[list[int]]) -> None:
    with start_daemon(*SLOW, "--max-restarts", "20") as daemon:
        streams = _streams(daemon)
        for role in _rotation(("decode", "prefill", "decode"), streams):
            daemon.kill(role)
            time.sleep(0.4)
        assert [_finished(stream) for stream in streams] == undisturbed
        _assert_pool_is_whole(daemon)


def _rotation(roles: tuple[str, ...], streams: list[Stream]) -> Iterator[str]:
    for role in roles:
        _in_mid_stream(streams)
        yield role
