"""What the workers of an engine's log did: prefill forwards, decode steps, hand-overs between them, losses."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any

from colocate.config.roles import phases_of, process_of
from colocate.core.engine import Engine, Event
from colocate.core.outbox import Command, SetPlanWord
from colocate.messages.control import WorkerGone, WorkerHello
from colocate.messages.decode import StepReport
from colocate.messages.prefill import BatchFailed, PrefillBatch, PrefillDone
from colocate.telemetry.timeline.trace import NestedTracks, TraceWriter, Track
from colocate.types import RequestId, Role

_NUM_PLANS_KEPT = 1024  # a report names a plan of some switches ago at most


@dataclass(slots=True)
class _Sent:
    """A batch at the prefill worker."""

    num_rows: int
    num_tokens: int
    context: int  # tokens computed before, of all rows
    urgent: bool


class WorkerTracks:
    """One group of tracks per worker. Call `follow` after the engine has handled an event."""

    def __init__(self, engine: Engine, writer: TraceWriter, pids: dict[Role, int]) -> None:
        """`pids` has the group of each worker of the mode."""
        self._engine, self._writer, self._pids = engine, writer, pids
        mode = engine.settings.mode
        prefill, decode = pids[process_of(Role.PREFILL, mode)], pids[process_of(Role.DECODE, mode)]
        self._lives = {role: writer.track(pid, "starts and losses") for role, pid in pids.items()}
        self._forwards = NestedTracks(writer, prefill, "prefill forwards")
        self._steps = NestedTracks(writer, decode, "decode steps")
        self._sent: dict[int, _Sent] = {}
        self._urgent: deque[tuple[int, int]] = deque(maxlen=64)  # when the last ones ran
        self._handed: dict[RequestId, tuple[Track, int]] = {}  # first token drawn, in no step yet
        self._plans = {engine.settings.first_plan_seq: engine.plan.name}
        self.num_forwards = 0
        self.num_steps = 0

    def follow(self, event: Event, commands: list[Command], now_ns: int) -> None:
        if isinstance(event, StepReport):
            self._step(event)
        elif isinstance(event, PrefillDone):
            self._forward(event)
        elif isinstance(event, BatchFailed):
            self._sent.pop(event.batch_id, None)
            self._note(Role(event.role), "forward failed", now_ns, {"error": event.error})
        elif isinstance(event, WorkerHello):
            args = {"incarnation": event.incarnation, "pid": event.pid}
            self._note(event.role, f"{event.role} ready", now_ns, args)
        elif isinstance(event, WorkerGone):
            self._lose(event, now_ns)
        for command in commands:
            self._hear(command)

    def _hear(self, command: Command) -> None:
        message = command.message
        if isinstance(message, PrefillBatch):
            rows = message.rows
            self._sent[message.batch_id] = _Sent(
                len(rows), sum(len(row.token_ids) for row in rows), sum(row.start for row in rows), message.urgent
            )
        elif isinstance(message, SetPlanWord):
            self._plans[message.seq] = self._engine.table.plans[message.index].name
            self._plans.pop(message.seq - _NUM_PLANS_KEPT, None)

    def _lose(self, event: WorkerGone, now_ns: int) -> None:
        args = {"incarnation": event.incarnation, "cause": event.cause, "kv_trusted": event.kv_trusted}
        self._note(event.role, f"{event.role} lost", now_ns, args)
        if Role.PREFILL in phases_of(event.role):
            self._sent.clear()

    def _note(self, role: Role, name: str, now_ns: int, args: dict[str, Any]) -> None:
        """On the tracks of every worker that this process is."""
        for worker in {process_of(phase, self._engine.settings.mode): None for phase in phases_of(role)}:
            self._writer.instant(self._lives[worker], name, now_ns, args)

    def _forward(self, done: PrefillDone) -> None:
        sent = self._sent.pop(done.batch_id, None)
        if sent is None or done.finished_ns <= done.started_ns:  # nobody wanted it any more: it never ran
            return
        self.num_forwards += 1
        track = self._forwards.place(done.started_ns, done.finished_ns)
        args: dict[str, Any] = {
            "batch": done.batch_id,
            "rows": sent.num_rows,
            "tokens": sent.num_tokens,
            "context_tokens": sent.context,
            "plan": self._plan(done.plan_seq),
        }
        if sent.urgent:
            self._urgent.append((done.started_ns, done.finished_ns))
        elif any(done.started_ns < begin_ns and end_ns < done.finished_ns for begin_ns, end_ns in self._urgent):
            args["set_aside"] = "for an urgent prompt"
        name = "urgent prefill" if sent.urgent else "prefill"
        self._writer.slice(track, f"{name} of {sent.num_tokens}", done.started_ns, done.finished_ns, args)
        for row in done.rows:
            if row.token_id is not None and row.request_id in self._engine.books.requests:
                self._handed[row.request_id] = track, done.finished_ns - 1

    def _step(self, report: StepReport) -> None:
        if not report.rows or report.finished_ns <= report.started_ns:  # leaves acknowledged, rows masked
            return
        self.num_steps += 1
        track = self._steps.place(report.started_ns, report.finished_ns)
        args: dict[str, Any] = {
            "step": report.step,
            "rows": len(report.rows),
            "tokens": len(report.rows),
            "plan": self._plan(report.plan_seq),
        }
        if report.masked:
            args["masked"] = len(report.masked)
        self._writer.slice(track, f"step of {len(report.rows)}", report.started_ns, report.finished_ns, args)
        if self._handed:
            self._draw_arrows(report, track)

    def _draw_arrows(self, report: StepReport, track: Track) -> None:
        for row in report.rows:
            handed = self._handed.pop(row.request_id, None)
            if handed is not None and handed[1] <= report.started_ns:
                self._writer.arrow("hand-over", *handed, track, report.started_ns)
        known = self._engine.books.requests
        self._handed = {request_id: at for request_id, at in self._handed.items() if request_id in known}

    def _plan(self, seq: int) -> str:
        return self._plans.get(seq, f"number {seq}")
