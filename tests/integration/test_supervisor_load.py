"""The daemon at its limits: one unit, no partition, more requests than it takes, and an end while it works."""

from __future__ import annotations

import asyncio
import signal
from collections import Counter

import httpx

from tests.daemon import Daemon, eventually, start_daemon
from tests.limits import LIMIT_S
from tests.streams import Stream, finished, wait_mid_stream

SLOW = ("--profile", "tests/data/slow_profile.yaml")


def _serves_four_at_once(daemon: Daemon) -> None:
    for stream in [Stream(daemon, number, max_tokens=8) for number in range(4)]:
        assert len(finished(stream)) == 8


def test_shared_mode_never_leaves_the_shared_plan() -> None:
    with start_daemon("--mode", "shared") as daemon:
        _serves_four_at_once(daemon)
        state = daemon.state()
        assert state["plan"]["name"] == "shared"
        assert set(state["residency"]) == {"shared"}
        assert state["switches"]["count"] == 0


def test_one_unit_is_shared() -> None:
    with start_daemon("--units", "1") as daemon:
        _serves_four_at_once(daemon)
        state = daemon.state()
        assert [plan["name"] for plan in state["plans"]] == ["shared"]
        assert set(state["residency"]) == {"shared"}


def test_sigterm_under_load_is_not_ready_at_once_and_finishes_what_runs() -> None:
    with (
        start_daemon(*SLOW, "--drain-timeout-s", "100") as daemon,
        httpx.Client(base_url=daemon.base_url, timeout=LIMIT_S) as client,
    ):
        streams = [Stream(daemon, number, max_tokens=250) for number in range(8)]
        wait_mid_stream(streams)
        assert client.get("/ready").status_code == 200
        daemon.process.send_signal(signal.SIGTERM)
        eventually(lambda: client.get("/ready").status_code == 503, what="/ready is 503")
        assert not any(stream.is_done for stream in streams), "too late: nothing was in flight"
        assert [len(finished(stream)) for stream in streams] == [250] * 8
        assert daemon.stop() == 0


def test_a_burst_is_served_or_told_to_come_back() -> None:
    num_requests = 200
    with start_daemon(*SLOW, "--max-queue", "8", "--max-num-seqs", "8") as daemon:
        replies = asyncio.run(_burst(daemon, num_requests))
        statuses = Counter(reply.status_code for reply in replies)
        assert set(statuses) == {200, 429}, statuses
        assert statuses[200] >= 8, "what fits into the queue, even where none of it begins before all have come"
        for reply in replies:
            if reply.status_code == 429:
                assert int(reply.headers["retry-after"]) >= 1
            else:
                assert reply.json()["usage"]["completion_tokens"] == 32
        daemon.wait_pool_whole()
        assert daemon.complete().status_code == 200


async def _burst(daemon: Daemon, num_requests: int) -> list[httpx.Response]:
    limits = httpx.Limits(max_connections=num_requests)
    async with httpx.AsyncClient(base_url=daemon.base_url, timeout=LIMIT_S, limits=limits) as client:
        body = {"model": "demo", "prompt": [5, 6, 7], "max_tokens": 32, "ignore_eos": True}
        return await asyncio.gather(*(client.post("/v1/completions", json=body) for _ in range(num_requests)))
