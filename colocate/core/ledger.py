"""The switch ledger: what was decided, when each worker applied it, and how long each plan was truly in force."""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass

from colocate.core.plan import Plan
from colocate.messages.client import SwitchRecord
from colocate.types import Role

SWITCHING = "(switching)"
NUM_LATENCIES_KEPT = 2048
NUM_SWITCHES_KEPT = 64
NOT_YET = 1 << 62


@dataclass(slots=True)
class Switch:
    """One decided switch. It is in force once both workers applied it or a later one."""

    seq: int
    from_plan: str
    to_plan: str
    reason: str
    decided_ns: int
    prefill_applied_ns: int = 0
    decode_applied_ns: int = 0
    interrupted: bool = False  # a worker was missing meanwhile: its restart is not the price of a switch

    def record(self) -> SwitchRecord:
        return SwitchRecord(
            self.seq,
            self.from_plan,
            self.to_plan,
            self.reason,
            self.decided_ns,
            self.prefill_applied_ns,
            self.decode_applied_ns,
        )


class SwitchLedger:
    """Owned by the engine. Times are the engine's `now`, applied times the workers' own clock (the same monotonic one).

    Residency counts phase-active time only: a plan that is in force while nothing runs has no effect to account for.
    """

    def __init__(self, first: Plan, first_seq: int = 1) -> None:
        self.seq = first_seq
        self.count = 0
        self.counts: Counter[tuple[str, str]] = Counter()
        self.recent: deque[Switch] = deque(maxlen=NUM_SWITCHES_KEPT)  # the last one at the end
        self.latencies_ns: deque[int] = deque(maxlen=NUM_LATENCIES_KEPT)
        self.residency_ns: Counter[str] = Counter()
        self._names = {first_seq: first.name}
        self._applied = {Role.PREFILL: 0, Role.DECODE: 0}
        self._accounted_ns = 0

    @property
    def last(self) -> Switch | None:
        return self.recent[-1] if self.recent else None

    def decide(self, from_plan: Plan, to_plan: Plan, reason: str, now_ns: int) -> Switch:
        self.seq += 1
        self.count += 1
        self.counts[(from_plan.name, to_plan.name)] += 1
        switch = Switch(self.seq, from_plan.name, to_plan.name, reason, now_ns)
        self.recent.append(switch)
        self._names[self.seq] = to_plan.name
        self._names.pop(self.seq - NUM_SWITCHES_KEPT, None)
        return switch

    def applied(self, role: Role, seq: int, applied_ns: int) -> None:
        """A worker put `seq` in force. A switch overtaken by a later one has no latency of its own."""
        if seq < self._applied[role]:
            return
        self._applied[role] = seq
        last = self.last
        if last is None or seq != last.seq:
            return
        if role is Role.PREFILL:
            last.prefill_applied_ns = last.prefill_applied_ns or applied_ns  # a successor applies the same plan again
        else:
            last.decode_applied_ns = last.decode_applied_ns or applied_ns
        if last.prefill_applied_ns and last.decode_applied_ns and not last.interrupted:
            self.latencies_ns.append(max(last.prefill_applied_ns, last.decode_applied_ns) - last.decided_ns)

    @property
    def prefill_applied_ns(self) -> int:
        """Since when prefill has the plan asked for now; NOT_YET while it has not, 0 where it had it from the start."""
        if self.last is None:
            return 0
        return self.last.prefill_applied_ns or NOT_YET

    def interrupt(self) -> None:
        """A worker is gone, or not there yet: a switch that is under way has no latency to learn from."""
        if self.last is not None:
            self.last.interrupted = True

    def lost(self, role: Role) -> None:
        """This worker is gone: no plan is in force before its successor has applied one."""
        self._applied[role] = 0
        self.interrupt()

    def in_force(self) -> str:
        """The plan that both workers applied, or SWITCHING."""
        prefill, decode = self._applied[Role.PREFILL], self._applied[Role.DECODE]
        return self._names[prefill] if prefill == decode and prefill in self._names else SWITCHING

    def account(self, now_ns: int, active: bool) -> None:
        """Charge the time since the last call to the plan in force. Call before every change of either."""
        if active and self._accounted_ns:
            self.residency_ns[self.in_force()] += now_ns - self._accounted_ns
        self._accounted_ns = now_ns
