"""uvicorn's HTTP protocol with what a server on an open port needs besides: time limits for clients that stall.

A client must send its headers, and then every further part of its body, within `header_timeout_s`, and all of its body
within `BODY_TIMEOUTS` times that; a client that does
not read while output waits is cut off after `slow_client_timeout_s` without progress. Malformed HTTP gets an answer
in OpenAI's error shape.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from typing import Any, Protocol

import orjson
import structlog
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

BODY_TIMEOUTS = 4  # a body may take this many `header_timeout_s`, however it comes
SEND_BUFFER_BYTES = 128 * 1024  # Linux takes it twice
CONNECTION_KEY = "colocate.connection"  # in the ASGI scope

_log = structlog.get_logger("colocate.frontend")


class Connection(Protocol):
    """What an application may do to the connection of its request."""

    def cut(self, cause: str) -> None:
        """Drop the connection and its unsent output now. The application sees `http.disconnect`."""
        ...


class StallLimits(HttpToolsProtocol):
    """uvicorn makes one per connection from the class alone: the limits are attributes of a subclass."""

    header_timeout_s: float
    slow_client_timeout_s: float

    _read_timer: asyncio.TimerHandle | None = None
    _write_timer: asyncio.TimerHandle | None = None
    _body_until_s: float | None = None  # in the event loop's time, while a body is being read
    _unsent_bytes = 0

    # a client that sends too slowly

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        connection = transport.get_extra_info("socket")
        if connection is not None:
            # The kernel's buffer of unread output grows to megabytes by itself. No stream of text needs that.
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        self._arm_read()

    def data_received(self, data: bytes) -> None:
        if self._read_timer is None and (self.cycle is None or self.cycle.response_complete):
            self._arm_read()  # the next request on a connection that was idle
        super().data_received(data)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope[CONNECTION_KEY] = self  # type: ignore[literal-required]

    def on_body(self, body: bytes) -> None:
        self._arm_read()
        super().on_body(body)

    def on_headers_complete(self) -> None:
        self._body_until_s = self.loop.time() + BODY_TIMEOUTS * self.header_timeout_s
        self._arm_read()
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._body_until_s = None
        self._disarm_read()
        super().on_message_complete()

    def _arm_read(self) -> None:
        self._disarm_read()
        until_s = self.loop.time() + self.header_timeout_s
        if self._body_until_s is not None:
            until_s = min(until_s, self._body_until_s)
        self._read_timer = self.loop.call_at(until_s, self._read_stalled)

    def _disarm_read(self) -> None:
        if self._read_timer is not None:
            self._read_timer.cancel()
            self._read_timer = None

    def _read_stalled(self) -> None:
        self._read_timer = None
        if self.transport.is_closing():
            return
        started = self.cycle is not None and self.cycle.response_started and not self.cycle.response_complete
        if not started:
            message = (
                f"the request was not complete within {self.header_timeout_s:g} s of its last part, "
                f"or its body within {BODY_TIMEOUTS * self.header_timeout_s:g} s"
            )
            self.transport.write(_raw_error(b"408 Request Timeout", message, "request_timeout"))
        self.transport.close()

    # a client that reads too slowly

    def pause_writing(self) -> None:
        super().pause_writing()
        self._arm_write()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._disarm_write()

    def _arm_write(self) -> None:
        self._unsent_bytes = self.transport.get_write_buffer_size()
        self._write_timer = self.loop.call_later(self.slow_client_timeout_s, self._write_stalled)

    def _disarm_write(self) -> None:
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None

    def _write_stalled(self) -> None:
        if self.transport.get_write_buffer_size() < self._unsent_bytes:
            self._arm_write()  # slow, but it reads
        else:
            self.cut(f"read nothing for {self.slow_client_timeout_s:g} s")

    # both

    def cut(self, cause: str) -> None:
        _log.warning("client cut off", client=self.client, cause=cause)
        connection = self.transport.get_extra_info("socket")
        if connection is not None:  # reset: the kernel would go on trying to deliver what it holds
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._disarm_read()
        self._disarm_write()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        self._disarm_read()
        self.transport.write(_raw_error(b"400 Bad Request", msg, "invalid_http"))
        self.transport.close()


def http_protocol(header_timeout_s: float, slow_client_timeout_s: float) -> type[HttpToolsProtocol]:
    """A protocol class for `uvicorn.Config(http=...)`."""
    limits = {"header_timeout_s": header_timeout_s, "slow_client_timeout_s": slow_client_timeout_s}
    return type("LimitedProtocol", (StallLimits,), limits)


def _raw_error(status: bytes, message: str, code: str) -> bytes:
    error: dict[str, Any] = {"message": message, "type": "invalid_request_error", "param": None, "code": code}
    body = orjson.dumps({"error": error})
    return b"HTTP/1.1 %b\r\ncontent-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n%b" % (
        status,
        len(body),
        body,
    )
