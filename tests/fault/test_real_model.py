"""Processes of a real model die under open streams: with --deterministic the text is the same to the byte."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator

import httpx
import pytest

from tests.daemon import Daemon, eventually, start_daemon

NUM_STREAMS = 4
NUM_TOKENS = 400


class Stream(threading.Thread):
    """One streamed completion, as its client sees it."""

    def __init__(self, daemon: Daemon, index: int) -> None:
        super().__init__(daemon=True)
        self._url = f"{daemon.base_url}/v1/completions"
        self._body = {
            "model": "demo",
            "prompt": f"Stream {index}. What does the decode worker do?",
            "max_tokens": NUM_TOKENS,
            "temperature": 0.8,
            "seed": index,
            "ignore_eos": True,
            "stream": True,
            "return_token_ids": True,
        }
        self.tokens: list[int] = []
        self.text = ""
        self.finish: str | None = None
        self.error: object = None
        self.is_done = False

    def run(self) -> None:
        with httpx.stream("POST", self._url, json=self._body, timeout=90.0) as reply:
            for line in reply.iter_lines():
                if line == "data: [DONE]":
                    self.is_done = True
                elif line.startswith("data: "):
                    self._take(json.loads(line[6:]))

    def _take(self, event: dict) -> None:
        if "error" in event:
            self.error = event["error"]
            return
        for choice in event["choices"]:
            self.tokens += choice.get("token_ids") or []
            self.text += choice["text"]
            self.finish = choice["finish_reason"] or self.finish


def run_streams(daemon: Daemon, kill: str | None) -> list[Stream]:
    streams = [Stream(daemon, index) for index in range(NUM_STREAMS)]
    for stream in streams:
        stream.start()
    if kill is not None:
        eventually(lambda: all(len(stream.tokens) > 40 for stream in streams), 60.0, "streams under way")
        assert not any(stream.is_done for stream in streams), "too late: nothing was in flight"
        killed = daemon.kill(kill)
        daemon.wait_replaced(kill, killed, 60.0)
    for stream in streams:
        stream.join(90.0)
    return streams


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    with start_daemon("--device", "cpu", "--kv-memory", "64MiB", "--deterministic") as running:
        yield running


@pytest.fixture(scope="module")
def undisturbed(daemon: Daemon) -> list[Stream]:
    return run_streams(daemon, None)


@pytest.mark.timeout(240)
@pytest.mark.parametrize("role", ["decode", "prefill", "engine", "keeper"])
def test_streams_survive_a_killed_process_to_the_byte(daemon: Daemon, undisturbed: list[Stream], role: str) -> None:
    streams = run_streams(daemon, role)
    for stream, reference in zip(streams, undisturbed, strict=True):
        assert stream.error is None
        assert stream.is_done
        assert stream.finish == reference.finish == "length"
        assert stream.tokens == reference.tokens
        assert stream.text == reference.text
    state = daemon.state()
    assert state["kv"]["blocks_free"] == state["kv"]["blocks_total"]
