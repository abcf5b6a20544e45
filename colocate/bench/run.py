"""One run from end to end: look at the target, prepare prompts, offer the load, write the run folder."""

from __future__ import annotations

import asyncio
import hashlib
import resource
import secrets
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime

import msgspec

from colocate.bench.folder import RunFolder
from colocate.bench.loop import LoadRun
from colocate.bench.manifest import MachineTimes, git_facts, host_facts, load_of_others, versions, written_command
from colocate.bench.plan import BenchPlan
from colocate.bench.progress import Progress
from colocate.bench.prompts import Prompts, prepare_prompts
from colocate.bench.records import SCHEMA_VERSION, RequestRow, RunManifest, RunStatus
from colocate.bench.target import Target, find_target
from colocate.bench.watch import Totals, Watcher, differences
from colocate.config.slo import parse_slo_classes
from colocate.errors import ConfigError
from colocate.workload.rows import to_jsonl

__all__ = ["BenchPlan", "run_bench"]

UNDER_WAY = "the run did not come to its end"
INTERRUPTED = "interrupted"


def run_bench(plan: BenchPlan, *, quiet: bool = False) -> RunManifest:
    """Run the plan and leave `plan.out` as bench/records.py says. `quiet`: no progress on standard error.

    The folder holds a manifest of status `partial` from the start, so that a killed run says what it is. Whatever the
    server does is a row; the manifest's status says whether the client kept its promises: `invalid` where it sent too
    late, `failed` where no request of the measured phase got a single token.

    Raises ConfigError for what the operator can mend: an unreachable server, a wrong key, an unknown model, a folder
    that is taken or full (rows are kept, status partial). Raises KeyboardInterrupt after Ctrl-C or SIGTERM, with every
    row written and status partial.
    """
    parse_slo_classes(plan.slo_classes, "--slo-class")
    _allow_open_files()
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        try:
            return runner.run(_run(plan, quiet))
        except asyncio.CancelledError:  # by SIGTERM: nobody else has hold of it
            raise KeyboardInterrupt from None


def _allow_open_files() -> None:
    """A request is a connection and so an open file: as many as this process may have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:  # where it has no build
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory


def _end_at_sigterm() -> None:
    """As at Ctrl-C: `timeout` and batch systems end a run so. Whoever has a handler of his own keeps it."""
    run = asyncio.current_task()
    is_free = signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    if run is not None and is_free and threading.current_thread() is threading.main_thread():
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, run.cancel)


async def _run(plan: BenchPlan, quiet: bool) -> RunManifest:
    _end_at_sigterm()
    target = await find_target(plan)
    prompts = await prepare_prompts(plan, target)
    created = datetime.now(UTC)
    run_id = f"{created:%Y%m%dT%H%M%S}-{secrets.token_hex(3)}"
    load = LoadRun(plan, target, prompts, run_id)
    folder = RunFolder(plan.out)
    measurement = _Measurement(plan, target, prompts, load, folder, run_id, created, quiet)
    return await measurement.run()


class _Measurement:
    """The parts of one run, and what they make of the manifest."""

    def __init__(
        self,
        plan: BenchPlan,
        target: Target,
        prompts: Prompts,
        load: LoadRun,
        folder: RunFolder,
        run_id: str,
        created: datetime,
        quiet: bool,
    ) -> None:
        self._plan, self._target, self._prompts, self._load, self._folder = plan, target, prompts, load, folder
        self._run_id, self._created = run_id, created.isoformat(timespec="seconds")
        self._watcher = Watcher(target, load.clock, folder.add_sample, plan.sample_s)
        self._progress = Progress(load, plan.workload.duration_s, quiet=quiet)
        self._num_answered = 0  # rows of the measured phase that got a token
        self._num_measured = 0
        self._times = MachineTimes.now()
        self._host = host_facts()
        self._git = git_facts()
        self._before = Totals()

    async def run(self) -> RunManifest:
        self._folder.write_manifest(self._manifest("partial", (UNDER_WAY,)))
        helpers: list[asyncio.Task[None]] = []
        reasons: tuple[str, ...] = ()
        try:
            await self._load.prepare()
            self._before = await self._watcher.totals()
            self._times = MachineTimes.now()
            helpers.append(asyncio.create_task(self._progress.run()))
            await asyncio.sleep(0)  # its first drawing imports much
            self._load.start_clock()
            helpers.append(asyncio.create_task(self._watcher.run()))
            await self._load.run(self._note)
        except asyncio.CancelledError:
            reasons = (INTERRUPTED,)
            raise
        except ConfigError as error:
            reasons = (error.problem,)
            raise
        finally:
            for helper in helpers:
                helper.cancel()
            done = await asyncio.gather(*helpers, return_exceptions=True)
            elapsed_s = self._load.clock()
            if reasons:
                self._finish_partial(reasons, elapsed_s)
        # What has happened since the last look, switches above all.
        done += await asyncio.gather(self._watcher.look(with_memory=False), return_exceptions=True)
        for outcome in done:  # a disk that filled up under a sample
            if isinstance(outcome, Exception):
                self._finish_partial((str(outcome),), elapsed_s)
                raise outcome
        after = await self._watcher.totals()
        self._folder.close()
        manifest = self._manifest(*self._verdict(), elapsed_s, after)
        self._folder.write_manifest(manifest)
        return manifest

    def _finish_partial(self, reasons: tuple[str, ...], elapsed_s: float) -> None:
        # The manifest of the start stands where this one finds no room: it says partial, too.
        with suppress(ConfigError):
            self._folder.close()
        with suppress(ConfigError):
            self._folder.write_manifest(self._manifest("partial", reasons, elapsed_s))

    def _note(self, row: RequestRow) -> None:
        self._folder.add_row(row)
        self._progress.note(row)
        if row.phase == "measured":
            self._num_measured += 1
            self._num_answered += bool(row.token_s)

    def _verdict(self) -> tuple[RunStatus, tuple[str, ...]]:
        if not self._num_measured:
            return "invalid", ("no request was due in the measured phase",)
        if not self._num_answered:
            return "failed", ("no request of the measured phase got a token",)
        late_s, bound_s = self._load.counts.lateness()["p99"], self._plan.lateness_bound_s
        if late_s is not None and late_s > bound_s:
            reason = f"the client sent late: p99 {late_s * 1e3:.1f} ms, bound {bound_s * 1e3:g} ms"
            return "invalid", (reason,)
        return "valid", ()

    def _manifest(
        self, status: RunStatus, reasons: tuple[str, ...], elapsed_s: float = 0.0, after: Totals | None = None
    ) -> RunManifest:
        plan, workload = self._plan, self._plan.workload
        residency, figures = ({}, {}) if after is None else differences(self._before, after)
        if self._watcher.peak_resident_bytes is not None:
            figures["peak_resident_bytes"] = self._watcher.peak_resident_bytes
        server_s = figures.get("server_cpu_s")
        others = load_of_others(
            self._times, MachineTimes.now(), elapsed_s, server_s if isinstance(server_s, float) else None
        )
        is_open = plan.concurrency is None
        return RunManifest(
            schema_version=SCHEMA_VERSION,
            run_id=self._run_id,
            status=status,
            reasons=reasons,
            created=self._created,
            command=plan.command or written_command(),
            arm=plan.arm or self._target.system,
            seed=plan.seed,
            offered_rate=(plan.rate or workload.rate) if is_open else None,
            concurrency=plan.concurrency,
            workload=workload.name,
            workload_sha256=hashlib.sha256(to_jsonl(workload)).hexdigest(),
            duration_s=round(self._load.load_s, 6),
            warmup_s=plan.warmup_s,
            cooldown_s=plan.cooldown_s,
            elapsed_s=round(elapsed_s, 6),
            target=self._target.facts,
            slo_classes=plan.slo_classes,
            default_slo_class=plan.default_slo_class,
            client=self._client(),
            host={**self._host, **(others if elapsed_s else {})},
            git=self._git,
            residency=residency,
            switches=tuple(self._watcher.switches[seq] for seq in sorted(self._watcher.switches)),
            figures=figures,
        )

    def _client(self) -> dict[str, object]:
        plan, counts, target = self._plan, self._load.counts, self._target
        return {
            "started_monotonic_s": self._load.started_s,
            # where second 0 of the rows is on this machine's clock, to lay them beside a server's event log
            "start_monotonic_ns": time.monotonic_ns() - round(self._load.clock() * 1e9),
            "lateness_s": msgspec.to_builtins(counts.lateness()),
            "lateness_bound_s": plan.lateness_bound_s,
            "offered": counts.offered,
            "sent": counts.sent,
            "outcomes": dict(counts.outcomes),
            "most_in_flight": counts.most_in_flight,
            "timeout_s": plan.timeout_s,
            "drain_s": plan.drain_s,
            "endpoint": plan.endpoint,
            "prompts": self._prompts.kind,
            "prompt_counts": {
                "told": counts.num_prompts_told,
                "off": counts.num_prompts_off,
                "largest_error": counts.largest_prompt_error,
            },
            "answers_of_other_length": counts.num_short,
            "body_fields": {**target.fields, **plan.extra_body},
            "refused_fields": list(target.dropped),
            "probe": dict(target.probe),
            "looks_failed": self._watcher.num_failed,
            "versions": versions(),
        }
