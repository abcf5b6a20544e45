"""One HTTP request on a connection of its own, over asyncio and httptools.

A connection per request: an open-loop client must never wait for a free one, and a server that closes an idle
connection must not look like one that fails. Its set-up is part of every latency.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol, cast
from urllib.parse import urlsplit

import httptools

from colocate.errors import ConfigError

_KINDS: tuple[tuple[type[BaseException], str], ...] = (
    (ConnectionRefusedError, "refused"),
    (ConnectionResetError, "reset"),
    (BrokenPipeError, "reset"),
    (socket.gaierror, "unreachable"),
    (ssl.SSLError, "tls"),
    (OSError, "unreachable"),
)


class HttpError(Exception):
    """The exchange broke. `kind` is a word for a table."""

    def __init__(self, kind: str, message: str) -> None:
        self.kind = kind
        super().__init__(message)


@dataclass(frozen=True, slots=True)
class Address:
    """Where a server listens. `host` may be a name: `resolved` says what was found for it."""

    host: str
    port: int
    prefix: str  # of every path; without /v1
    tls: ssl.SSLContext | None = None
    resolved: str = ""

    @property
    def url(self) -> str:
        scheme, host = "https" if self.tls else "http", f"[{self.host}]" if ":" in self.host else self.host
        return f"{scheme}://{host}:{self.port}{self.prefix}"

    @property
    def is_local(self) -> bool:
        return self.resolved.startswith("127.") or self.resolved == "::1"


def parse_url(url: str) -> Address:
    """`http://host:port`, also with `/v1` or another prefix. Raises ConfigError."""
    remedy = "write it as http://127.0.0.1:8000"
    try:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise ConfigError("--url", f"{url!r} is no address: {error}", remedy) from None
    if parts.scheme not in ("http", "https") or not host:
        raise ConfigError("--url", f"{url!r} is no HTTP address", remedy)
    tls = ssl.create_default_context() if parts.scheme == "https" else None
    path = parts.path.rstrip("/")
    return Address(host, port or (443 if tls else 80), path.removesuffix("/v1"), tls)


async def resolve(address: Address) -> Address:
    """With its name looked up once, so that no request waits for that. Raises ConfigError."""
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise ConfigError(address.url, f"the name is unknown: {error.strerror}", "check --url") from None
    for info in found:  # a name may stand for several addresses and the server listen on one
        candidate = Address(address.host, address.port, address.prefix, address.tls, str(info[4][0]))
        try:
            transport, _ = await asyncio.wait_for(_connect(candidate, asyncio.Protocol), 10.0)
        except (OSError, TimeoutError):
            continue
        transport.close()
        return candidate
    return Address(address.host, address.port, address.prefix, address.tls, str(found[0][4][0]))


async def _connect(
    address: Address, protocol: Callable[[], asyncio.Protocol]
) -> tuple[asyncio.BaseTransport, asyncio.Protocol]:
    loop = asyncio.get_running_loop()
    name = address.host if address.tls else None
    return await loop.create_connection(
        protocol, address.resolved or address.host, address.port, ssl=address.tls, server_hostname=name
    )


def request_bytes(
    address: Address, method: str, path: str, body: bytes, headers: Mapping[str, str], accept: str = "*/*"
) -> bytes:
    """A whole request. Raises ConfigError for a header that is none."""
    host = f"[{address.host}]" if ":" in address.host else address.host
    lines = [
        f"{method} {address.prefix}{path} HTTP/1.1",
        f"Host: {host}:{address.port}",
        f"Accept: {accept}",
        "User-Agent: colocate-bench",
        "Connection: close",
    ]
    if body or method == "POST":
        lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
    for name, value in headers.items():
        if not name or any(character in name + value for character in "\r\n\0") or not name.isascii():
            raise ConfigError("--header", f"{name!r} cannot be sent as a header", "write NAME=VALUE on one line")
        lines.append(f"{name}: {value}")
    return "\r\n".join(lines).encode("latin-1", "replace") + b"\r\n\r\n" + body


class AnswerSink(Protocol):
    """What an exchange hands its answer to, in order. Exceptions other than HttpError must not be raised."""

    def head(self, status: int, headers: dict[str, str]) -> None:
        """Once. Names are in lower case. Raising HttpError ends the exchange with it."""
        ...

    def body(self, data: bytes) -> None:
        """Any number of times; `data` is the sink's own."""
        ...


class Exchange(asyncio.Protocol):
    """Sends one request as soon as it is connected and feeds the answer to its sink. Used once.

    `wait` returns when the answer is complete and raises HttpError where it breaks off before.
    """

    def __init__(self, request: bytes, sink: AnswerSink) -> None:
        self._request = request
        self._sink = sink
        self._parser = httptools.HttpResponseParser(self)
        self._headers: dict[str, str] = {}
        self._is_framed = False  # its end is told by length or chunks, not by the end of the connection
        self._has_head = False
        self._transport: asyncio.Transport | None = None
        self._done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def wait(self) -> None:
        try:
            await self._done
        finally:
            if self._transport is not None:
                self._transport.abort()

    # asyncio's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by its class
        self._transport.write(self._request)
        self._request = b""

    def data_received(self, data: bytes) -> None:
        if self._done.done():
            return
        try:
            self._parser.feed_data(data)
        except HttpError as error:
            self._end(error)
        except httptools.HttpParserError as error:
            cause = error.__context__  # what a callback raised comes wrapped
            self._end(cause if isinstance(cause, HttpError) else HttpError("not_http", f"not HTTP: {error}"))

    def connection_lost(self, error: Exception | None) -> None:
        if self._done.done():
            return
        if error is not None:
            self._end(HttpError(_kind_of(error), str(error) or type(error).__name__))
        elif not self._has_head:
            self._end(HttpError("reset", "the connection was closed without an answer"))
        elif self._is_framed:
            self._end(HttpError("cut_stream", "the connection was closed in the middle of the answer"))
        else:
            self._end(None)

    def _end(self, error: HttpError | None) -> None:
        if self._done.done():
            return
        if error is None:
            self._done.set_result(None)
        else:
            self._done.set_exception(error)

    # httptools' side

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        headers = self._headers
        self._has_head = True
        self._is_framed = "content-length" in headers or "chunked" in headers.get("transfer-encoding", "").lower()
        self._sink.head(self._parser.get_status_code(), headers)

    def on_body(self, data: bytes) -> None:
        self._sink.body(data)

    def on_message_complete(self) -> None:
        self._end(None)


async def exchange(address: Address, request: bytes, sink: AnswerSink, timeout_s: float) -> None:
    """One request and its whole answer. Raises HttpError, of kind `timeout` after `timeout_s`."""
    try:
        async with asyncio.timeout(timeout_s):
            _, protocol = await _connect(address, lambda: Exchange(request, sink))
            assert isinstance(protocol, Exchange)
            await protocol.wait()
    except TimeoutError:
        raise HttpError("timeout", f"no complete answer within {timeout_s:g} s") from None
    except OSError as error:
        raise HttpError(_kind_of(error), str(error)) from None


def _kind_of(error: BaseException) -> str:
    return next((kind for cause, kind in _KINDS if isinstance(error, cause)), "broken")


@dataclass(slots=True)
class Answer:
    """Implements `AnswerSink`: keeps everything."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    content: bytearray = field(default_factory=bytearray)

    def head(self, status: int, headers: dict[str, str]) -> None:
        self.status, self.headers = status, headers

    def body(self, data: bytes) -> None:
        self.content += data


async def ask(
    address: Address,
    method: str,
    path: str,
    headers: Mapping[str, str],
    body: bytes = b"",
    timeout_s: float = 30.0,
) -> Answer:
    """A whole answer, of any status. Raises HttpError."""
    answer = Answer()
    await exchange(address, request_bytes(address, method, path, body, headers), answer, timeout_s)
    return answer
