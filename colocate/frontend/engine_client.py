"""The frontend's end of the channel to the engine: submits, outputs, state queries, and what to do when it is lost.

Nothing is dropped: what the channel refuses waits in an outbox. When the engine of a new epoch is announced, every
request in flight is submitted to it again with the output tokens received so far, so its stream goes on.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable

import structlog
from msgspec import Struct, structs

from colocate.errors import ChannelClosed, Overloaded, RequestError
from colocate.frontend.generation import Choice, Generation
from colocate.frontend.slo import SloTable
from colocate.messages.client import (
    Abort,
    ChangeSlo,
    ControlReply,
    EngineState,
    OutputItem,
    Outputs,
    PinPlan,
    Rejected,
    StateQuery,
)
from colocate.transport.channel import Channel
from colocate.types import FinishReason, RequestId

OpenChannel = Callable[[str], Channel]

_RETRY_S = 0.005  # outbox: a channel that refused is asked again this soon
_TURN_S = 0.005  # of the event loop, for what the engine says; then clients are served in between
_log = structlog.get_logger("colocate.frontend")


class EngineClient:
    """Lives on the event loop. Owns the channel and the table of requests in flight."""

    def __init__(
        self,
        open_channel: OpenChannel,
        on_broken: Callable[[str], None],
        incarnation: int,
        max_in_flight: int,
        lost_limit_s: float,
        slo: SloTable,
    ) -> None:
        """`on_broken` is told the cause when messages of the engine are missing: it must be replaced. `slo` is kept at
        the targets that the engine says."""
        self._open_channel = open_channel
        self._on_broken = on_broken
        self._channel: Channel | None = None
        self._ids = iter(range(incarnation << 40, (incarnation + 1) << 40))
        self._queries = iter(range(1, 1 << 62))
        self._in_flight: dict[RequestId, Choice] = {}
        self._max_in_flight = max_in_flight
        self._outbox: deque[Struct] = deque()
        self._retry: asyncio.TimerHandle | None = None
        self._waiters: dict[int, asyncio.Future[EngineState | ControlReply]] = {}
        self._lost_limit_s = lost_limit_s
        self._slo = slo
        self._pinned: str | None = None
        self._lost_timer: asyncio.TimerHandle | None = None
        self._idle_callback: Callable[[], None] | None = None
        self.state: EngineState | None = None
        self.state_at_s = 0.0

    # requests

    def new_id(self) -> RequestId:
        return next(self._ids)

    @property
    def num_in_flight(self) -> int:
        return len(self._in_flight)

    def submit(self, generation: Generation) -> None:
        """All choices or none. Raises Overloaded where more is in flight than the engine could hold waiting."""
        if len(self._in_flight) >= self._max_in_flight:
            raise Overloaded("too many requests are in flight", retry_after_s=1.0)
        for choice in generation.choices:
            self._in_flight[choice.request_id] = choice
            self._send(choice.submit)
        self._drain()

    def release(self, generation: Generation, reason: FinishReason) -> None:
        """The HTTP request is over. What still runs of it is aborted. Idempotent."""
        running = [choice for choice in generation.choices if self._in_flight.pop(choice.request_id, None) is not None]
        if running:
            now_ns = time.monotonic_ns()
            for choice in running:
                choice.cut(reason, now_ns)
            self._send(Abort([choice.request_id for choice in running]))
            self._drain()
        self._tell_idle()

    def fail_all(self, error: RequestError) -> None:
        """End every request: at the deadline of a drain, or when the engine stays away."""
        for generation in {id(choice.generation): choice.generation for choice in self._in_flight.values()}.values():
            generation.fail(error)

    def when_idle(self, callback: Callable[[], None]) -> None:
        """Called once, when nothing is in flight any more; at once if nothing is."""
        self._idle_callback = callback
        self._tell_idle()

    def _tell_idle(self) -> None:
        if not self._in_flight and self._idle_callback is not None:
            callback, self._idle_callback = self._idle_callback, None
            callback()

    # the engine's life

    def connect(self, address: str) -> None:
        """An engine listens at `address`, the first or a successor: connect and say again what is in flight."""
        self.close_channel()
        self._outbox.clear()
        self._channel = self._open_channel(address)
        self.found()
        asyncio.get_running_loop().add_reader(self._channel.fileno(), self._drain)
        self._repeat_orders()
        for choice in self._in_flight.values():
            submit = structs.replace(choice.submit, output_token_ids=list(choice.output_token_ids), resubmitted=True)
            self._send(submit)
        if self._in_flight:
            _log.warning("resubmitted", requests=len(self._in_flight))
        self._drain()

    def _repeat_orders(self) -> None:
        """What an operator has ordered outlives the engine; requests resubmitted next are to find it in force."""
        if self._slo.changed:
            self._send(ChangeSlo(self.new_query(), self._slo.changed))
        if self._pinned is not None:
            self._send(PinPlan(self.new_query(), self._pinned))

    def lost(self) -> None:
        """The engine is gone. Streams wait for a successor; if none comes within the limit, they fail."""
        if self._lost_timer is None:
            loop = asyncio.get_running_loop()
            self._lost_timer = loop.call_later(self._lost_limit_s, self._give_up)

    def found(self) -> None:
        """The engine is there, as far as the supervisor sees."""
        if self._lost_timer is not None and self._channel is not None:
            self._lost_timer.cancel()
            self._lost_timer = None

    def _give_up(self) -> None:
        self._lost_timer = None
        error = RequestError("the engine was lost", status=503, type="service_unavailable_error", code="engine_lost")
        self.fail_all(error)

    def close_channel(self) -> None:
        channel, self._channel = self._channel, None
        if channel is not None:
            asyncio.get_running_loop().remove_reader(channel.fileno())
            channel.close()

    def close(self) -> None:
        self.close_channel()
        for timer in (self._retry, self._lost_timer):
            if timer is not None:
                timer.cancel()

    # questions and orders

    def new_query(self) -> int:
        return next(self._queries)

    def ask_state(self) -> None:
        """A snapshot comes when it comes: nobody waits."""
        self._send(StateQuery(self.new_query()))
        self._drain()

    async def query_state(self, timeout_s: float) -> EngineState | None:
        """A fresh snapshot, else None; the last one stays in `state`."""
        answer = await self._ask(StateQuery(self.new_query()), timeout_s)
        return answer if isinstance(answer, EngineState) else None

    async def order(self, order: PinPlan | ChangeSlo, timeout_s: float) -> ControlReply | None:
        """None where the engine did not answer: it may have obeyed all the same."""
        answer = await self._ask(order, timeout_s)
        if not isinstance(answer, ControlReply):
            return None
        if not answer.problem:
            if isinstance(order, PinPlan):
                self._pinned = order.plan
            else:
                self._slo.adopt(order.classes)
        return answer

    async def _ask(
        self, question: StateQuery | PinPlan | ChangeSlo, timeout_s: float
    ) -> EngineState | ControlReply | None:
        future: asyncio.Future[EngineState | ControlReply] = asyncio.get_running_loop().create_future()
        self._waiters[question.query_id] = future
        try:
            if self._channel is None or self._outbox or not self._try_send(question):
                return None
            self._drain()
            return await asyncio.wait_for(future, timeout_s)
        except TimeoutError:
            return None
        finally:
            self._waiters.pop(question.query_id, None)

    # the channel

    def _send(self, message: Struct) -> None:
        if self._outbox or not self._try_send(message):
            self._outbox.append(message)
            self._arm_retry()

    def _try_send(self, message: Struct) -> bool:
        if self._channel is None:
            return False
        try:
            return self._channel.send(message)
        except ChannelClosed:
            self._channel_broken("closed")
            return False

    def _arm_retry(self) -> None:
        if self._retry is None:
            self._retry = asyncio.get_running_loop().call_later(_RETRY_S, self._flush)

    def _flush(self) -> None:
        self._retry = None
        while self._outbox and self._try_send(self._outbox[0]):
            self._outbox.popleft()
        if self._outbox and self._channel is not None:
            self._arm_retry()
        self._drain()

    def _channel_broken(self, cause: str) -> None:
        _log.error("engine channel broken", cause=cause)
        self.close_channel()
        self.lost()
        self._on_broken(cause)

    def _drain(self) -> None:
        """Read until nothing is left, because the descriptor is edge-triggered; but let others have their turn."""
        until_s = time.monotonic() + _TURN_S
        while (channel := self._channel) is not None:
            if time.monotonic() > until_s:
                asyncio.get_running_loop().call_soon(self._drain)
                return
            try:
                message = channel.recv()
            except ChannelClosed as error:
                self._channel_broken(str(error))
                return
            if message is None:
                return
            if isinstance(message, Outputs):
                self._take_outputs(message.items)
            elif isinstance(message, Rejected):
                self._take_rejection(message)
            elif isinstance(message, EngineState):
                self._take_state(message)
            elif isinstance(message, ControlReply):
                self._take_answer(message)

    def _take_outputs(self, items: list[OutputItem]) -> None:
        now_ns = time.monotonic_ns()
        in_flight = self._in_flight
        stopped: list[RequestId] = []
        for item in items:
            choice = in_flight.get(item.request_id)
            if choice is None:
                continue
            if choice.generation.deliver(choice, item, now_ns):
                stopped.append(item.request_id)
            if choice.finish is not None:
                del in_flight[item.request_id]
        if stopped:
            self._send(Abort(stopped))
        if not in_flight:
            self._tell_idle()

    def _take_rejection(self, message: Rejected) -> None:
        choice = self._in_flight.pop(message.request_id, None)
        if choice is None:
            return
        choice.generation.measures.rejected[message.status] += 1
        if message.status != 400:  # what can never be served broke no promise
            choice.miss()
        error: RequestError
        if message.status in (429, 503):
            error = Overloaded(message.reason, retry_after_s=message.retry_after_s, status=message.status)
        else:
            error = RequestError(message.reason, status=message.status)
        choice.generation.fail(error)
        self._tell_idle()

    def _take_state(self, state: EngineState) -> None:
        self.state = state
        self.state_at_s = time.monotonic()
        self._slo.adopt(state.slo_classes)
        self._pinned = state.pinned
        self._take_answer(state)

    def _take_answer(self, answer: EngineState | ControlReply) -> None:
        waiter = self._waiters.get(answer.query_id)
        if waiter is not None and not waiter.done():
            waiter.set_result(answer)
