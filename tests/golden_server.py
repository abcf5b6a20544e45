"""A server whose tokens, pacing and faults are known: what the measuring client is tested against.

It speaks enough of OpenAI's API over real sockets. Output token i of every answer is the id FIRST_ID + i. Every write
is logged before it happens, on the monotonic clock, which all processes of a machine share.

    with golden_process(Script(delays_s=(0.1, 0.02))) as golden:
        run_bench(BenchPlan(url=golden.url, ...))
        golden.log()
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

FIRST_ID = 5000
CHAT_TOKENS, TURN_TOKENS, SPECIAL_TOKENS = 7, 4, 1  # of a chat, of each of its messages, of a text
FAULT_AFTER = 2  # tokens


@dataclass(frozen=True)
class Script:
    """`faults`: by the number at the end of x-request-id, one of the names in `Call.answer`."""

    delays_s: tuple[float, ...] = ()  # before token 0, 1, ..; the last one for all that follow; empty: none
    tokens_per_event: int = 1
    tells: str = "ids"  # ids; usage: running (every event), last (the last one), usage (one more); nothing
    owner: str = "golden"
    key: str = ""
    faults: dict[str, str] = field(default_factory=dict)
    refuses: tuple[str, ...] = ()  # fields answered with 400
    takes_ids: bool = True
    has_tokenize: bool = True
    hold: int = 0  # answer nobody until so many generations are under way
    ends_streams: bool = True  # with [DONE]
    is_loading: bool = False  # 503 to everything


@dataclass(frozen=True)
class Sent:
    """One request as the server saw it."""

    name: str  # x-request-id
    received_s: float
    prompt: Any  # or messages
    max_tokens: int
    headers: dict[str, str]
    write_s: list[float]  # just before each event that holds tokens was written


class Golden:
    """The server of one script on one event loop."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.sent: list[Sent] = []
        self.under_way = 0
        self.most_under_way = 0
        self.pace: Callable[[Call, dict[str, Any], Sent], Awaitable[None]] | None = None  # streams instead
        self._full = asyncio.Event()
        self._server: asyncio.Server | None = None

    async def start(self, port: int = 0) -> int:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", port, backlog=2048, limit=1 << 24)
        return int(self._server.sockets[0].getsockname()[1])

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            method, path, _ = head[0].split(" ")
            headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:] if line)}
            body = await reader.readexactly(int(headers.get("content-length", 0)))
            await self._route(Call(self, writer, headers), method, path, json.loads(body) if body else {})
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # the client has left
        finally:
            writer.close()

    async def _route(self, call: Call, method: str, path: str, body: dict[str, Any]) -> None:
        script = self.script
        if script.key and call.headers.get("authorization") != f"Bearer {script.key}":
            call.json(401, {"error": {"message": "wrong key"}})
        elif script.is_loading:
            call.json(503, {"error": {"message": "Loading model"}})
        elif path == "/v1/models":
            call.json(200, {"data": [{"id": "golden", "owned_by": script.owner}]})
        elif path == "/tokenize" and script.has_tokenize:
            call.json(200, {"tokens": [1] * count_text(body["prompt"])})
        elif method == "POST" and path in ("/v1/completions", "/v1/chat/completions"):
            refused = [name for name in script.refuses if name in body]
            if isinstance(body.get("prompt"), list) and not script.takes_ids:
                call.json(400, {"error": {"message": "prompt must be a string"}})
            elif refused:
                call.json(400, {"error": {"message": f"unknown parameter {refused[0]}"}})
            else:
                await self._generate(call, body)
        else:
            call.json(404, {"error": {"message": "no such path"}})

    async def _generate(self, call: Call, body: dict[str, Any]) -> None:
        name = call.headers.get("x-request-id", "")
        sent = Sent(
            name, time.monotonic(), body.get("prompt", body.get("messages")), body["max_tokens"], call.headers, []
        )
        self.sent.append(sent)
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        try:
            if name and self.under_way >= self.script.hold:
                self._full.set()
            if name and self.script.hold:
                await self._full.wait()
            if self.pace is not None:
                await self.pace(call, body, sent)
                return
            await call.answer(body, sent, self.script.faults.get(name.rpartition("-")[2], ""))
        finally:
            self.under_way -= 1


@dataclass
class Call:
    """One answer."""

    golden: Golden
    writer: asyncio.StreamWriter
    headers: dict[str, str]

    def json(self, status: int, value: object, **headers: str) -> None:
        self.head(status, "application/json", headers)
        self.writer.write(json.dumps(value).encode())

    def head(self, status: int, kind: str, headers: dict[str, str], *, chunked: bool = False) -> None:
        lines = [f"HTTP/1.1 {status} Golden", f"Content-Type: {kind}", "Connection: close"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        lines += ["Transfer-Encoding: chunked"] if chunked else []
        self.writer.write("\r\n".join(lines).encode() + b"\r\n\r\n")

    def reset(self) -> None:
        """RST instead of FIN."""
        linger = struct.pack("ii", 1, 0)
        self.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.writer.transport.abort()

    async def answer(self, body: dict[str, Any], sent: Sent, fault: str) -> None:
        if fault.isdigit():
            self.json(int(fault), {"error": {"message": f"scripted {fault}"}}, Retry_After="3")
        elif fault == "content_type":
            self.json(200, {"choices": [{"text": "whole", "finish_reason": "stop"}]})
        elif fault == "reset":
            self.reset()
        elif fault == "not_http":
            self.writer.write(b"garbage\r\n\r\n")
        elif fault == "hang":
            await asyncio.Event().wait()
        else:
            await self._stream(body, sent, fault)

    async def _stream(self, body: dict[str, Any], sent: Sent, fault: str) -> None:
        self.head(200, "text/event-stream; charset=utf-8", {}, chunked=True)
        script, total, done = self.golden.script, body["max_tokens"], 0
        delay_s = 0.0
        while done < total:
            if fault and done >= FAULT_AFTER and await self._break(fault):
                return
            new = min(script.tokens_per_event, total - done)
            delay_s = script.delays_s[len(sent.write_s)] if len(sent.write_s) < len(script.delays_s) else delay_s
            if delay_s:
                await asyncio.sleep(delay_s)
            sent.write_s.append(time.monotonic())
            self.event(self.chunk(body, done, new, total))
            await self.writer.drain()
            done += new
        if script.tells not in ("last", "nothing") and body.get("stream_options", {}).get("include_usage"):
            self.event({"choices": [], "usage": _usage(body, total)})
        if script.ends_streams:
            self.send(b"data: [DONE]\n\n")
        self.writer.write(b"0\r\n\r\n")

    async def _break(self, fault: str) -> bool:
        if fault == "error_event":
            self.event({"error": {"message": "scripted error"}})
        elif fault == "bad_event":
            self.send(b"data: {broken\n\n")
        elif fault == "stall":
            await self.writer.drain()
            await asyncio.Event().wait()
        elif fault == "reset_midway":
            await self.writer.drain()
            self.reset()
            return True
        elif fault == "cut":  # the connection ends in the middle of a chunked body
            return True
        self.writer.write(b"0\r\n\r\n")  # `no_done`: the body ends well and the answer does not
        return True

    def chunk(self, body: dict[str, Any], done: int, new: int, total: int) -> dict[str, Any]:
        text = "".join(f" w{index}" for index in range(done, done + new))
        choice: dict[str, Any] = {"index": 0, "finish_reason": "length" if done + new == total else None}
        choice |= {"delta": {"content": text}} if "messages" in body else {"text": text}
        event: dict[str, Any] = {"choices": [choice]}
        if self.golden.script.tells == "ids":
            choice["token_ids"] = list(range(FIRST_ID + done, FIRST_ID + done + new))
        elif self.golden.script.tells == "running" or (self.golden.script.tells == "last" and done + new == total):
            event["usage"] = _usage(body, done + new)
        return event

    def event(self, value: object) -> None:
        self.send(b"data: " + json.dumps(value).encode() + b"\n\n")

    def send(self, data: bytes) -> None:
        self.writer.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")


def count_text(text: str) -> int:
    """This server's tokenizer: a word is a token, and a text begins with a special one."""
    return len(text.split()) + SPECIAL_TOKENS


def count_prompt(body: dict[str, Any]) -> int:
    if "messages" in body:
        words = sum(len(message["content"].split()) for message in body["messages"])
        return words + CHAT_TOKENS + TURN_TOKENS * len(body["messages"])
    prompt = body["prompt"]
    return len(prompt) if isinstance(prompt, list) else count_text(prompt)


def _usage(body: dict[str, Any], completion_tokens: int) -> dict[str, Any]:
    return {
        "prompt_tokens": count_prompt(body),
        "completion_tokens": completion_tokens,
        "prompt_tokens_details": {"cached_tokens": 3},
    }


@contextlib.asynccontextmanager
async def golden_here(script: Script) -> Any:
    """On this event loop: (server, port)."""
    golden = Golden(script)
    port = await golden.start()
    try:
        yield golden, port
    finally:
        await golden.stop()


class GoldenProcess:
    """In a process of its own."""

    def __init__(self, script: Script, folder: Path) -> None:
        self._log = folder / "log.json"
        command = [sys.executable, "-m", "tests.golden_server", json.dumps(asdict(script)), str(self._log)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1])
        assert self.process.stdout is not None
        self.url = f"http://127.0.0.1:{int(self.process.stdout.readline())}"
        self.most_under_way = 0

    def log(self) -> list[Sent]:
        """Ends the server; everything it has seen, probes included, in order of arrival."""
        self.process.send_signal(signal.SIGTERM)
        self.process.wait()
        told = json.loads(self._log.read_text())
        self.most_under_way = told["most_under_way"]
        return [Sent(**each) for each in told["sent"]]

    def runs(self) -> list[Sent]:
        """Of the load only, in order of schedule."""
        return sorted((each for each in self.log() if each.name), key=lambda each: int(each.name.rpartition("-")[2]))


@contextlib.contextmanager
def golden_process(script: Script | None = None) -> Iterator[GoldenProcess]:
    with tempfile.TemporaryDirectory(prefix="golden-") as folder:
        golden = GoldenProcess(script or Script(), Path(folder))
        try:
            yield golden
        finally:
            golden.process.kill()
            golden.process.wait()
            assert golden.process.stdout is not None
            golden.process.stdout.close()


async def _main(script: Script, log: Path) -> None:
    golden, stop = Golden(script), asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    print(await golden.start(), flush=True)
    await stop.wait()
    log.write_text(
        json.dumps({"most_under_way": golden.most_under_way, "sent": [asdict(each) for each in golden.sent]})
    )


if __name__ == "__main__":
    import resource

    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    asyncio.run(_main(Script(**json.loads(sys.argv[1])), Path(sys.argv[2])))
