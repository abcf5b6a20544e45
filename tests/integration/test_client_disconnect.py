"""A client that leaves the real daemon, streamed or plain, while its request waits, prefills or decodes: its KV blocks
are free again long before it would have ended, and nobody else notices."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import suppress

import httpx
import pytest

from tests.daemon import Daemon, eventually, start_daemon
from tests.limits import LIMIT_S

# A request takes 0.1 s per token: one of hundreds that nobody aborts holds its blocks for a minute and more.
SLOW = ("--profile", "tests/data/very_slow_profile.yaml", "--max-num-batched-tokens", "64", "--max-num-seqs", "4")


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    with start_daemon(*SLOW) as running:
        yield running


async def state_of(client: httpx.AsyncClient) -> dict[str, dict[str, int]]:
    state: dict[str, dict[str, int]] = (await client.get("/state")).json()
    return state


def num_held(state: dict[str, dict[str, int]]) -> int:
    """Blocks in somebody's use; those only kept for reuse are not."""
    kv = state["kv"]
    return kv["blocks_total"] - kv["blocks_free"] - kv["blocks_cached"]


async def eventually_state(client: httpx.AsyncClient, is_reached: Callable[[dict[str, dict[str, int]]], bool]) -> None:
    deadline_s = time.monotonic() + LIMIT_S
    while not is_reached(state := await state_of(client)):
        assert time.monotonic() < deadline_s, state
        await asyncio.sleep(0.005)


async def ask(base_url: str, **fields: object) -> None:
    """Reads until it is cancelled, which closes the connection."""
    body = {"model": "demo", "ignore_eos": True, **fields}
    async with httpx.AsyncClient(base_url=base_url, timeout=600) as client:
        await client.post("/v1/completions", json=body)


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "plain"])
@pytest.mark.parametrize("phase", ["prefill_running", "decode_running", "waiting"])
async def test_blocks_are_free_long_before_the_end(daemon: Daemon, stream: bool, phase: str) -> None:
    """Chunks of 64 tokens make the prefill of the longer prompt last for seconds."""
    prompt = [7] * 1500 if phase == "prefill_running" else [7] * 40
    fields: dict[str, object] = {"prompt": prompt, "max_tokens": 2048 - len(prompt)}
    num_clients = 12 if phase == "waiting" else 2
    async with httpx.AsyncClient(base_url=daemon.base_url, timeout=LIMIT_S) as client:
        tasks = [asyncio.create_task(ask(daemon.base_url, stream=stream, **fields)) for _ in range(num_clients)]
        await eventually_state(client, lambda state: bool(state["queue"][phase] and num_held(state)))
        for task in tasks:
            task.cancel()
        for task in tasks:
            with suppress(asyncio.CancelledError):
                await task
        await eventually_state(client, lambda state: not (num_held(state) or sum(state["queue"].values())))
        body = {"model": "demo", "prompt": [7], "max_tokens": 2, "ignore_eos": True}
        assert (await client.post("/v1/completions", json=body)).json()["usage"]["completion_tokens"] == 2


async def test_the_log_has_the_times_of_requests_that_end_early(daemon: Daemon) -> None:
    """By a stop string, or by a client that leaves in mid-decode."""
    text = daemon.complete("hello", max_tokens=8, ignore_eos=True, seed=3).json()["choices"][0]["text"]
    stop = text[len(text) // 2]
    answer = daemon.complete("hello", max_tokens=8, ignore_eos=True, seed=3, stop=stop, request_id="stopped")
    assert answer.json()["choices"][0]["finish_reason"] == "stop"
    async with httpx.AsyncClient(base_url=daemon.base_url, timeout=LIMIT_S) as client:
        leaving = asyncio.create_task(ask(daemon.base_url, prompt="hello", max_tokens=1900, request_id="left"))
        await eventually_state(client, lambda state: bool(state["queue"]["decode_running"]))
        leaving.cancel()
        with suppress(asyncio.CancelledError):
            await leaving
        await eventually_state(client, lambda state: not num_held(state))
    for name in ("stopped", "left"):
        line = await asyncio.to_thread(eventually, lambda name=name: line_of(daemon, name), what=f"the line of {name}")
        assert '"queue_ms":null' not in line and '"ttft_ms":null' not in line, line


def line_of(daemon: Daemon, request_id: str) -> str | None:
    lines = [line for line in daemon.output.splitlines() if f'"request_id":"{request_id}"' in line]
    assert len(lines) <= 1
    return lines[0] if lines else None
