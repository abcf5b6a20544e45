"""`colocate simulate`: the engine under a virtual clock, on a device made from a profile."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
from rich.console import Console
from rich.progress import Progress

from colocate.cli.simulate_report import RunOfSeed, as_json, show
from colocate.config.profile import DeviceProfile, load_profile
from colocate.config.serve import SchedulerSection, ServeConfig
from colocate.config.slo import SloClass, parse_slo_classes, slo_classes
from colocate.core.plan import build_plan_table
from colocate.errors import ConfigError
from colocate.runtime.plan_source import PlanChoice, PlanSource
from colocate.sim.many import Task, run_tasks
from colocate.sim.router import ROUTERS
from colocate.sim.settings import SimSettings
from colocate.workload.recipe import Recipe, cook


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """The command line beside the settings that `serve` has as well."""

    recipe: Recipe
    slo: str | None = None
    seed: int = 0
    num_seeds: int = 1
    num_replicas: int = 0
    router: str = "round-robin"
    jobs: int | None = None
    kv_tokens: int = 0
    prediction_error: float = 0.0
    truth_error: float | None = None
    drain_s: float | None = None
    json: Path | None = None
    records: Path | None = None
    event_log: Path | None = None


def run_simulate(config: ServeConfig, ask: Ask) -> int:
    """Simulate once per seed and print the figures. Raises ConfigError."""
    settings = sim_settings(config, ask)
    if ask.router not in ROUTERS:
        raise ConfigError("--router", f"no router is named {ask.router!r}", f"choose one of: {', '.join(ROUTERS)}")
    if ask.num_seeds > 1 and (ask.event_log is not None or ask.records is not None):
        raise ConfigError("--seeds", "runs several times and one file can hold one run", "drop --event-log, --records")
    started_s = time.perf_counter()
    seeds = range(ask.seed, ask.seed + ask.num_seeds)
    tasks = [_task(ask, settings, seed) for seed in seeds]
    with Progress(console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task("simulating", total=len(tasks))
        results = run_tasks(tasks, ask.jobs or os.cpu_count() or 1, lambda: progress.advance(bar))
    runs = [RunOfSeed(seed, task.workload, result) for seed, task, result in zip(seeds, tasks, results, strict=True)]
    show(settings, runs, time.perf_counter() - started_s)
    if ask.json is not None:
        _write(ask.json, msgspec.json.format(msgspec.json.encode(as_json(settings, runs)), indent=1) + b"\n")
    if ask.records is not None:
        _write(ask.records, b"".join(msgspec.json.encode(record) + b"\n" for record in results[0].records))
    return 0


def _task(ask: Ask, settings: SimSettings, seed: int) -> Task:
    workload = cook(ask.recipe, seed)
    return Task(workload, _with_seed(settings, seed), ask.num_replicas, ask.router, ask.event_log)


def _with_seed(settings: SimSettings, seed: int) -> SimSettings:
    return replace(settings, seed=seed)


def sim_settings(config: ServeConfig, ask: Ask) -> SimSettings:
    """The settings of a run, as `serve` would have them on that device. Raises ConfigError."""
    if config.device.profile is None:
        raise ConfigError("--profile", "is missing", "name the profile of the device to simulate: see configs/profiles")
    profile = load_profile(Path(config.device.profile))
    believed = config.device.latency_profile
    scheduler = config.scheduler
    choice = _plan_choice(scheduler, profile)
    defaults = SimSettings(profile=profile)
    return SimSettings(
        profile=profile,
        latency_profile=load_profile(Path(believed)) if believed is not None else None,
        prediction_error=ask.prediction_error,
        truth_error=defaults.truth_error if ask.truth_error is None else ask.truth_error,
        kv_tokens=ask.kv_tokens,
        block_size=config.memory.block_size,
        mode=scheduler.mode,
        plan=scheduler.plan,
        candidates=choice.candidates,
        best_static=choice.best_static,
        shadow=scheduler.shadow,
        guards=scheduler.guards,
        discipline=scheduler.discipline,
        admission=scheduler.admission,
        prefix_caching=scheduler.prefix_caching,
        slo_classes=_classes(scheduler, ask.slo),
        default_slo_class=scheduler.default_slo_class or "",
        max_slice_ms=scheduler.max_slice_ms,
        max_num_seqs=scheduler.max_num_seqs,
        max_num_batched_tokens=scheduler.max_num_batched_tokens,
        max_queue=scheduler.max_queue,
        drain_s=defaults.drain_s if ask.drain_s is None else ask.drain_s,
    )


def _plan_choice(scheduler: SchedulerSection, profile: DeviceProfile) -> PlanChoice:
    if scheduler.plans is None:
        return PlanChoice()
    if scheduler.mode != "colocated":
        raise ConfigError("plans", f"mode {scheduler.mode!r} runs no partition", "drop --plans")
    table = build_plan_table(profile.units, profile.granularity)
    return PlanSource(Path(scheduler.plans), table, profile.name, profile.model).read()[0]


def _classes(scheduler: SchedulerSection, slo: str | None) -> tuple[SloClass, ...]:
    """`--slo` is one class for everybody; `--slo-class` are named ones that a workload's rows may name."""
    if slo is None:
        return slo_classes(scheduler)
    if scheduler.slo_class:
        raise ConfigError("--slo", "is given beside --slo-class", "give all classes with --slo-class")
    return parse_slo_classes([slo if ":" in slo else f"target: {slo}"], "--slo")


def _write(path: Path, data: bytes) -> None:
    try:
        path.write_bytes(data)
    except OSError as error:
        raise ConfigError(str(path), f"cannot be written: {error.strerror}", "name a writable file") from None
