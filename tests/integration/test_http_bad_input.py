"""What clients do wrong: every refusal has OpenAI's shape and names the parameter; nobody else is slowed."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import msgspec
import openai
import pytest

from colocate.config.serve import HttpSection
from colocate.frontend.answers import CompletionAnswer
from colocate.frontend.generate_calls import MAX_SCORED_PROMPT
from colocate.frontend.http_protocol import BODY_TIMEOUTS
from colocate.messages.client import OutputItem, Outputs, Rejected, Submit
from colocate.messages.sampling import TokenLogprob
from colocate.transport.framing import MAX_FRAME_BYTES
from tests.byte_tokenizer import write_model_dir
from tests.frontend_harness import MODEL, RunningFrontend, start_frontend, wait_until
from tests.limits import LIMIT_S
from tests.scripted_engine import Script

USER = [{"role": "user", "content": "hi"}]
# The time limits on clients are far away, so that no client of a busy machine meets them, except where one is tested.
HTTP = HttpSection(
    max_body_bytes=200_000,
    header_timeout_s=600.0,
    slow_client_timeout_s=600.0,
    stream_buffer_bytes=64 * 1024 * 1024,
    keepalive_s=0.2,
    api_key=("secret", "other"),
)
HEADER_TIMEOUT_S = 0.5
KEY = {"authorization": "Bearer secret"}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningFrontend]:
    frontend = start_frontend(write_model_dir(tmp_path_factory.mktemp("model")), HTTP, max_model_len=200_000)
    yield frontend
    frontend.stop()


@pytest.fixture(scope="module")
def impatient(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningFrontend]:
    """Gives a client `HEADER_TIMEOUT_S` to send the next part of its request."""
    http = replace(HTTP, header_timeout_s=HEADER_TIMEOUT_S)
    frontend = start_frontend(write_model_dir(tmp_path_factory.mktemp("model")), http)
    yield frontend
    frontend.stop()


@pytest.fixture
def frontend(shared: RunningFrontend) -> RunningFrontend:
    shared.engine.script = Script()
    shared.engine.submits.clear()
    shared.engine.aborted.clear()
    return shared


def post(frontend: RunningFrontend, path: str = "/v1/completions", **body: object) -> httpx.Response:
    return httpx.post(
        f"{frontend.url}{path}", json={"model": MODEL, "prompt": "x", **body}, headers=KEY, timeout=LIMIT_S
    )


def error_of(response: httpx.Response) -> dict[str, object]:
    body = response.json()
    assert set(body) == {"error"} and set(body["error"]) == {"message", "type", "param", "code"}
    assert body["error"]["message"]
    error: dict[str, object] = body["error"]
    return error


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b"{not json", None),
        (b'{"model": "tiny", "prompt": "\xff\xfe"}', None),
        (b'{"model": "tiny", "prompt": "x", "temperature": NaN}', None),
        (b"[]", None),
        (b"", None),
        (b'{"prompt": "x"}', "model"),
        (b'{"model": "tiny"}', "prompt"),
        (b'{"model": "tiny", "prompt": ""}', "prompt[0]"),
        (b'{"model": "tiny", "prompt": []}', "prompt"),
        (b'{"model": "tiny", "prompt": 7}', "prompt"),
        (b'{"model": "tiny", "prompt": [1, 258]}', "prompt[1]"),
        (b'{"model": "tiny", "prompt": [[1], [-1]]}', "prompt[1][0]"),
        (b'{"model": "tiny", "prompt": [1, 99999999999999999999999]}', "prompt[1]"),
        (b'{"model": "tiny", "prompt": [1, true]}', "prompt[1]"),
        (b'{"model": "tiny", "prompt": [' + b"1," * 70_000 + b'"x"]}', "prompt[70000]"),
        (b'{"model": "tiny", "prompt": "x", "temperature": -1}', "temperature"),
        (b'{"model": "tiny", "prompt": "x", "max_tokens": 200000}', "max_tokens"),
        (b'{"model": "tiny", "prompt": "x", "min_tokens": 17}', "min_tokens"),
        (b'{"model": "tiny", "prompt": "x", "suffix": "y"}', "suffix"),
        (b'{"model": "tiny", "prompt": "x", "frobnicate": 1}', "frobnicate"),
        (b'{"model": "tiny", "prompt": "x", "stop": ' + json.dumps(["s"] * 100).encode() + b"}", "stop"),
        (b'{"model": "tiny", "prompt": "x", "n": 129}', "n"),
    ],
)
def test_refused_with_400(frontend: RunningFrontend, body: bytes, param: str | None) -> None:
    response = httpx.post(f"{frontend.url}/v1/completions", content=body, headers=KEY, timeout=LIMIT_S)
    assert response.status_code == 400
    assert error_of(response)["param"] == param
    assert not frontend.engine.submits


def test_more_choices_than_the_queue_holds(frontend: RunningFrontend) -> None:
    response = post(frontend, prompt=["x"] * 129, n=2)
    assert response.status_code == 400 and error_of(response)["param"] == "prompt"
    assert "256 choices" in str(error_of(response)["message"])
    assert post(frontend, prompt=["x"] * 128, n=2, max_tokens=1).status_code == 200


def test_too_many_scores(frontend: RunningFrontend) -> None:
    fields = {"echo": True, "max_tokens": 0, "logprobs": 19, "n": 2}
    response = post(frontend, prompt=[1] * 5001, **fields)
    assert response.status_code == 400 and error_of(response)["param"] == "logprobs"
    assert "200000" in str(error_of(response)["message"]) and not frontend.engine.submits


@pytest.mark.parametrize("stream", [False, True])
async def test_large_answers_keep_nobody_waiting(
    frontend: RunningFrontend, stream: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The most that may be asked for: it is rendered beside the event loop, and fits one message of the engine."""
    rendered_by: list[str] = []
    for name in ("whole", "event"):
        monkeypatch.setattr(CompletionAnswer, name, _noting_the_thread(getattr(CompletionAnswer, name), rendered_by))
    fields = {"model": MODEL, "prompt": [65] * 10_000, "echo": True, "max_tokens": 0, "logprobs": 19}
    async with httpx.AsyncClient(headers=KEY, timeout=LIMIT_S) as client:
        body = {**fields, "stream": stream}
        task = asyncio.create_task(client.post(f"{frontend.url}/v1/completions", json=body))
        while not task.done():
            assert (await client.get(f"{frontend.url}/health")).status_code == 200
            await asyncio.sleep(0.01)
        response = await task
    assert response.status_code == 200
    assert rendered_by and all(name.startswith("text") for name in rendered_by), "not by the event loop's thread"
    text = response.text.split("\n\n")[0].removeprefix("data: ") if stream else response.text
    assert len(json.loads(text)["choices"][0]["logprobs"]["top_logprobs"]) == 10_000


def _noting_the_thread(render: Callable[..., bytes], names: list[str]) -> Callable[..., bytes]:
    """The same, and the name of the thread that did it."""

    def noting(*arguments: object) -> bytes:
        names.append(threading.current_thread().name)
        return render(*arguments)

    return noting


def test_the_most_scores_fit_one_message() -> None:
    for num_top in (0, 5, 20):
        score = TokenLogprob(-1.5, [(2**31 - 1, -1.5)] * num_top)
        item = OutputItem(1 << 62, [1], None, [score], [score] * (MAX_SCORED_PROMPT // (num_top + 1)))
        assert len(msgspec.msgpack.encode(Outputs([item]))) < MAX_FRAME_BYTES / 4


@pytest.mark.parametrize("path", ["/v1/completions", "/tokenize", "/detokenize"])
def test_unknown_model(frontend: RunningFrontend, path: str) -> None:
    body = {"model": "gpt-9", "tokens": [1]} if path == "/detokenize" else {"model": "gpt-9", "prompt": "x"}
    response = httpx.post(f"{frontend.url}{path}", json=body, headers=KEY, timeout=LIMIT_S)
    assert response.status_code == 404 and error_of(response)["code"] == "model_not_found"


def test_unknown_paths_and_methods(frontend: RunningFrontend) -> None:
    assert httpx.get(f"{frontend.url}/v1/nothing", headers=KEY, timeout=LIMIT_S).status_code == 404
    response = httpx.get(f"{frontend.url}/v1/completions", headers=KEY, timeout=LIMIT_S)
    assert response.status_code == 405 and response.headers["allow"] == "POST" and error_of(response)


def test_keys(frontend: RunningFrontend) -> None:
    for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": "secret"}, {"authorization": "Bearer é"}):
        raw = {name: value.encode() for name, value in headers.items()}
        for path in ("/v1/models", "/state", "/server_info", "/v1/nothing"):
            response = httpx.get(f"{frontend.url}{path}", headers=raw, timeout=LIMIT_S)  # type: ignore[arg-type]
            assert response.status_code == 401 and response.headers["www-authenticate"] == "Bearer"
            assert error_of(response)["code"] == "invalid_api_key"
    for path in ("/health", "/ready", "/metrics", "/version"):
        assert httpx.get(f"{frontend.url}{path}", timeout=LIMIT_S).status_code == 200
    for key in HTTP.api_key:
        assert openai.OpenAI(base_url=f"{frontend.url}/v1", api_key=key).models.list().data[0].id == MODEL


@pytest.mark.parametrize("announced", [True, False])
def test_body_too_large(frontend: RunningFrontend, announced: bool) -> None:
    body = b'{"model": "tiny", "prompt": "' + b"x" * 300_000 + b'"}'
    content = body if announced else iter([body[:100_000], body[100_000:]])
    response = httpx.post(f"{frontend.url}/v1/completions", content=content, headers=KEY, timeout=LIMIT_S)
    assert response.status_code == 413 and error_of(response)["code"] == "body_too_large"


def test_rejections_of_the_engine(frontend: RunningFrontend) -> None:
    for stream in (False, True):
        for status, header in ((429, "3"), (503, "3"), (400, None)):
            frontend.script.reject = lambda submit, status=status: Rejected(submit.request_id, status, "full", 2.1)
            response = post(frontend, stream=stream)
            assert response.status_code == status and response.headers.get("retry-after") == header
            assert error_of(response)["message"] == "full"


def test_failure_before_the_first_byte_is_a_500(frontend: RunningFrontend) -> None:
    frontend.script.fail_at = 0
    assert post(frontend, stream=True).status_code == 500
    assert error_of(post(frontend))["type"] == "server_error"


def test_failure_in_mid_stream_raises_in_the_client(frontend: RunningFrontend) -> None:
    frontend.script.fail_at, frontend.script.token_gap_s = 5, 0.005
    client = openai.OpenAI(base_url=f"{frontend.url}/v1", api_key="secret", max_retries=0)
    text = ""
    with pytest.raises(openai.APIError, match="the script says so"):
        for chunk in client.completions.create(model=MODEL, prompt="x", max_tokens=50, stream=True):
            text += chunk.choices[0].text
    assert len(text) == 5


def test_keep_alive_comments_while_nothing_comes(frontend: RunningFrontend) -> None:
    frontend.script.first_token_s = 3600.0
    body = {"model": MODEL, "prompt": "x", "stream": True, "max_tokens": 2}
    started = time.monotonic()
    with httpx.stream("POST", f"{frontend.url}/v1/completions", json=body, headers=KEY, timeout=LIMIT_S) as response:
        lines = response.iter_lines()
        for _ in range(3):
            assert next(lines) == ": keep-alive" and next(lines) == ""
        assert time.monotonic() - started > 2.5 * HTTP.keepalive_s, "one per interval"
        frontend.engine.release()
        rest = list(lines)
    assert rest[-2:] == ["data: [DONE]", ""]


class TestDisconnect:
    @pytest.mark.parametrize("stream", [False, True])
    @pytest.mark.parametrize("hold_after", [0, 3])
    async def test_aborts_what_would_never_end(self, frontend: RunningFrontend, stream: bool, hold_after: int) -> None:
        frontend.script.hold_after, frontend.script.token_gap_s = max(1, hold_after), 0.005
        frontend.script.first_token_s = 3600.0 if hold_after == 0 else 0.0
        async with httpx.AsyncClient(timeout=LIMIT_S) as client:
            body = {"model": MODEL, "prompt": "x", "stream": stream, "n": 2}
            task = asyncio.create_task(client.post(f"{frontend.url}/v1/completions", json=body, headers=KEY))
            while frontend.engine.num_running < 2:
                await asyncio.sleep(0.005)
            await asyncio.sleep(0.3)  # past the first keep-alive: the stream has begun
            task.cancel()
        await asyncio.to_thread(wait_until, lambda: frontend.engine.num_running == 0)
        assert sorted(frontend.engine.aborted) == sorted(submit.request_id for submit in frontend.engine.submits)


class TestStallingClients:
    @pytest.mark.parametrize(
        "sent",
        [
            b"",
            b"POST /v1/completions HTTP/1.1\r\nhost: x\r\n",
            b"POST /v1/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer secret\r\ncontent-length: 50\r\n\r\n{",
        ],
    )
    def test_one_that_stops_sending_is_cut(self, impatient: RunningFrontend, sent: bytes) -> None:
        started = time.monotonic()
        with socket.create_connection(("127.0.0.1", impatient.port)) as connection:
            connection.sendall(sent)
            connection.settimeout(LIMIT_S)
            answer = b""
            while data := connection.recv(4096):
                answer += data
        assert time.monotonic() - started > 0.9 * HEADER_TIMEOUT_S
        assert answer.startswith(b"HTTP/1.1 408 ") and b"request_timeout" in answer

    def test_one_that_trickles_its_body_is_cut(self, impatient: RunningFrontend) -> None:
        """Every byte comes in time, the whole does not."""
        for _ in range(5):
            lasted_s, answer = _trickle(impatient)
            assert answer.startswith(b"HTTP/1.1 408 ")
            if lasted_s > 0.9 * BODY_TIMEOUTS * HEADER_TIMEOUT_S:
                return
            # a busy machine kept one byte back for longer than a header's time: that proves nothing of the body's
        raise AssertionError("it is always cut long before the time of a body")

    def test_an_idle_connection_may_be_used_again(self, impatient: RunningFrontend) -> None:
        with httpx.Client(headers=KEY, timeout=LIMIT_S) as client:
            assert client.get(f"{impatient.url}/v1/models").status_code == 200
            time.sleep(2 * HEADER_TIMEOUT_S)
            assert client.get(f"{impatient.url}/v1/models").status_code == 200

    def test_junk_gets_an_answer(self, frontend: RunningFrontend) -> None:
        with socket.create_connection(("127.0.0.1", frontend.port)) as connection:
            connection.sendall(b"\x16\x03\x01 what is this\r\n\r\n")
            connection.settimeout(LIMIT_S)
            assert b'"code":"invalid_http"' in connection.recv(4096)

    def test_nobody_waits_for_one_that_stops_reading(self, frontend: RunningFrontend) -> None:
        """The engine has said more than fits between server and client, and the client is not cut off yet."""
        _say_much(frontend)
        with _deaf_client(frontend):
            wait_until(lambda: frontend.engine.positions == [MUCH])
            for _ in range(5):
                assert post(frontend, max_tokens=5).json()["choices"][0]["text"] == "quick"
            assert frontend.engine.positions == [MUCH] and not frontend.engine.aborted
        wait_until(lambda: frontend.engine.num_running == 0)

    def test_one_that_stops_reading_is_cut(self, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
        """The time limit alone: the buffer holds all that is said."""
        frontend = start_frontend(
            write_model_dir(tmp_path), replace(HTTP, slow_client_timeout_s=0.6), max_model_len=200_000
        )
        try:
            _say_much(frontend)
            started = time.monotonic()
            with _deaf_client(frontend) as deaf:
                wait_until(lambda: len(frontend.engine.aborted) == 1)
                assert time.monotonic() - started > 0.6
                assert _causes(capfd) == ["read nothing for 0.6 s"]
                assert frontend.engine.aborted == [frontend.engine.submits[0].request_id]
                deaf.settimeout(LIMIT_S)
                with pytest.raises(ConnectionResetError):  # cut, not ended as if all had been said
                    while deaf.recv(1 << 20):
                        pass
        finally:
            frontend.stop()

    def test_unread_output_is_bounded(self, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
        """The full buffer alone: the time limit is far away."""
        frontend = start_frontend(
            write_model_dir(tmp_path), replace(HTTP, stream_buffer_bytes=512 * 1024), max_model_len=200_000
        )
        try:
            _say_much(frontend)
            with _deaf_client(frontend):
                wait_until(lambda: len(frontend.engine.aborted) == 1)
            assert _causes(capfd) == ["unread output over the limit"]
        finally:
            frontend.stop()


MUCH = 40_000  # tokens with scores: some megabytes, where the buffers of both kernels hold a fraction of one


def _say_much(frontend: RunningFrontend) -> None:
    """The script for a deaf client: much, and then neither more nor an end. For others: `quick`."""
    frontend.script.token = _long_or_quick
    frontend.script.tokens_per_item, frontend.script.token_gap_s = 200, 0.001
    frontend.script.hold_after = MUCH


def _causes(capfd: pytest.CaptureFixture[str]) -> list[str]:
    """Why clients were cut off, from the log."""
    lines = [json.loads(line) for line in capfd.readouterr().err.splitlines() if line.startswith("{")]
    return [line["cause"] for line in lines if line["event"] == "client cut off"]


def _trickle(frontend: RunningFrontend) -> tuple[float, bytes]:
    """A body byte by byte, five in the time of a header; how long that went on, and the answer."""
    head = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer secret\r\ncontent-length: 500\r\n\r\n"
    started = time.monotonic()
    with socket.create_connection(("127.0.0.1", frontend.port)) as connection:
        connection.sendall(head)
        connection.settimeout(HEADER_TIMEOUT_S / 5)
        answer = b""
        while not answer:
            assert time.monotonic() - started < LIMIT_S, "never cut"
            with contextlib.suppress(ConnectionError):  # cut just now: the answer is there to be read
                connection.sendall(b" ")
            with contextlib.suppress(TimeoutError):
                answer = connection.recv(4096)
        return time.monotonic() - started, answer


def _long_or_quick(submit: Submit, position: int) -> int:
    return ord("z") if submit.params.max_tokens > 1000 else b"quick"[position]


@contextlib.contextmanager
def _deaf_client(frontend: RunningFrontend) -> Iterator[socket.socket]:
    """Asks for a long stream with scores and never reads it."""
    fields = {"model": MODEL, "prompt": "x", "max_tokens": 190_000, "stream": True, "logprobs": 2}
    body = json.dumps(fields).encode()
    head = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer secret\r\ncontent-length: %d\r\n\r\n"
    with socket.socket() as deaf:
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        deaf.connect(("127.0.0.1", frontend.port))
        deaf.sendall(head % len(body) + body)
        yield deaf
