"""A client that leaves the real daemon, streamed or plain, while its request waits, prefills or decodes: its KV blocks
are free again within a second, and nobody else notices."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import suppress

import httpx
import pytest

from tests.daemon import Daemon, start_daemon

LIMIT_S = 1.0
SLOW = ("--profile", "tests/data/slow_profile.yaml", "--max-num-batched-tokens", "64", "--max-num-seqs", "4")


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    with start_daemon(*SLOW) as running:
        yield running


async def state_of(client: httpx.AsyncClient) -> dict[str, dict[str, int]]:
    state: dict[str, dict[str, int]] = (await client.get("/state")).json()
    return state


async def num_held(client: httpx.AsyncClient) -> int:
    kv = (await state_of(client))["kv"]
    return kv["blocks_total"] - kv["blocks_free"]


async def ask(base_url: str, **fields: object) -> None:
    """Reads until it is cancelled, which closes the connection."""
    body = {"model": "demo", "ignore_eos": True, **fields}
    async with httpx.AsyncClient(base_url=base_url, timeout=60) as client:
        await client.post("/v1/completions", json=body)


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "plain"])
@pytest.mark.parametrize("phase", ["prefill_running", "decode_running", "waiting"])
async def test_blocks_are_free_within_a_second(daemon: Daemon, stream: bool, phase: str) -> None:
    """Chunks of 64 tokens make the prefill of this prompt last for most of a second."""
    fields: dict[str, object] = {"prompt": [7] * 1500 if phase == "prefill_running" else [7] * 40, "max_tokens": 400}
    num_clients = 12 if phase == "waiting" else 2
    async with httpx.AsyncClient(base_url=daemon.base_url, timeout=10) as client:
        tasks = [asyncio.create_task(ask(daemon.base_url, stream=stream, **fields)) for _ in range(num_clients)]
        deadline_s = time.monotonic() + 10
        while not ((await state_of(client))["queue"][phase] and await num_held(client)):
            assert time.monotonic() < deadline_s, f"no request came to {phase}"
            await asyncio.sleep(0.005)
        for task in tasks:
            task.cancel()
        left_s = time.monotonic()
        for task in tasks:
            with suppress(asyncio.CancelledError):
                await task
        while held := await num_held(client):
            assert time.monotonic() - left_s < LIMIT_S, f"{held} blocks are still held: {await state_of(client)}"
            await asyncio.sleep(0.005)
        assert not sum((await state_of(client))["queue"].values())
        body = {"model": "demo", "prompt": [7], "max_tokens": 2, "ignore_eos": True}
        assert (await client.post("/v1/completions", json=body)).json()["usage"]["completion_tokens"] == 2


def test_the_log_has_the_times_of_requests_that_end_early(daemon: Daemon) -> None:
    """By a stop string, or by a client that leaves in mid-decode."""
    text = daemon.complete("hello", max_tokens=8, ignore_eos=True, seed=3).json()["choices"][0]["text"]
    stop = text[len(text) // 2]
    answer = daemon.complete("hello", max_tokens=8, ignore_eos=True, seed=3, stop=stop, request_id="stopped")
    assert answer.json()["choices"][0]["finish_reason"] == "stop"
    body = {"model": daemon.model, "prompt": "hello", "max_tokens": 400, "ignore_eos": True, "request_id": "left"}
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{daemon.base_url}/v1/completions", json=body, timeout=0.5)
    daemon.wait_pool_whole()
    time.sleep(0.2)
    for name in ("stopped", "left"):
        [line] = [line for line in daemon.output.splitlines() if f'"request_id":"{name}"' in line]
        assert '"queue_ms":null' not in line and '"ttft_ms":null' not in line, line
