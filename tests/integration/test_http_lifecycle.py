"""The frontend among the other processes: readiness, drain, a lost engine, and what it serves by itself."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from colocate.messages.control import ChannelBroken, Drain, Drained
from colocate.types import Role
from tests.byte_tokenizer import write_model_dir
from tests.frontend_calls import (
    HTTP,
    complete,
    expected,
    get,
    metrics,
    num_tokens,
    stream_text,
    value,
)
from tests.frontend_harness import MODEL, RunningFrontend, process_table, start_frontend, wait_until
from tests.limits import LIMIT_S
from tests.scripted_engine import Script


@pytest.fixture
def frontend(tmp_path: Path) -> Iterator[RunningFrontend]:
    running = start_frontend(write_model_dir(tmp_path), HTTP)
    wait_until(lambda: get(running, "/ready").status_code == 200)
    yield running
    running.stop()


class TestReadiness:
    def test_not_before_the_first_ready(self, tmp_path: Path) -> None:
        frontend = start_frontend(write_model_dir(tmp_path), ready=False)
        try:
            assert get(frontend, "/health").status_code == 200
            frontend.control.send(process_table(phase="weights", engine="starting"))
            wait_until(lambda: get(frontend, "/ready").json()["phase"] == "weights")
            assert get(frontend, "/ready").status_code == 503
            refused = complete(frontend)
            assert refused.status_code == 503 and int(refused.headers["retry-after"]) >= 1
            assert value(metrics(frontend), "colocate_requests_rejected_total", status="503") == 1
            frontend.control.send(process_table())
            wait_until(lambda: get(frontend, "/ready").status_code == 200)
            assert complete(frontend).status_code == 200
        finally:
            frontend.stop()

    def test_a_recovering_worker_turns_nobody_away(self, frontend: RunningFrontend) -> None:
        frontend.control.send(process_table(phase="recovering: prefill"))
        wait_until(lambda: get(frontend, "/ready").status_code == 503)
        assert complete(frontend).status_code == 200

    def test_messages_for_others_are_harmless(self, frontend: RunningFrontend) -> None:
        frontend.control.send(ChannelBroken(Role.DECODE, "x"))
        assert complete(frontend).status_code == 200


class TestDrain:
    async def test_finishes_what_runs_and_admits_nothing(self, frontend: RunningFrontend) -> None:
        frontend.script.hold_after = 10
        stream = asyncio.create_task(stream_text(frontend, max_tokens=30))
        await asyncio.to_thread(wait_until, lambda: frontend.engine.positions == [10])
        frontend.control.send(Drain(600.0))
        await asyncio.to_thread(wait_until, lambda: get(frontend, "/ready").json()["phase"] == "draining")
        refused = await asyncio.to_thread(complete, frontend)
        assert refused.status_code == 503 and 1 <= int(refused.headers["retry-after"]) <= 600
        assert frontend.engine.positions == [10], "not ready at once, while a request runs"
        frontend.engine.release()
        text, chunks = await stream
        assert text == expected(30) and chunks[-1]["choices"][0]["finish_reason"] == "length"  # type: ignore[index]
        assert isinstance(await asyncio.to_thread(frontend.wait_for, Drained), Drained)

    async def test_the_deadline_ends_streams_with_an_error(self, frontend: RunningFrontend) -> None:
        frontend.script.hold_after = 3
        stream = asyncio.create_task(stream_text(frontend, max_tokens=30))
        await asyncio.to_thread(wait_until, lambda: num_tokens(frontend) == 3)
        frontend.control.send(Drain(0.3))
        text, chunks = await stream
        assert text == expected(3) and chunks[-1]["error"]["code"] == "shutting_down"  # type: ignore[index]
        await asyncio.to_thread(frontend.wait_for, Drained)
        await asyncio.to_thread(wait_until, lambda: bool(frontend.engine.aborted))

    def test_idle_drains_at_once(self, frontend: RunningFrontend) -> None:
        frontend.control.send(Drain(3600.0))
        frontend.wait_for(Drained)


class TestLostEngine:
    @pytest.mark.parametrize("n", [1, 3])
    async def test_streams_go_on_with_the_successor(self, frontend: RunningFrontend, n: int) -> None:
        frontend.script.token_gap_s, frontend.script.hold_after = 0.002, 10
        stream = asyncio.create_task(stream_text(frontend, max_tokens=25, prompt=[1], seed=7))
        others = [asyncio.create_task(asyncio.to_thread(complete, frontend, max_tokens=25)) for _ in range(n)]
        await asyncio.to_thread(wait_until, lambda: num_tokens(frontend) == 10 * (1 + n))
        before = frontend.engine.submits[:]
        successor = await asyncio.to_thread(frontend.replace_engine, Script(token_gap_s=0.002))
        text, chunks = await stream
        assert text == expected(25)
        assert chunks[-1]["choices"][0]["finish_reason"] == "length"  # type: ignore[index]
        for other in others:
            body = (await other).json()
            assert body["choices"][0]["text"] == expected(25) and body["usage"]["completion_tokens"] == 25
        again = {submit.request_id: submit for submit in successor.submits}
        assert set(again) == {submit.request_id for submit in before}
        for submit in before:
            repeated = again[submit.request_id]
            assert repeated.resubmitted and repeated.params == submit.params
            assert repeated.arrival_ns == submit.arrival_ns and len(repeated.output_token_ids) == 10

    async def test_a_request_sent_while_there_is_no_engine_waits(self, frontend: RunningFrontend) -> None:
        frontend.engine.stop()
        waiting = asyncio.create_task(asyncio.to_thread(complete, frontend))
        await asyncio.sleep(0.1)
        await asyncio.to_thread(frontend.replace_engine)
        response = await waiting
        assert response.status_code == 200 and response.json()["choices"][0]["text"] == expected(5)

    async def test_a_stream_waits_with_comments(self, frontend: RunningFrontend) -> None:
        frontend.engine.stop()
        async with (
            httpx.AsyncClient(timeout=LIMIT_S) as client,
            client.stream(
                "POST",
                f"{frontend.url}/v1/completions",
                json={"model": MODEL, "prompt": [1], "max_tokens": 5, "stream": True},
            ) as response,
        ):
            lines = response.aiter_lines()
            assert response.status_code == 200 and await anext(lines) == ": keep-alive"
            await asyncio.to_thread(frontend.replace_engine)
            rest = [line async for line in lines]
        assert rest[-2] == "data: [DONE]"

    async def test_missing_messages_are_reported_and_survived(self, frontend: RunningFrontend) -> None:
        frontend.script.token_gap_s, frontend.script.hold_after = 0.002, 10
        stream = asyncio.create_task(stream_text(frontend, max_tokens=25))
        await asyncio.to_thread(wait_until, lambda: num_tokens(frontend) == 10)
        frontend.engine.skip_a_number.set()
        broken = await asyncio.to_thread(frontend.wait_for, ChannelBroken)
        assert isinstance(broken, ChannelBroken) and broken.role is Role.ENGINE
        await asyncio.to_thread(frontend.replace_engine, Script())
        assert (await stream)[0] == expected(25)

    async def test_it_stays_away(self, tmp_path: Path) -> None:
        frontend = start_frontend(write_model_dir(tmp_path), HTTP, start_timeout_s=0.5)
        try:
            frontend.script.hold_after = 2
            await asyncio.to_thread(wait_until, lambda: get(frontend, "/ready").status_code == 200)
            stream = asyncio.create_task(stream_text(frontend, max_tokens=9))
            plain = asyncio.create_task(asyncio.to_thread(complete, frontend, max_tokens=9))
            await asyncio.to_thread(wait_until, lambda: num_tokens(frontend) == 4)
            frontend.control.send(process_table(phase="recovering: engine", engine="lost"))
            text, chunks = await stream
            assert text == expected(2) and chunks[-1]["error"]["code"] == "engine_lost"  # type: ignore[index]
            assert (await plain).status_code == 503
        finally:
            frontend.stop()


def test_page_is_self_contained(frontend: RunningFrontend) -> None:
    page = get(frontend, "/")
    assert page.headers["content-type"].startswith("text/html")
    assert "http://" not in page.text and "https://" not in page.text and "/v1/chat/completions" in page.text


def test_openapi_lists_every_endpoint(frontend: RunningFrontend) -> None:
    document = get(frontend, "/openapi.json").json()
    assert {
        "/v1/completions", "/v1/chat/completions", "/v1/models", "/v1/models/{model_id}", "/health", "/ready",
        "/metrics", "/version", "/tokenize", "/detokenize", "/state", "/server_info", "/",
    } <= set(document["paths"])  # fmt: skip
    body = document["paths"]["/v1/completions"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert body["$ref"].rsplit("/", 1)[1] in document["components"]["schemas"]
