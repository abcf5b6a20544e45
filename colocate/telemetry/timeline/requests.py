"""Requests of an engine's log: one slice each, with the stages it went through nested in it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from colocate.core.engine import Engine, Event
from colocate.core.outbox import Command
from colocate.core.request import Request, Stage
from colocate.messages.client import Abort, Outputs, Rejected, Submit
from colocate.messages.control import FrontendGone, Tick, WorkerGone, WorkerHello
from colocate.messages.decode import DecodeUpdate, StepReport
from colocate.messages.prefill import BatchFailed, PrefillBatch, PrefillCancel, PrefillCancelled, PrefillDone
from colocate.telemetry.timeline.trace import Lanes, TraceWriter, Track
from colocate.types import RequestId

STAGE_NAMES = {
    Stage.WAITING: "queue",
    Stage.PREFILLING: "prefill",
    Stage.CANCELLING: "prefill is told to drop it",
    Stage.READY: "waits for decode",
    Stage.DECODING: "decode",
    Stage.LEAVING: "decode is told to drop it",
}
# After these any request may have changed its stage without being named; a tick is for what nobody thought of.
_ANY_REQUEST = (WorkerGone, WorkerHello, FrontendGone, BatchFailed, Tick)


@dataclass(slots=True)
class _Shown:
    """A request that is not over. `parts` are its closed stages."""

    track: Track
    request: Request
    start_ns: int
    stage: Stage
    since_ns: int
    parts: list[tuple[str, int, int]] = field(default_factory=list)
    finish: str = "abort"  # whoever aborts a request is not told
    error: str | None = None


class RequestLanes:
    """Call `follow` after the engine has handled an event, with the commands it gave."""

    def __init__(self, engine: Engine, writer: TraceWriter, pid: int) -> None:
        self._engine, self._writer = engine, writer
        self._lanes = Lanes(writer, pid, "requests")
        self._shown: dict[RequestId, _Shown] = {}
        self._batches: dict[int, list[RequestId]] = {}  # under way at the prefill worker
        self._num_preemptions = 0
        self.num_requests = 0

    def follow(self, event: Event, commands: list[Command], now_ns: int) -> None:
        rejected = self._hear(commands)
        if isinstance(event, Submit) and event.request_id not in self._shown:
            self._begin(event, rejected, now_ns)
        preempted = self._engine.books.num_preemptions != self._num_preemptions
        self._num_preemptions = self._engine.books.num_preemptions
        named: Iterable[RequestId] = (
            list(self._shown) if preempted or isinstance(event, _ANY_REQUEST) else self._named(event, commands)
        )
        for request_id in named:
            shown = self._shown.get(request_id)
            if shown is not None:
                self._look_at(shown, now_ns)

    def close(self, now_ns: int) -> None:
        """The log ends: what is still there is shown up to here."""
        for shown in list(self._shown.values()):
            shown.finish = "runs on"
            self._end(shown, now_ns)

    def _hear(self, commands: list[Command]) -> Rejected | None:
        """What the frontend is told of ends."""
        rejected = None
        for command in commands:
            message = command.message
            if isinstance(message, Outputs):
                for item in message.items:
                    if item.finish is not None and (shown := self._shown.get(item.request_id)) is not None:
                        shown.finish, shown.error = item.finish.value, item.error
            elif isinstance(message, Rejected):
                rejected = message
        return rejected

    def _begin(self, submit: Submit, rejected: Rejected | None, now_ns: int) -> None:
        self.num_requests += 1
        # one that an engine before this one knew has arrived, and was shown, long ago
        start_ns = now_ns if submit.resubmitted else min(submit.arrival_ns, now_ns)
        track = self._lanes.take(start_ns)
        request = self._engine.books.requests.get(submit.request_id)
        if request is None:
            args: dict[str, Any] = {"request": submit.request_id, "prompt_tokens": len(submit.prompt_token_ids)}
            if rejected is not None:
                args |= {"finish": f"rejected ({rejected.status})", "error": rejected.reason}
            end_ns = max(now_ns, start_ns + 1)  # no time at all would not show
            self._writer.slice(track, f"request {submit.request_id}", start_ns, end_ns, args)
            self._lanes.give_back(track, end_ns)
            return
        # what is admitted at once never waits: its stage is looked at like any other's
        shown = _Shown(track, request, start_ns, Stage.WAITING, now_ns, [("tokenize", start_ns, now_ns)])
        self._shown[submit.request_id] = shown
        self._look_at(shown, now_ns)

    def _look_at(self, shown: _Shown, now_ns: int) -> None:
        request = shown.request
        if request.stage is shown.stage:
            return
        shown.parts.append((STAGE_NAMES[shown.stage], shown.since_ns, now_ns))
        shown.stage, shown.since_ns = request.stage, now_ns
        if request.stage is Stage.FINISHED:
            self._end(shown, now_ns)

    def _end(self, shown: _Shown, now_ns: int) -> None:
        request, writer = shown.request, self._writer
        del self._shown[request.request_id]
        if shown.stage is not Stage.FINISHED:
            shown.parts.append((STAGE_NAMES[shown.stage], shown.since_ns, now_ns))
        args: dict[str, Any] = {
            "request": request.request_id,
            "prompt_tokens": len(request.prompt_token_ids),
            "cached_tokens": max(request.first_cached, 0),
            "output_tokens": len(request.output_token_ids),
            "slo_class": request.slo.name,
            "preemptions": request.num_preemptions,
            "finish": shown.finish,
        }
        if shown.error is not None:
            args["error"] = shown.error
        end_ns = max(now_ns, shown.start_ns + 1)
        writer.slice(shown.track, f"request {request.request_id}", shown.start_ns, end_ns, args)
        for name, start_ns, part_end_ns in shown.parts:
            writer.slice(shown.track, name, start_ns, part_end_ns)
        self._lanes.give_back(shown.track, end_ns)

    def _named(self, event: Event, commands: list[Command]) -> list[RequestId]:
        """Whose stage may have changed."""
        named: list[RequestId] = []
        if isinstance(event, StepReport):
            named += [row.request_id for row in event.rows if row.finish is not None]
            named += [request_id for request_id, _ in event.left]
        elif isinstance(event, PrefillDone):
            named += self._batches.pop(event.batch_id, ())
        elif isinstance(event, PrefillCancelled):
            named += [request_id for request_id, _ in event.rows]
        elif isinstance(event, Abort):
            named += event.request_ids
        for command in commands:
            named += self._told(command)
        return named

    def _told(self, command: Command) -> list[RequestId]:
        """Whom a command moves; batches are kept until they are done."""
        message = command.message
        if isinstance(message, PrefillBatch):
            ids = [row.request_id for row in message.rows]
            self._batches[message.batch_id] = ids
            return ids
        if isinstance(message, PrefillCancel):
            return [request_id for request_id, _ in message.rows]
        if isinstance(message, DecodeUpdate):
            return [row.request_id for row in message.joins] + [request_id for request_id, _ in message.leaves]
        if isinstance(message, Outputs):
            return [item.request_id for item in message.items if item.finish is not None]
        return []
