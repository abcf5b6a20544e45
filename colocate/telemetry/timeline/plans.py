"""Plans of an engine's log: which was asked for, and which each phase had; and counters of what the engine holds."""

from __future__ import annotations

from typing import Any

from colocate.config.roles import phases_of
from colocate.core.engine import Engine, Event
from colocate.core.outbox import Command, SetPlanWord
from colocate.core.plan import Plan
from colocate.messages.control import PlanApplied, WorkerGone
from colocate.telemetry.timeline.trace import TraceWriter, Track
from colocate.types import WORKER_ROLES, Role

_NUM_PLANS_KEPT = 1024


class _PlanTrack:
    """One plan after the other."""

    def __init__(self, writer: TraceWriter, track: Track) -> None:
        self._writer, self._track = writer, track
        self._open: tuple[str, int, dict[str, Any]] | None = None

    def begin(self, name: str, at_ns: int, args: dict[str, Any]) -> None:
        self.end(at_ns)
        self._open = (name, at_ns, args)

    def end(self, at_ns: int) -> None:
        if self._open is not None:
            name, since_ns, args = self._open
            self._writer.slice(self._track, name, since_ns, at_ns, args)
            self._open = None

    @property
    def since_ns(self) -> int:
        return 0 if self._open is None else self._open[1]


class PlanTracks:
    """Call `follow` after the engine has handled an event."""

    def __init__(self, engine: Engine, writer: TraceWriter, pid: int, start_ns: int) -> None:
        self._engine, self._writer, self._pid = engine, writer, pid
        self._switches = writer.track(pid, "switches")
        self._asked = _PlanTrack(writer, writer.track(pid, "plan asked for"))
        self._applied = {role: _PlanTrack(writer, writer.track(pid, f"plan of {role}")) for role in WORKER_ROLES}
        self._by_seq: dict[int, Plan] = {engine.settings.first_plan_seq: engine.plan}
        self.num_switches = 0
        self._ask(engine.plan, "the first plan", start_ns)

    def follow(self, event: Event, commands: list[Command], now_ns: int) -> None:
        for command in commands:
            if isinstance(command.message, SetPlanWord):
                self._switch(command.message, now_ns)
        if isinstance(event, PlanApplied):
            self._apply(event, now_ns)
        elif isinstance(event, WorkerGone):
            for role in phases_of(event.role):
                self._applied[role].end(now_ns)

    def close(self, now_ns: int) -> None:
        for track in (self._asked, *self._applied.values()):
            track.end(now_ns)

    def _switch(self, word: SetPlanWord, now_ns: int) -> None:
        self.num_switches += 1
        plan, last = self._engine.table.plans[word.index], self._engine.ledger.last
        assert last is not None and last.seq == word.seq
        self._by_seq[word.seq] = plan
        self._by_seq.pop(word.seq - _NUM_PLANS_KEPT, None)
        args = {"number": word.seq, "reason": last.reason}
        self._writer.instant(self._switches, f"{last.from_plan} to {last.to_plan}", now_ns, args)
        self._ask(plan, last.reason, now_ns)

    def _ask(self, plan: Plan, reason: str, now_ns: int) -> None:
        self._asked.begin(plan.name, now_ns, {**_units(plan), "reason": reason})
        self._writer.counter(self._pid, "units asked for", now_ns, _units(plan))

    def _apply(self, applied: PlanApplied, now_ns: int) -> None:
        plan = self._by_seq.get(applied.seq)
        if plan is None:  # of an engine before this one
            return
        track = self._applied[Role(applied.role)]
        # a worker may have had it before this engine was there to be told, and says the same plan again
        at_ns = min(max(applied.applied_ns, track.since_ns), now_ns)
        last = self._engine.ledger.last
        args: dict[str, Any] = {**_units(plan), "number": applied.seq}
        if last is not None and last.seq == applied.seq:
            args |= {"reason": last.reason, "after_decision_ms": (at_ns - last.decided_ns) / 1e6}
        track.begin(plan.name, at_ns, args)


def _units(plan: Plan) -> dict[str, float]:
    return {"prefill": plan.prefill_units, "decode": plan.decode_units}


class EngineCounters:
    """What the engine holds, each time it changes."""

    def __init__(self, engine: Engine, writer: TraceWriter, pid: int) -> None:
        self._engine, self._writer, self._pid = engine, writer, pid
        self._last: dict[str, dict[str, float]] = {}

    def follow(self, now_ns: int) -> None:
        engine = self._engine
        pool, tree = engine.books.pool, engine.books.memory.tree
        decode = engine.decode
        num_free, num_cached, num_draining = pool.num_free, tree.num_evictable, pool.num_draining
        num_used = pool.num_blocks - num_free - num_cached - num_draining
        self._tell("waiting", now_ns, {"requests": len(engine.books.queue)})
        self._tell("running", now_ns, {"prefill": len(engine.prefill.running), "decode": len(decode.rows)})
        blocks: dict[str, float] = {"used": num_used, "draining": num_draining, "cached": num_cached, "free": num_free}
        self._tell("blocks", now_ns, blocks)

    def _tell(self, name: str, now_ns: int, values: dict[str, float]) -> None:
        if self._last.get(name) != values:
            self._last[name] = values
            self._writer.counter(self._pid, name, now_ns, values)
