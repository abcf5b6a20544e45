"""A pool too small for what runs: the youngest are preempted and recomputed, and no client can tell from its tokens."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest

from tests.daemon import Daemon, start_daemon

NUM_REQUESTS = 8
NUM_TOKENS = 300  # 8 x 300 tokens against a pool of about 680


async def complete_all(daemon: Daemon, indices: range, concurrency: int) -> dict[int, dict[str, Any]]:
    limit = asyncio.Semaphore(concurrency)

    async def one(client: httpx.AsyncClient, index: int) -> dict[str, Any]:
        body = {
            "model": "demo",
            "prompt": f"request {index}",
            "max_tokens": NUM_TOKENS,
            "seed": index,
            "ignore_eos": True,
            "return_token_ids": True,
        }
        async with limit:
            reply = await client.post("/v1/completions", json=body)
        assert reply.status_code == 200, reply.text
        choice: dict[str, Any] = reply.json()["choices"][0]
        return choice

    async with httpx.AsyncClient(base_url=daemon.base_url, timeout=100) as client:
        answers = await asyncio.gather(*(one(client, index) for index in indices))
    return dict(zip(indices, answers, strict=True))


@pytest.mark.parametrize("device", ["emulated", "cpu"])
def test_preempted_requests_end_with_the_tokens_they_would_have_had(device: str) -> None:
    flags = ("--kv-memory", "2MiB", "--max-model-len", "512", "--deterministic")
    with start_daemon("--device", device, *flags) as daemon:
        alone = asyncio.run(complete_all(daemon, range(NUM_REQUESTS), 1))
        assert daemon.state()["preemptions"] == 0
        crowded = asyncio.run(complete_all(daemon, range(NUM_REQUESTS), NUM_REQUESTS))
        state = daemon.state()
        assert state["preemptions"] > 0
        for index in range(NUM_REQUESTS):
            assert crowded[index]["finish_reason"] == "length"
            assert len(crowded[index]["token_ids"]) == NUM_TOKENS
            assert crowded[index]["token_ids"] == alone[index]["token_ids"]
        daemon.wait_pool_whole()
