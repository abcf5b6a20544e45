"""One streamed answer of an OpenAI-compatible server, with the arrival time of every token."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec
import orjson

from colocate.bench.http import HttpError
from colocate.bench.records import Stages

TokenSource = Literal["ids", "usage", "events"]

# Finish reasons by which servers say that they gave up.
_GIVEN_UP = frozenset({"error", "abort", "aborted", "cancelled"})
_MOST_ERROR_TEXT = 500


@dataclass(slots=True)
class StreamSink:
    """Implements `bench.http.AnswerSink`: reads server-sent events as they come.

    Times are seconds by `clock`. It is filled while the answer comes, so that one that breaks off keeps what it has.
    """

    clock: Callable[[], float] = time.monotonic
    needs_done: bool = True  # the server ends its streams with [DONE]: one without is cut
    keep_text: bool = False
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    first_byte_s: float | None = None
    last_byte_s: float | None = None
    event_s: list[float] = field(default_factory=list)  # of each event that brought text or tokens
    event_tokens: list[int] = field(default_factory=list)  # how many, where the event says so; else 0
    token_ids: list[int] = field(default_factory=list)
    text: list[str] = field(default_factory=list)
    finish_reason: str | None = None
    prompt_tokens: int | None = None  # by the server's usage
    completion_tokens: int | None = None
    cached_tokens: int | None = None
    stages: Stages | None = None
    error: str | None = None
    error_kind: str = ""
    is_done: bool = False  # [DONE] was seen
    _names_ids: bool = False
    _counted: int = 0  # tokens told by usage so far
    _is_events: bool = False
    _rest: bytes = b""

    # AnswerSink

    def head(self, status: int, headers: dict[str, str]) -> None:
        self.status, self.headers = status, headers
        self._is_events = status == 200 and headers.get("content-type", "").startswith("text/event-stream")

    def body(self, data: bytes) -> None:
        now_s = self.clock()
        if self.first_byte_s is None:
            self.first_byte_s = now_s
        self.last_byte_s = now_s
        self._rest += data
        if not self._is_events:
            return
        *lines, self._rest = self._rest.split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                self._event(line[5:].strip(), now_s)

    # What came of it

    def settle(self) -> None:
        """The answer has come to its end: find out whether it is one."""
        if self.status != 200:
            self._fail(f"http_{self.status}", message_of(self._rest) or f"HTTP status {self.status}")
        elif not self._is_events:
            kind = self.headers.get("content-type", "none")
            self._fail("content_type", f"expected text/event-stream, got {kind}: {message_of(self._rest)}")
        elif self.finish_reason in _GIVEN_UP:
            self._fail("given_up", f"the server ended the answer with finish_reason {self.finish_reason!r}")
        elif self.finish_reason is None or (self.needs_done and not self.is_done):
            self._fail("cut_stream", "the stream ended before its answer was complete")

    def broke(self, error: HttpError) -> None:
        """The exchange raised. What the server said before weighs more; bytes after [DONE] are not missed."""
        if (self.is_done and self.finish_reason is not None and error.kind != "timeout") or self.status not in (0, 200):
            self.settle()
        else:
            self._fail(error.kind, str(error))

    @property
    def retry_after_s(self) -> float | None:
        try:
            return float(self.headers["retry-after"])
        except (KeyError, ValueError):
            return None

    def tokens(self) -> tuple[list[float], TokenSource]:
        """The arrival time of every token, and how they were counted.

        Ids and running counts say what each event held. Without them an event is a token, unless the usage at the end
        says otherwise: then the tokens are spread evenly over the events, the first with the first.
        """
        if self._names_ids or any(self.event_tokens):
            source: TokenSource = "ids" if self._names_ids else "usage"
            pairs = zip(self.event_s, self.event_tokens, strict=True)
            return [at_s for at_s, num_tokens in pairs for _ in range(num_tokens)], source
        num_events, total = len(self.event_s), self.completion_tokens
        if total is None or total == num_events or not num_events:
            return list(self.event_s), "events"
        return [self.event_s[index * num_events // total] for index in range(total)], "usage"

    def _fail(self, kind: str, message: str) -> None:
        if self.error is None:
            self.error_kind, self.error = kind, message[:_MOST_ERROR_TEXT]

    def _event(self, data: bytes, now_s: float) -> None:
        if data == b"[DONE]":
            self.is_done = True
            return
        try:
            event = orjson.loads(data)
            if event.get("error"):
                self._fail("stream_error", _error_text(event["error"]))
                return
            self._take(event, now_s)
        except (orjson.JSONDecodeError, TypeError, KeyError, AttributeError, IndexError, ValueError) as error:
            self._fail("bad_event", f"an event that cannot be read ({type(error).__name__}): {data[:200]!r}")

    def _take(self, event: dict[str, Any], now_s: float) -> None:
        usage = event.get("usage")
        if usage:
            self._take_usage(usage)
        if stages := event.get("stages"):
            self._take_stages(stages)
        choices = event.get("choices")
        if not choices:
            return
        choice = choices[0]
        text = choice.get("text")
        if text is None:
            delta = choice.get("delta") or {}
            text = delta.get("content") or delta.get("reasoning_content") or delta.get("reasoning") or ""
        ids = choice.get("token_ids")
        num_tokens = 0
        if ids is not None:
            self._names_ids = True
            self.token_ids += ids
            num_tokens = len(ids)
        elif usage and self.completion_tokens is not None and not self._is_total(choice):
            num_tokens = max(0, self.completion_tokens - self._counted)
            self._counted += num_tokens
        if text or num_tokens:
            self.event_s.append(now_s)
            self.event_tokens.append(num_tokens)
            if self.keep_text:
                self.text.append(text)
        self.finish_reason = choice.get("finish_reason") or self.finish_reason

    def _is_total(self, choice: dict[str, Any]) -> bool:
        """A first count beside the finish reason is of the whole answer (llama.cpp, transformers), no running one."""
        return bool(choice.get("finish_reason") and self.event_s) and not self._counted

    def _take_stages(self, stages: object) -> None:
        try:
            self.stages = msgspec.convert(stages, Stages)
        except msgspec.ValidationError:
            self.stages = None  # another server's word for something else

    def _take_usage(self, usage: dict[str, Any]) -> None:
        self.prompt_tokens = usage.get("prompt_tokens", self.prompt_tokens)
        self.completion_tokens = usage.get("completion_tokens", self.completion_tokens)
        details = usage.get("prompt_tokens_details")
        if details and details.get("cached_tokens") is not None:
            self.cached_tokens = details["cached_tokens"]


def message_of(body: bytes) -> str:
    """What the body of an error says: OpenAI's shape, FastAPI's, or its text."""
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError:
        return body[:_MOST_ERROR_TEXT].decode(errors="replace").strip()
    if isinstance(value, dict):
        for key in ("error", "detail", "message"):
            if value.get(key):
                return _error_text(value[key])
    return str(value)[:_MOST_ERROR_TEXT]


def _error_text(error: object) -> str:
    if isinstance(error, dict):
        return str(error.get("message") or error)[:_MOST_ERROR_TEXT]
    return str(error)[:_MOST_ERROR_TEXT]
