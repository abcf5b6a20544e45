"""What a stream's bytes become: exact times and counts, from a clock that the test sets."""

from __future__ import annotations

import json
from dataclasses import dataclass

import pytest

from colocate.bench.http import HttpError
from colocate.bench.outcome import make_row
from colocate.bench.stream import StreamSink
from colocate.workload.rows import WorkloadRow

EVENTS = {"content-type": "text/event-stream; charset=utf-8"}


@dataclass
class Hand:
    """A clock that is set by hand."""

    now_s: float = 0.0

    def __call__(self) -> float:
        return self.now_s


def _event(value: object) -> bytes:
    return b"data: " + json.dumps(value).encode() + b"\n\n"


def _text(text: str, finish: str | None = None, **more: object) -> bytes:
    return _event({"choices": [{"text": text, "finish_reason": finish, **more}]})


def _usage(completion_tokens: int) -> bytes:
    return _event({"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": completion_tokens}})


def _heard(*parts: tuple[float, bytes], status: int = 200, headers: dict[str, str] | None = None) -> StreamSink:
    clock = Hand()
    sink = StreamSink(clock)
    sink.head(status, EVENTS if headers is None else headers)
    for clock.now_s, data in parts:
        sink.body(data)
    sink.settle()
    return sink


def test_every_token_has_the_time_of_the_bytes_that_completed_its_event() -> None:
    first, last = _text("a"), _text("b", "stop")
    sink = _heard((1.0, first[:-1]), (1.5, first[-1:] + last[:10]), (2.25, last[10:]), (3.0, b"data: [DONE]\n\n"))
    assert (sink.error, sink.tokens()) == (None, ([1.0, 2.25], "events"))  # the line was whole at 1.0
    assert (sink.first_byte_s, sink.last_byte_s) == (1.0, 3.0)


def test_ids_count_where_an_event_holds_several_tokens_and_no_text() -> None:
    sink = _heard(
        (1.0, _text("", token_ids=[5, 6])), (2.0, _text("x", "length", token_ids=[7])), (2.0, b"data: [DONE]\n\n")
    )
    assert sink.tokens() == ([1.0, 1.0, 2.0], "ids")
    assert sink.token_ids == [5, 6, 7]


def test_a_running_count_says_what_each_event_held() -> None:
    def event(text: str, total: int, finish: str | None = None) -> bytes:
        choice = {"text": text, "finish_reason": finish}
        return _event({"choices": [choice], "usage": {"prompt_tokens": 3, "completion_tokens": total}})

    sink = _heard((1.0, event("ab", 2)), (2.0, event("", 3)), (4.0, event("c", 6, "length") + b"data: [DONE]\n\n"))
    assert sink.tokens() == ([1.0, 1.0, 2.0, 4.0, 4.0, 4.0], "usage")


@pytest.mark.parametrize(
    ("total", "expected"),
    [(2, ([1.0, 2.0], "events")), (4, ([1.0, 1.0, 2.0, 2.0], "usage")), (3, ([1.0, 1.0, 2.0], "usage"))],
)
def test_usage_at_the_end_spreads_tokens_over_events(total: int, expected: tuple[list[float], str]) -> None:
    sink = _heard((1.0, _text("a")), (2.0, _text("b", "stop")), (3.0, _usage(total) + b"data: [DONE]\n\n"))
    assert sink.tokens() == expected
    assert sink.prompt_tokens == 9


@pytest.mark.parametrize(
    ("total", "expected"),
    [(2, ([1.0, 2.0], "events")), (4, ([1.0, 1.0, 2.0, 2.0], "usage"))],
)
def test_a_count_beside_the_finish_reason_is_of_the_whole_answer(total: int, expected: tuple[list[float], str]) -> None:
    """As llama.cpp ends a completion: its last event has no text, a choice and the only usage."""
    usage = {"prompt_tokens": 3, "completion_tokens": total}
    last = _event({"choices": [{"text": "", "finish_reason": "length"}], "usage": usage})
    sink = _heard((1.0, _text("a")), (2.0, _text("b")), (3.0, last + b"data: [DONE]\n\n"))
    assert sink.tokens() == expected
    assert _heard((1.0, last + b"data: [DONE]\n\n")).tokens() == ([1.0] * total, "usage")  # nothing else tells of any


def test_chat_deltas_and_roles() -> None:
    def delta(finish: str | None = None, **fields: str) -> bytes:
        return _event({"choices": [{"delta": fields, "finish_reason": finish}]})

    parts = (delta(role="assistant", content=""), delta(content="a"), delta(reasoning_content="b"), delta("stop"))
    sink = _heard(*((float(at), part) for at, part in enumerate(parts)), (9.0, b"data: [DONE]\n\n"))
    assert sink.tokens() == ([1.0, 2.0], "events")


def test_comments_and_stages() -> None:
    stages = {"tokenize_s": 0.1, "queue_s": 0.2, "prefill_s": 0.3, "decode_s": 0.4, "stream_s": 0.5}
    last = _event({"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 1}, "stages": stages})
    sink = _heard((1.0, b": keep-alive\n\n"), (2.0, _text("a", "stop") + last + b"data: [DONE]\n\n"))
    assert sink.tokens()[0] == [2.0]
    assert sink.stages is not None
    assert (sink.stages.queue_s, sink.stages.stream_s) == (0.2, 0.5)


DONE = b"data: [DONE]\n\n"
BROKEN = [
    ("http_500", 500, {"content-type": "text/plain"}, b"oops", "oops"),
    ("http_400", 400, {}, b'{"error": {"message": "too long"}}', "too long"),
    ("http_422", 422, {}, b'{"detail": "missing"}', "missing"),
    ("content_type", 200, {"content-type": "application/json"}, b"{}", "application/json"),
    ("stream_error", 200, EVENTS, _text("a") + _event({"error": {"message": "lost"}}) + DONE, "lost"),
    ("bad_event", 200, EVENTS, b"data: {\n\n" + _text("a", "stop") + DONE, "cannot be read"),
    ("bad_event", 200, EVENTS, b'data: {"choices": 3}\n\n' + DONE, "cannot be read"),
    ("bad_event", 200, EVENTS, b"data: 3\n\n" + DONE, "cannot be read"),
    ("cut_stream", 200, EVENTS, _text("a", "stop"), "before its answer was complete"),
    ("cut_stream", 200, EVENTS, _text("a") + DONE, "before its answer was complete"),
    ("cut_stream", 200, EVENTS, b"", "before its answer was complete"),
    ("given_up", 200, EVENTS, _text("a", "abort") + DONE, "abort"),
]


@pytest.mark.parametrize(("kind", "status", "headers", "body", "words"), BROKEN)
def test_what_is_no_answer_is_named(kind: str, status: int, headers: dict[str, str], body: bytes, words: str) -> None:
    sink = _heard((1.0, body), status=status, headers=headers)
    assert sink.error_kind == kind
    assert words in str(sink.error)


def test_an_error_status_weighs_more_than_the_connection_breaking_after_it() -> None:
    sink = StreamSink(Hand())
    sink.head(429, {"retry-after": "2.5"})
    sink.broke(HttpError("reset", "peer"))
    assert (sink.error_kind, sink.retry_after_s) == ("http_429", 2.5)


def test_a_connection_that_breaks_after_the_end_of_the_answer_is_not_missed() -> None:
    sink = StreamSink(Hand())
    sink.head(200, EVENTS)
    sink.body(_text("a", "stop") + b"data: [DONE]\n\n")
    sink.broke(HttpError("reset", "peer"))
    assert sink.error is None


def test_a_broken_stream_keeps_the_tokens_it_had() -> None:
    sink = StreamSink(Hand(4.0))
    sink.head(200, EVENTS)
    sink.body(_text("a"))
    sink.broke(HttpError("reset", "peer"))
    row = make_row(7, WorkloadRow(1.0, 3, 5), "measured", 1.0, 1.25, sink, "failed")
    assert (row.token_s, row.output_tokens, row.error_kind, row.sent_s) == ((4.0,), 1, "reset", 1.25)
