"""Processes of a real model die under open streams: with --deterministic the text is the same to the byte."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.daemon import Daemon, start_daemon
from tests.streams import Stream, wait_mid_stream

NUM_STREAMS = 4
NUM_TOKENS = 400


def run_streams(daemon: Daemon, kill: str | None) -> list[Stream]:
    streams = [open_stream(daemon, index) for index in range(NUM_STREAMS)]
    if kill is not None:
        wait_mid_stream(streams, 40, 60.0)
        assert not any(stream.is_done for stream in streams), "too late: nothing was in flight"
        killed = daemon.kill(kill)
        daemon.wait_replaced(kill, killed, 60.0)
    for stream in streams:
        stream.join(90.0)
    return streams


def open_stream(daemon: Daemon, index: int) -> Stream:
    prompt = f"Stream {index}. What does the decode worker do?"
    return Stream(daemon, index, prompt=prompt, max_tokens=NUM_TOKENS, temperature=0.8)


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
        assert stream.token_ids == reference.token_ids
        assert stream.text == reference.text
    daemon.wait_pool_whole()
