"""The five stages of a request: in its answer where asked for, in its log line and in the metrics."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

import httpx
import pytest

from tests.byte_tokenizer import write_model_dir
from tests.frontend_calls import HTTP, count, get, metrics, request_lines, value
from tests.frontend_harness import MODEL, RunningFrontend, start_frontend
from tests.limits import LIMIT_S

NAMES = ["tokenize_s", "queue_s", "prefill_s", "decode_s", "stream_s"]
ASKED = {"x-colocate-stages": "1"}
CALLS = [
    ("/v1/completions", {"prompt": [1]}),
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}]}),
]


@pytest.fixture
def frontend(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningFrontend]:
    frontend = start_frontend(write_model_dir(tmp_path_factory.mktemp("model")), HTTP)
    yield frontend
    frontend.stop()


def ask(frontend: RunningFrontend, path: str, headers: dict[str, str], **body: object) -> httpx.Response:
    fields = {"model": MODEL, "max_tokens": 3, **body}
    return httpx.post(f"{frontend.url}{path}", json=fields, headers=headers, timeout=LIMIT_S)


def events(response: httpx.Response) -> list[dict[str, object]]:
    lines = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line.startswith("data: ")]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


@pytest.mark.parametrize(("path", "prompt"), CALLS)
@pytest.mark.parametrize("usage", [False, True])
def test_the_last_event_of_a_stream(
    frontend: RunningFrontend, path: str, prompt: dict[str, object], usage: bool
) -> None:
    body = {**prompt, "stream": True, "stream_options": {"include_usage": usage}}
    told = events(ask(frontend, path, ASKED, **body))
    assert list(told[-1]["stages"]) == NAMES and told[-1]["choices"] == []  # type: ignore[call-overload]
    assert ("usage" in told[-1]) is usage
    assert not any("stages" in event for event in told[:-1])
    plain = events(ask(frontend, path, {}, **body))
    assert not any("stages" in event for event in plain)
    assert (plain[-1]["choices"] == []) is usage


@pytest.mark.parametrize(("path", "prompt"), CALLS)
def test_an_answer_that_is_not_streamed(frontend: RunningFrontend, path: str, prompt: dict[str, object]) -> None:
    began = time.monotonic()
    stages = ask(frontend, path, ASKED, n=2, **prompt).json()["stages"]
    lasted_s = time.monotonic() - began
    assert list(stages) == NAMES and all(spent_s >= 0 for spent_s in stages.values())
    assert 0 < sum(stages.values()) <= lasted_s
    for refusing in ({}, {"x-colocate-stages": "0"}):
        assert "stages" not in ask(frontend, path, refusing, **prompt).json()


def test_another_value_is_refused(frontend: RunningFrontend) -> None:
    refused = ask(frontend, "/v1/completions", {"x-colocate-stages": "yes"}, prompt=[1])
    assert refused.status_code == 400 and refused.json()["error"]["param"] == "x-colocate-stages"
    document = get(frontend, "/openapi.json").json()
    for path, _ in CALLS:
        headers = {known["name"]: known["schema"] for known in document["paths"][path]["post"]["parameters"]}
        assert headers["x-colocate-stages"] == {"type": "string", "enum": ["0", "1"]}


def test_the_log_line_and_the_metrics(frontend: RunningFrontend, capfd: pytest.CaptureFixture[str]) -> None:
    ask(frontend, "/v1/completions", {}, prompt=[1], n=3, request_id="three")
    (line,) = request_lines(capfd, 1)
    spent_ms = [line[f"{name[:-2]}_ms"] for name in NAMES]
    assert sum(spent_ms) == pytest.approx(line["e2e_ms"], abs=0.004)
    families = metrics(frontend)
    for stage in ("tokenize", "queue", "prefill", "decode"):  # of each choice
        assert count(families, f"colocate_request_{stage}_time_seconds") == 3
    assert count(families, "colocate_request_stream_time_seconds") == 1  # of the answer
    assert count(families, "vllm:request_queue_time_seconds") == 3
    assert value(families, "colocate_request_stream_time_seconds_sum") == pytest.approx(spent_ms[-1] / 1e3, abs=1e-6)
