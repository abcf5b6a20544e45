"""Sends a generation to its client, streamed or whole, and notices at once when the client is gone."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from colocate.errors import RequestError
from colocate.frontend.answers import DONE, KEEPALIVE, Answer, Usage, error_event
from colocate.frontend.engine_client import EngineClient
from colocate.frontend.errors import error_body
from colocate.frontend.generation import Generation, Update
from colocate.frontend.http_protocol import CONNECTION_KEY, Connection
from colocate.frontend.request_log import log_finished
from colocate.frontend.stages import stages_of
from colocate.frontend.text_workers import TextWorkers
from colocate.types import FinishReason

CLIENT_CLOSED = 499  # never sent: what the log says of a client that went away
LARGE_NUM_SCORES = 4000  # scored tokens and alternatives that take some 10 ms to render


@dataclass(slots=True, kw_only=True)
class Delivery:
    """Owns a generation from its submission to the last byte; `close` is reached on every way out."""

    generation: Generation
    client: EngineClient
    workers: TextWorkers
    answer: Answer
    request_id: str
    model: str
    keepalive_s: float
    include_usage: bool
    tell_stages: bool = False
    _closed: bool = False
    _watch: asyncio.Task[None] | None = field(default=None)

    def start(self, receive: Receive) -> None:
        """Submit, and watch the client from now on. Raises Overloaded."""
        self.generation.submitted_ns = time.monotonic_ns()
        self.client.submit(self.generation)
        self._watch = asyncio.get_running_loop().create_task(self._until_disconnect(receive))

    async def _until_disconnect(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        # here and now, not when the consumer gets to run: it may be blocked on the very client that is gone
        self.generation.disconnect()
        self.client.release(self.generation, FinishReason.ABORT)

    def usage(self) -> Usage:
        choices = self.generation.choices
        firsts = [choice for choice in choices if choice.submit.params.choice == 0]  # a prompt counts once
        return Usage(
            sum(len(choice.submit.prompt_token_ids) for choice in firsts),
            sum(choice.num_output_tokens for choice in choices),
            sum(choice.num_cached_tokens for choice in firsts),
        )

    def _stages(self) -> dict[str, Any]:
        return {"stages": stages_of(self.generation, time.monotonic_ns()).as_dict()} if self.tell_stages else {}

    async def whole(self) -> Response:
        """Raises RequestError where the generation failed."""
        status = 500
        try:
            await self.generation.wait()
            if self.generation.client_gone:
                status = CLIENT_CLOSED
                return Response(status_code=CLIENT_CLOSED)
            if self.generation.failure is not None:
                raise self.generation.failure
            updates = [choice.take() for choice in self.generation.choices]
            extra = {"usage": self.usage().as_dict(), **self._stages()}
            body = await self._render(updates, lambda: self.answer.whole(updates, extra))
            status = 200
            return Response(body, media_type="application/json")
        except RequestError as error:
            status = error.status
            raise
        finally:
            self.close(status)

    async def _render(self, updates: list[Update], render: Callable[[], bytes]) -> bytes:
        """Off the event loop where it takes long. Raises RequestError where the workers have no time for it."""
        num_scored = sum(len(update.scored) for update in updates)
        num_top = self.generation.choices[0].submit.params.logprobs or 0
        if num_scored * (num_top + 1) < LARGE_NUM_SCORES:
            return render()
        return await self.workers.run(render, "logprobs")

    async def stream(self) -> Response:
        """Waits for the first token, so that a rejection still gets its HTTP status, but not so long that the client
        would think the connection dead."""
        try:
            try:
                await asyncio.wait_for(self.generation.wait(), self.keepalive_s)
            except TimeoutError:
                pass
            if self.generation.client_gone:
                self.close(CLIENT_CLOSED)
                return Response(status_code=CLIENT_CLOSED)
            if self.generation.failure is not None:
                self.close(self.generation.failure.status)
                raise self.generation.failure
        except asyncio.CancelledError:
            self.close(500)
            raise
        return EventStream(self)

    async def send_events(self, send: Send) -> int:
        """The body of the stream, to its last byte. Returns the status for the log."""
        generation, answer = self.generation, self.answer
        head = answer.opening()
        while True:
            await generation.wait()
            if generation.client_gone:
                return CLIENT_CLOSED
            done, updates = generation.done, generation.take()
            try:
                body = head + await self._render(updates, lambda: b"".join(map(answer.event, updates)))  # noqa: B023
            except RequestError as error:
                generation.fail(error)
                body = head
            head = b""
            if generation.failure is not None:
                body += error_event(error_body(generation.failure)) + DONE
                await send({"type": "http.response.body", "body": body, "more_body": False})
                return generation.failure.status
            if done:
                extra = {"usage": self.usage().as_dict()} if self.include_usage else {}
                extra |= self._stages()
                body += (answer.closing(extra) if extra else b"") + DONE
                await send({"type": "http.response.body", "body": body, "more_body": False})
                return 200
            await send({"type": "http.response.body", "body": body or KEEPALIVE, "more_body": True})

    def close(self, status: int) -> None:
        """Idempotent: abort what still runs, count it, log it."""
        if self._closed:
            return
        self._closed = True
        if self._watch is not None:
            self._watch.cancel()
        self.client.release(self.generation, FinishReason.ABORT if status == CLIENT_CLOSED else FinishReason.ERROR)
        now_ns = time.monotonic_ns()
        stages = stages_of(self.generation, now_ns)
        if status == 200 and stages.stream_s is not None:
            self.generation.measures.stream_s.observe(stages.stream_s)
        log_finished(self.request_id, self.model, self.generation, status, stages, now_ns)


class EventStream(Response):
    """A server-sent event stream as an ASGI answer. A failure after the first byte becomes an error event."""

    media_type = "text/event-stream"

    def __init__(self, delivery: Delivery) -> None:
        super().__init__(headers={"cache-control": "no-cache", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._delivery = delivery

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        delivery = self._delivery
        connection: Connection | None = scope.get(CONNECTION_KEY)
        if connection is not None:
            delivery.generation.on_overflow(lambda: connection.cut("unread output over the limit"))
        keepalive = _KeepAlive(delivery.generation, delivery.keepalive_s)
        status = 500
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            status = await delivery.send_events(send)
        except Exception:
            delivery.generation.fail(RequestError("internal error", status=500, type="server_error"))
            raise
        finally:
            keepalive.cancel()
            delivery.close(status)


class _KeepAlive:
    """Wakes the consumer of an idle stream, which then sends a comment. One timer per stream, none per token."""

    def __init__(self, generation: Generation, interval_s: float) -> None:
        self._generation = generation
        self._interval_s = interval_s
        self._timer = asyncio.get_running_loop().call_later(interval_s, self._fire)

    def _fire(self) -> None:
        self._generation.wake()
        self._timer = asyncio.get_running_loop().call_later(self._interval_s, self._fire)

    def cancel(self) -> None:
        self._timer.cancel()
