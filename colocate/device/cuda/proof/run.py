"""The whole proof, in order: look, open, one process, two processes, drill."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from colocate.core.plan import PlanTable, build_plan_table, spread_shares
from colocate.device.cuda.mps import MpsManager, find_tools
from colocate.device.cuda.proof import concurrency, drill, environment, kept_memory, sharing, switching
from colocate.device.cuda.proof.check import Check, CheckSpec, Group, Status
from colocate.device.cuda.proof.commands import Opened
from colocate.device.cuda.proof.crew import DECODE, WORKERS, Crew, CrewPlan, Limits
from colocate.device.cuda.proof.found import Found, find_everything
from colocate.device.cuda.proof.probe_process import WORKER_MODULE, ProbeLost, ProbeRefused
from colocate.errors import ConfigError
from colocate.types import Role

MPS_DAEMON = CheckSpec("mps_daemon", "a private MPS daemon starts", Group.TWO_PROCESSES)

# Every check there is, in the order they run. Names are stable: scripts read them.
CATALOGUE: tuple[CheckSpec, ...] = (
    environment.DRIVER,
    environment.PACKAGES,
    environment.GPU_MODE,
    environment.MPS_INSTALLED,
    environment.VARIABLES,
    MPS_DAEMON,
    sharing.DEVICE,
    sharing.MPS_CLIENTS,
    sharing.ARMED,
    concurrency.THREADS_CONCURRENT,
    switching.GRAPH,
    switching.SWITCH,
    sharing.ATOMS,
    sharing.DISJOINT,
    concurrency.CONCURRENT,
    switching.HAND_OVER,
    kept_memory.WORKER_KILLED,
    kept_memory.KEEPER_KILLED,
    drill.READ_ONLY,
    drill.HANG,
    drill.FAULT,
)


_FOUNDATIONS = (sharing.DEVICE.name, sharing.ARMED.name)


@dataclass(frozen=True, slots=True)
class ProofRequest:
    """`extra` adds variables to one worker's environment and `module` replaces what workers run: how tests break one
    side."""

    index: int = 0
    is_fake: bool = False
    quick: bool = False  # one process only
    drill: bool = False
    only: tuple[str, ...] = ()  # names of checks; empty: all. What they stand on runs as well.
    limits: Limits = field(default_factory=Limits)
    extra: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    module: str = WORKER_MODULE


def nothing_testable(reason: str, specs: tuple[CheckSpec, ...] = CATALOGUE) -> list[Check]:
    """Every check, with the one reason why none can be made."""
    return [spec.untestable(reason) for spec in specs]


def prove(request: ProofRequest, say: Callable[[Check], None] = lambda check: None) -> list[Check]:
    """Run every check; `say` hears of each as it is done. In the order of the catalogue. No process or daemon is left
    when this returns or raises."""
    proof = _Proof(request, say)
    found = find_everything(request.index, request.is_fake)
    for check in environment.check_environment(found):
        proof.add(check)
    if not found.api_version and not request.is_fake:
        proof.leave_out("no CUDA driver")
        return proof.in_order()
    with proof.mps_daemon(found) as mps:
        proof.with_crew(mps)
    proof.leave_out("left out by --only" if request.only else "the checks before it did not get so far")
    return proof.in_order()


class _Proof:
    """Collects outcomes; a worker that dies, hangs or refuses makes the check that asked it fail."""

    def __init__(self, request: ProofRequest, say: Callable[[Check], None]) -> None:
        self.request = request
        self.checks: list[Check] = []
        self._say = say

    def in_order(self) -> list[Check]:
        order = [spec.name for spec in CATALOGUE]
        return sorted(self.checks, key=lambda check: order.index(check.name))

    def add(self, check: Check) -> None:
        self.checks.append(check)
        self._say(check)

    def leave_out(self, reason: str) -> None:
        done = {check.name for check in self.checks}
        for spec in CATALOGUE:
            if spec.name not in done:
                why = (
                    "ends workers on purpose: --drill"
                    if spec.group is Group.DRILL and not self.request.drill
                    else reason
                )
                self.add(spec.untestable(why))

    def run(self, spec: CheckSpec, check: Callable[[], Check]) -> bool:
        """Whether it passed, or was not asked for."""
        if self.request.only and spec.name not in (*self.request.only, *_FOUNDATIONS):
            return True
        began_s = time.monotonic()
        try:
            outcome = check()
        except ProbeLost as error:
            outcome = spec.failed(str(error), "run it again; if it stays, report this output")
        except ProbeRefused as error:
            remedy = error.refusal.remedy or "mend what the checks above name, or report this output"
            outcome = spec.failed(str(error), remedy, code=error.refusal.code)
        self.add(outcome.took(time.monotonic() - began_s))
        return outcome.status is Status.PASS

    @contextmanager
    def mps_daemon(self, found: Found) -> Iterator[MpsManager | None]:
        if self.request.quick:
            self.add(MPS_DAEMON.untestable("left out by --quick"))
            yield None
            return
        began_s = time.monotonic()
        try:
            mps = MpsManager(find_tools(os.environ), os.environ)
            mps.start()
        except ConfigError as error:
            self.add(MPS_DAEMON.failed(error.problem, error.remedy).took(time.monotonic() - began_s))
            yield None
            return
        seconds = time.monotonic() - began_s
        try:
            self.add(MPS_DAEMON.passed(f"ready for clients after {seconds:.1f} s", seconds=seconds).took(seconds))
            yield mps
        finally:
            mps.quit()

    def with_crew(self, mps: MpsManager | None) -> None:
        request = self.request
        crew = Crew(CrewPlan(request.index, request.limits, request.extra, request.module), mps)
        try:
            self._open(crew)
        finally:
            crew.close()

    def _open(self, crew: Crew) -> None:
        names = (DECODE,) if self.request.quick else WORKERS
        opened: dict[str, Opened] = {}

        def device() -> Check:
            try:
                opened.update(crew.open(*names))
            except (ProbeLost, ProbeRefused) as error:
                if not crew.has_mps:
                    raise
                # The other checks still say what this GPU can do, for --single-process.
                remedy = "look into the MPS daemon's log; the checks after this one ran without MPS"
                self.add(sharing.MPS_CLIENTS.failed(f"no worker gets in: {error}", remedy))
                crew.go_without_mps()
                opened.update(crew.open(*names))
            return sharing.check_device(opened[DECODE])

        if not self.run(sharing.DEVICE, device):
            return
        table = armed_table(opened[DECODE])
        shares = {name: shares_of(table, Role(name), opened[DECODE].num_sms) for name in WORKERS}
        if not self.request.quick and all(check.name != sharing.MPS_CLIENTS.name for check in self.checks):
            self.run(sharing.MPS_CLIENTS, lambda: sharing.check_mps_clients(crew))

        def armed() -> Check:
            crew.arm({name: shares[name] for name in names})
            return sharing.check_armed(shares[DECODE], crew.armed(DECODE))

        if not self.run(sharing.ARMED, armed):
            return
        self._one_process(crew, table)
        if self.request.quick:
            self.leave_out("left out by --quick")
            return
        self._two_processes(crew, table, shares)
        if self.request.drill:
            self._drill(crew)

    def _one_process(self, crew: Crew, table: PlanTable) -> None:
        splits = _some_splits(table)
        default = table.by_name(table.default_split)
        split = (default.prefill_units, default.decode_units)
        smallest, largest = splits[0][1], splits[-1][1]
        self.run(concurrency.THREADS_CONCURRENT, lambda: concurrency.check_threads_concurrent(crew, split))
        self.run(switching.GRAPH, lambda: switching.check_graph(crew, smallest, largest))
        self.run(switching.SWITCH, lambda: switching.check_switch(crew, smallest, largest))

    def _two_processes(self, crew: Crew, table: PlanTable, shares: dict[str, list[int]]) -> None:
        default = table.by_name(table.default_split)
        self.run(sharing.ATOMS, lambda: sharing.check_atoms(crew))
        self.run(sharing.DISJOINT, lambda: sharing.check_disjoint(crew, table, shares))
        self.run(concurrency.CONCURRENT, lambda: concurrency.check_concurrent(crew, _some_splits(table)))
        self.run(
            switching.HAND_OVER,
            lambda: switching.check_hand_over(crew, default.prefill_units, default.decode_units),
        )
        self.run(kept_memory.WORKER_KILLED, lambda: kept_memory.check_worker_killed(crew))
        self.run(kept_memory.KEEPER_KILLED, lambda: kept_memory.check_keeper_killed(crew))

    def _drill(self, crew: Crew) -> None:
        """The most harmless first: what comes after a fault may find no GPU any more."""
        self.run(drill.HANG, lambda: drill.drill_hang(crew))
        self.run(drill.READ_ONLY, lambda: drill.drill_read_only(crew))
        self.run(drill.FAULT, lambda: drill.drill_fault(crew))


def shares_of(table: PlanTable, role: Role, num_sms: int) -> list[int]:
    """The sizes that this role's share takes under any plan, ascending."""
    return sorted({len(plan.units_of(role, num_sms)) for plan in table.plans} - {0})


def armed_table(opened: Opened) -> PlanTable:
    """The plans that `serve` arms on this device by default."""
    shares = spread_shares(opened.num_sms, opened.atom_sms)
    return build_plan_table(opened.num_sms, opened.atom_sms, shares)


def _some_splits(table: PlanTable) -> list[tuple[int, int]]:
    """(prefill, decode) of the smallest, the default and the largest decode share."""
    splits = sorted((plan.decode_units, plan.prefill_units) for plan in table.plans if plan.is_split)
    default = table.by_name(table.default_split)
    chosen = sorted({splits[0], (default.decode_units, default.prefill_units), splits[-1]})
    return [(prefill, decode) for decode, prefill in chosen]
