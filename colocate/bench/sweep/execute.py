"""Make the runs of a sweep: start a server, offer the load, stop the server, write down what is known, and go on.

What goes wrong with one run is a failed point: the table shows it and the sweep goes on. Only what would go wrong with
every run (a full disk, a workload that cannot be) ends a sweep.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from msgspec import structs

from colocate.bench.figures import run_figures, write_figures
from colocate.bench.folder import MANIFEST, RunFolder
from colocate.bench.manifest import written_command
from colocate.bench.plan import BenchPlan
from colocate.bench.read import read_run
from colocate.bench.records import SweepArm
from colocate.bench.run import run_bench
from colocate.bench.sweep.estimate import Estimate, Pace, duration, estimate_runs, estimate_search, pace_of
from colocate.bench.sweep.failed import write_failed
from colocate.bench.sweep.journal import Journal, RunResult, cannot_write, write_manifest
from colocate.bench.sweep.order import RunSpec
from colocate.bench.sweep.plan import SweepPlan
from colocate.bench.sweep.wanted import ResultOf, made_runs, wanted_runs
from colocate.bench.systems.server import Server, ServerFailed, running
from colocate.bench.systems.system import Launch
from colocate.errors import ConfigError
from colocate.workload.rows import Workload

SERVER_LOG = "server.log"
GIVE_UP_AFTER = 2  # starts of one arm that failed in a row: its other runs fail without another

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Outcome:
    """`num_left`: runs that the budget left out; of a search those of the round that it ended in."""

    num_made: int
    num_failed: int
    num_invalid: int
    num_left: int

    @property
    def is_whole(self) -> bool:
        return not (self.num_failed or self.num_invalid or self.num_left)


def learned_pace(plan: SweepPlan, result_of: ResultOf) -> Pace:
    """What the runs took that are there."""
    pace = pace_of(plan)
    for spec in made_runs(plan, result_of):
        result = result_of(spec)
        if result is not None and result.whole_s is not None and result.status != "failed":
            pace.observe(spec, result.whole_s)
    return pace


def estimate_left(plan: SweepPlan, result_of: ResultOf) -> Estimate:
    """Of what is left to do. A search that has begun is known for its next round only."""
    pace = learned_pace(plan, result_of)
    if plan.search is not None and not made_runs(plan, result_of):
        return estimate_search(pace, plan)
    return estimate_runs(pace, wanted_runs(plan, result_of))


class SweepRunner:
    """One sitting of a sweep. Used once, from the main thread: servers end with the thread that started them."""

    def __init__(
        self, plan: SweepPlan, journal: Journal, say: Say, *, quiet: bool = True, reserve_s: float = 0.0
    ) -> None:
        """`say` gets lines about the progress; `quiet`: none within a run. `reserve_s`: of the budget, kept for what
        comes after the runs."""
        self._plan = plan
        self._journal = journal
        self._say = say
        self._quiet = quiet
        self._reserve_s = reserve_s
        self._pace = learned_pace(plan, journal.result)
        self._arms = {arm.name: arm for arm in plan.arms}
        self._failures: dict[str, int] = {}
        self._versions: dict[str, str] = {}
        self._log = journal.folder / SERVER_LOG
        self._kept: tuple[tuple[str, int], Server] | None = None
        self._open = ExitStack()

    def run(self) -> Outcome:
        """Make every run that is missing, or those that the budget allows. Raises ConfigError and KeyboardInterrupt;
        nothing is left running."""
        started_s = time.monotonic()
        with self._open:
            while batch := wanted_runs(self._plan, self._journal.result):
                for number, spec in enumerate(batch):
                    if self._is_over_budget(spec, time.monotonic() - started_s):
                        return self._outcome(len(batch) - number)
                    self._make(spec)
                    self._report(spec, batch[number + 1 :])
        self._log.unlink(missing_ok=True)
        return self._outcome(0)

    def _is_over_budget(self, spec: RunSpec, spent_s: float) -> bool:
        budget_s, run_s = self._plan.budget_s, self._pace.run_s(spec.arm, spec.rate)
        return budget_s is not None and spent_s + run_s + self._reserve_s > budget_s

    def _make(self, spec: RunSpec) -> None:
        workload = self._plan.load.at(spec.rate, self._plan.run_seed(spec.seed, spec.level))
        folder = self._journal.begin(spec)
        started_s = time.monotonic()
        try:
            if self._failures.get(spec.arm, 0) >= GIVE_UP_AFTER:
                raise ServerFailed(f"not tried: {GIVE_UP_AFTER} servers of this arm did not start, one after another")
            with self._server(spec) as server:
                self._failures[spec.arm] = 0
                self._bench(spec, workload, folder, server, started_s)
        except ServerFailed as error:
            self._failures[spec.arm] = self._failures.get(spec.arm, 0) + 1
            self._fail(spec, workload, folder, str(error), ())
            self._keep_log(folder)

    def _bench(self, spec: RunSpec, workload: Workload, folder: Path, server: Server, started_s: float) -> None:
        try:
            manifest = run_bench(self._bench_plan(spec, workload, folder, server), quiet=self._quiet)
        except ConfigError as error:
            if (folder / MANIFEST).exists():
                raise  # it had begun: the disk, not the server
            self._fail(spec, workload, folder, str(error), published_command(server.launch))
            self._keep_log(folder)
            return
        code = server.exit_code
        figures: dict[str, object] = {
            **manifest.figures,
            "server_start_s": round(server.start_s, 3),
            "server_resident_bytes": server.resident_bytes(),
            "whole_s": round(time.monotonic() - started_s, 3),
        }
        if code is not None:
            figures["server_exit_code"] = code
        target = manifest.target
        if not target.version:
            target = structs.replace(target, version=self._version(self._arms[spec.arm]))
        write_manifest(folder, structs.replace(manifest, run_id=spec.run_id, figures=figures, target=target))
        if code is not None or manifest.status == "failed":
            self._keep_log(folder)

    def _bench_plan(self, spec: RunSpec, workload: Workload, folder: Path, server: Server) -> BenchPlan:
        plan = self._plan
        return BenchPlan(
            url=server.url,
            workload=workload,
            out=folder,
            model=server.launch.model,
            system=self._arms[spec.arm].system,
            endpoint=plan.endpoint,
            seed=plan.run_seed(spec.seed, spec.level),
            rate=spec.rate,
            warmup_s=plan.load.warmup_s,
            cooldown_s=plan.load.cooldown_s,
            timeout_s=plan.timeout_s,
            drain_s=plan.drain_s,
            lateness_bound_s=plan.lateness_bound_s,
            slo_classes=plan.slo_classes,
            default_slo_class=plan.default_slo_class,
            arm=spec.arm,
            command=plan.command,
            server_command=published_command(server.launch),
            keep_token_ids=True,  # equal seeds ask the same of every arm: the report holds answers side by side
        )

    @contextmanager
    def _server(self, spec: RunSpec) -> Iterator[Server]:
        """A fresh one, or under `--keep-server` the one that served this arm and seed last, if it still runs."""
        arm = self._arms[spec.arm]
        flags = (*arm.flags, "--seed", str(spec.seed)) if self._plan.device_noise and arm.group != "peer" else arm.flags
        system = self._plan.systems[arm.system]
        if not self._plan.keep_server:
            self._log.unlink(missing_ok=True)
            with running(system, flags, self._log) as server:
                yield server
            return
        name = (spec.arm, spec.seed)
        if self._kept is None or self._kept[0] != name or self._kept[1].exit_code is not None:
            self._open.close()
            self._kept = None
            self._log.unlink(missing_ok=True)
            self._kept = (name, self._open.enter_context(running(system, flags, self._log)))
        yield self._kept[1]

    def _fail(self, spec: RunSpec, workload: Workload, folder: Path, reason: str, command: tuple[str, ...]) -> None:
        write_failed(RunFolder(folder), self._plan, spec, self._arms[spec.arm].system, workload, reason, command)

    def _keep_log(self, folder: Path) -> None:
        if not self._log.exists():
            return
        try:
            shutil.copyfile(self._log, folder / SERVER_LOG)
        except OSError as error:
            raise cannot_write(folder / SERVER_LOG, error) from None

    def _version(self, arm: SweepArm) -> str:
        if arm.system not in self._versions:
            self._versions[arm.system] = self._plan.systems[arm.system].version()
        return self._versions[arm.system]

    def _report(self, spec: RunSpec, left: list[RunSpec]) -> None:
        result = self._journal.result(spec)
        if result is None:
            raise ConfigError(
                str(self._journal.run_folder(spec)), "was not written whole", "run the same command again"
            )
        folder = self._journal.run_folder(spec)
        write_figures(folder, run_figures(read_run(folder)))
        if result.whole_s is not None and result.status != "failed":
            self._pace.observe(spec, result.whole_s)
        made = len(made_runs(self._plan, self._journal.result))
        of = "" if self._plan.search is not None else f"/{made + len(left)}"
        rest = estimate_runs(self._pace, left)
        in_round = " of this round" if self._plan.search is not None else ""
        self._say(f"[{made}{of}] {words_of(spec, result)}; {duration(rest.likely_s)}{in_round} left")

    def _outcome(self, num_left: int) -> Outcome:
        results = [self._journal.result(spec) for spec in made_runs(self._plan, self._journal.result)]
        statuses = [result.status for result in results if result is not None]
        return Outcome(len(statuses), statuses.count("failed"), statuses.count("invalid"), num_left)


def published_command(launch: Launch) -> tuple[str, ...]:
    return written_command(launch.written or launch.command)


def words_of(spec: RunSpec, result: RunResult) -> str:
    """One line about a run that is done."""
    head = f"{spec.arm} at {spec.rate:g}/s, seed {spec.seed}"
    took = "" if result.whole_s is None else f" in {duration(result.whole_s)}"
    if result.status == "failed":
        return f"{head}: failed: {in_short(result.reasons)}"
    share = f"{result.good / result.offered:.1%}" if result.offered else "nothing"
    kept = f"{head}: {share} of {result.offered} kept their promises{took}"
    return kept if result.status == "valid" else f"{kept}; {result.status}: {in_short(result.reasons)}"


def in_short(reasons: tuple[str, ...]) -> str:
    """The reason in one line. Of a server's output the last line that is not indented: its complaint."""
    if not reasons:
        return "no reason given"
    first, *output = reasons[0].splitlines()
    complaints = [line for line in output if line.strip() and not line[0].isspace()]
    return f"{first} {complaints[-1]}" if complaints else first
