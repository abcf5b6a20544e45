"""Many hundred plan switches under load: no token lost, doubled or changed, and the ledger counts each one."""

from __future__ import annotations

import asyncio

import httpx

from tests.daemon import Daemon, start_daemon

NUM_REQUESTS = 1200
NUM_TOKENS = 6


async def run_requests(daemon: Daemon, concurrency: int) -> dict[int, list[int]]:
    """Short requests on few connections: phases go idle and busy all the time, so `elastic` switches at each end."""
    remaining = iter(range(NUM_REQUESTS))
    tokens: dict[int, list[int]] = {}

    async def connection(client: httpx.AsyncClient) -> None:
        for index in remaining:
            seed = index % 40
            body = {
                "model": "demo",
                "prompt": [5 + seed, 6, 7],
                "max_tokens": NUM_TOKENS,
                "seed": seed,
                "ignore_eos": True,
                "return_token_ids": True,
            }
            reply = await client.post("/v1/completions", json=body)
            assert reply.status_code == 200, reply.text
            tokens[index] = reply.json()["choices"][0]["token_ids"]

    async with httpx.AsyncClient(base_url=daemon.base_url, timeout=100) as client:
        await asyncio.gather(*(connection(client) for _ in range(concurrency)))
    return tokens


def test_switches_under_load_change_nothing() -> None:
    with start_daemon("--units", "132", "--log-level", "warning") as daemon:
        tokens = asyncio.run(run_requests(daemon, 3))
        state = daemon.state()
    assert len(tokens) == NUM_REQUESTS
    for index, drawn in tokens.items():
        assert len(drawn) == NUM_TOKENS
        assert drawn == tokens[index % 40], "the same request, the same tokens, whatever plan was in force"
    switches = state["switches"]
    assert switches["count"] > 600  # about two per request; a third of that where all three connections go in step
    assert switches["last"]["seq"] == switches["count"] + 1  # the first plan is number 1
    assert [switch["seq"] for switch in switches["recent"]] == list(
        range(switches["count"] - 62, switches["count"] + 2)
    )
    assert switches["recent"][-1]["from"] == switches["recent"][-2]["to"]
    kv = state["kv"]
    assert kv["blocks_free"] + kv["blocks_cached"] == kv["blocks_total"]
    assert sum(state["residency"].values()) > 0.999
