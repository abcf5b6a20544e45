"""What tests ask of a frontend that runs in a thread of theirs (`frontend_harness`), over HTTP."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from colocate.config.serve import HttpSection
from tests.frontend_harness import MODEL, RunningFrontend, wait_until
from tests.limits import LIMIT_S
from tests.scripted_engine import ALPHABET

HTTP = HttpSection(keepalive_s=0.2, metrics_compat=("vllm",))


def get(frontend: RunningFrontend, path: str) -> httpx.Response:
    return httpx.get(f"{frontend.url}{path}", timeout=LIMIT_S)


def complete(frontend: RunningFrontend, **body: object) -> httpx.Response:
    fields = {"model": MODEL, "prompt": [1], "max_tokens": 5, **body}
    return httpx.post(f"{frontend.url}/v1/completions", json=fields, timeout=LIMIT_S)


async def stream_text(frontend: RunningFrontend, **body: object) -> tuple[str, list[dict[str, object]]]:
    """The text of a stream and its events, however it ends."""
    async with httpx.AsyncClient(timeout=LIMIT_S) as client:
        fields = {"model": MODEL, "prompt": [1], "stream": True, **body}
        response = await client.post(f"{frontend.url}/v1/completions", json=fields)
    lines = [line[6:] for line in response.text.split("\n\n") if line.startswith("data: {")]
    chunks = [json.loads(line) for line in lines]
    return "".join(chunk["choices"][0]["text"] for chunk in chunks if chunk.get("choices")), chunks


def metrics(frontend: RunningFrontend) -> dict[str, object]:
    return {family.name: family for family in text_string_to_metric_families(get(frontend, "/metrics").text)}


def num_tokens(frontend: RunningFrontend) -> float:
    """How many the frontend has received so far, of all requests."""
    return value(metrics(frontend), "colocate_generation_tokens_total")


def fresh_state(frontend: RunningFrontend) -> dict[str, Any]:
    """`/state` once the engine has answered."""
    wait_until(lambda: get(frontend, "/state").status_code == 200)
    state: dict[str, Any] = get(frontend, "/state").json()
    return state


async def leave_after(frontend: RunningFrontend, tokens: int, **body: object) -> None:
    """A client that goes away once the frontend has received some tokens of its request."""
    before = num_tokens(frontend)
    async with httpx.AsyncClient(timeout=LIMIT_S) as client:
        task = asyncio.create_task(client.post(f"{frontend.url}/v1/completions", json={"model": MODEL, **body}))
        await asyncio.to_thread(wait_until, lambda: num_tokens(frontend) >= before + tokens)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def request_lines(capfd: pytest.CaptureFixture[str], number: int) -> list[dict[str, Any]]:
    """The log's lines of requests, once there are so many: a line follows its answer."""
    lines: list[dict[str, Any]] = []

    def complete() -> bool:
        new = [json.loads(line) for line in capfd.readouterr().err.splitlines() if line.startswith("{")]
        lines.extend(line for line in new if line["event"] == "request")
        return len(lines) >= number

    wait_until(complete)
    return lines


def expected(num_tokens: int) -> str:
    return "".join(chr(ALPHABET[(1 + position) % len(ALPHABET)]) for position in range(num_tokens))


def count(families: dict[str, object], name: str) -> float:
    return value(families, f"{name}_count")


def value(families: dict[str, object], name: str, **labels: str) -> float:
    for family in families.values():
        for sample in family.samples:  # type: ignore[attr-defined]
            if sample.name == name and labels.items() <= sample.labels.items():
                return float(sample.value)
    raise KeyError(name)
