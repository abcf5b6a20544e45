"""`colocate sweep`: arms x rates x seeds against servers that it starts itself."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar, get_args

from rich.console import Console

from colocate.bench.manifest import git_facts, host_facts, written_command
from colocate.bench.plan import Endpoint
from colocate.bench.read import RECALL_FOLDER, RUNS_FOLDER, SWEEP_FILE, read_sweep, read_sweep_manifest
from colocate.bench.sweep.arms import OURS, Grounds, as_flags, resolve_arms, wants_every_plan
from colocate.bench.sweep.estimate import duration
from colocate.bench.sweep.execute import Outcome, SweepRunner, estimate_left
from colocate.bench.sweep.journal import Journal
from colocate.bench.sweep.load import Load
from colocate.bench.sweep.plan import SweepPlan
from colocate.bench.sweep.recall import Recalled, RecallRound, check_recall, recall_plan, words_of_recall
from colocate.bench.sweep.search import Search, grid
from colocate.bench.sweep.table import sweep_table
from colocate.bench.systems.colocate import Colocate, static_plans
from colocate.bench.systems.command import CommandSystem, parse_peers
from colocate.bench.systems.server import ServerFailed
from colocate.bench.systems.system import System
from colocate.cli.sweep_options import SweepOptions
from colocate.config.load import load_config
from colocate.config.serve import ServeConfig
from colocate.errors import ConfigError
from colocate.workload.recipe import Recipe

EXIT_NOT_WHOLE = 1
EXIT_INTERRUPTED = 130
_STEP = 1.05
_Number = TypeVar("_Number", int, float)


@dataclass(frozen=True, slots=True)
class Manner:
    """How to go about it; nothing of it changes a figure."""

    resume: bool = True
    retry: bool = False
    estimate_only: bool = False


def run_sweep(options: SweepOptions, manner: Manner) -> int:
    """0 where every run is done and valid and every arm was asked what it recalls, 1 where one is not or was left out,
    130 after Ctrl-C. Raises ConfigError."""
    started_s = time.monotonic()
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    plan = sweep_plan(options, console)
    if manner.estimate_only:
        _show_estimate(plan, manner)
        return 0
    manifest = plan.manifest(_now(), host_facts(), git_facts())
    with Journal(plan.out, manifest, resume=manner.resume, retry=manner.retry) as journal:
        estimate, recall = estimate_left(plan, journal.result), RecallRound(plan, console.print, retry=manner.retry)
        console.print(f"{plan.out}: {len(plan.arms)} arms, {estimate.words()}{recall.words()} to go")
        reserve_s = recall.estimate_s()
        if plan.budget_s is not None and estimate.likely_s + reserve_s > plan.budget_s:
            console.print(f"the budget of {duration(plan.budget_s)} is less: the last runs will be left out")
        try:
            quiet = not console.is_terminal
            outcome = SweepRunner(plan, journal, console.print, quiet=quiet, reserve_s=reserve_s).run()
            recalled = recall.ask(None if plan.budget_s is None else started_s + plan.budget_s - time.monotonic())
        except KeyboardInterrupt:
            console.print(f"\nstopped; what is done is kept in {plan.out}, the same command goes on from there")
            return EXIT_INTERRUPTED
    _show(plan)
    _say_outcome(console, plan, outcome, recalled)
    return 0 if outcome.is_whole and recalled.is_whole else EXIT_NOT_WHOLE


def sweep_plan(options: SweepOptions, console: Console) -> SweepPlan:
    """Everything checked that can be checked without running. Starts a server for a moment where the device has to be
    asked for its plans. Raises ConfigError."""
    config = _server_config(options)
    check_recall(options.recall, options.model, config.device.device, os.environ)
    given = {name: value for name, value in options.serve.items() if value is not None}
    if "slo_class" in given:  # a file may hold a mapping
        given["slo_class"] = config.scheduler.slo_class
    flags = as_flags(given)
    ours = Colocate(options.model, flags, options.seconds("ready_timeout"))
    peers = parse_peers("peers", options.peers)
    systems: dict[str, System] = {name: CommandSystem(name, entry, options.model) for name, entry in peers.items()}
    if OURS in systems:
        raise ConfigError("peers: colocate", "is the name of this package's own server", "give it another name")
    systems[OURS] = ours
    out = Path(options.out or f"sweeps/{Path(options.model).name}")
    asked = {"arms": list(options.arms), "serve": list(flags), "chunk_sizes": list(options.chunk_sizes)}
    splits = _splits(options, ours, out, asked, console) if wants_every_plan(options.arms) else ()
    grounds = Grounds(splits, options.chunk_sizes, config.scheduler.max_num_seqs, peers)
    search = Search(options.goodput_at, options.max_requests)
    arms = resolve_arms(options.arms, grounds)
    return SweepPlan(
        model=options.model,
        out=out,
        arms=arms,
        systems=systems,
        load=_load(options),
        rates=_rates(options),
        seeds=tuple(range(options.first_seed, options.first_seed + max(1, options.seeds))),
        slo_classes=config.scheduler.slo_class,
        default_slo_class=config.scheduler.default_slo_class or "",
        search=search if options.search else None,
        keep_server=options.keep_server,
        order_seed=options.order_seed,
        budget_s=None if options.budget is None else options.seconds("budget"),
        endpoint=_endpoint(options.endpoint),
        timeout_s=options.seconds("timeout"),
        drain_s=options.seconds("drain"),
        lateness_bound_s=options.seconds("lateness_bound"),
        asked=asked,
        device_noise=config.device.device == "emulated",
        recall=recall_plan(options.recall, arms, ours),
        command=written_command(),
    )


def _server_config(options: SweepOptions) -> ServeConfig:
    """As the servers will have it: held against the same rules before the first of them starts."""
    config = load_config(None, os.environ, {**options.serve, "model": options.model})
    if config.http.api_key:
        raise ConfigError("environment: COLOCATE_API_KEY", "would lock the servers of this sweep", "unset it")
    return config


def _load(options: SweepOptions) -> Load:
    for flag, value in (("--seeds", options.seeds), ("--min-requests", options.min_requests)):
        if value < 1:
            raise ConfigError(flag, f"cannot be {value}", "at least 1")
    recipe = Recipe(
        trace=None if options.workload is None else Path(options.workload),
        rates=options.proportion,
        lengths=options.lengths,
        pattern=options.pattern,
        arrivals=options.arrivals,
        duration_s=None if options.duration is None else options.seconds("duration"),
        period_s=options.seconds("period"),
        block_tokens=options.block_tokens,
        shape=options.sharing.shape,
        classes=options.mix,
    )
    load = Load(
        recipe=recipe,
        min_requests=options.min_requests,
        warmup_s=options.seconds("warmup"),
        cooldown_s=options.seconds("cooldown"),
    )
    load.at(_rates(options)[0], options.first_seed)  # a recipe that cannot be is refused before anything starts
    return load


def _rates(options: SweepOptions) -> tuple[float, ...]:
    if not options.search:
        if not options.rates:
            raise ConfigError("--rates", "is missing", "for example --rates 1,2,4; or --search 0.5:8")
        return tuple(sorted(options.rates))
    if options.rates:
        raise ConfigError("--search", "is given beside --rates", "give one of the two")
    try:
        numbers = [float(part) for part in options.search.split(":")]
        low, high, step = [*numbers, _STEP][:3]
    except ValueError:
        raise ConfigError("--search", f"{options.search!r} is not LOW:HIGH or LOW:HIGH:STEP", "as 0.5:8") from None
    return grid(low, high, step)


def _endpoint(name: str) -> Endpoint:
    for known in get_args(Endpoint):
        if name == known:
            return known  # type: ignore[no-any-return]
    raise ConfigError("--endpoint", f"{name!r} is none", f"choose one of: {', '.join(get_args(Endpoint))}")


def _splits(
    options: SweepOptions, ours: Colocate, out: Path, asked: Mapping[str, object], console: Console
) -> tuple[str, ...]:
    """Of the folder, where it was asked for the same before; else of the device."""
    if (out / SWEEP_FILE).exists():
        known = read_sweep_manifest(out)
        if known.recipe.get("model") == options.model and all(known.recipe.get(key) == asked[key] for key in asked):
            names = [arm.name.partition("+")[0] for arm in known.arms if arm.group == "static"]
            named = [name.partition("+")[0] for name in options.arms if name.startswith("static:")]
            return tuple(dict.fromkeys(name.removeprefix("static:") for name in names if name not in named))
    console.print("asking the device for its plans")
    with tempfile.TemporaryDirectory(prefix="colocate-sweep-") as directory:
        try:
            return static_plans(ours, Path(directory) / "server.log")
        except ServerFailed as error:
            raise ConfigError(
                "colocate serve", str(error), "mend it, or name the plans: --arms static:p1d1,..."
            ) from None


def _show_estimate(plan: SweepPlan, manner: Manner) -> None:
    manifest = plan.manifest(_now(), host_facts(), git_facts())
    if (plan.out / SWEEP_FILE).exists():
        with Journal(plan.out, manifest, retry=manner.retry) as journal:
            estimate = estimate_left(plan, journal.result)
    else:
        estimate = estimate_left(plan, lambda _: None)
    print(f"{', '.join(arm.name for arm in plan.arms)}")
    print(estimate.words() + RecallRound(plan, print, retry=manner.retry).words())


def _show(plan: SweepPlan) -> None:
    console = Console()
    target = 0.9 if plan.search is None else plan.search.target
    (console if console.is_terminal else Console(width=160)).print(sweep_table(read_sweep(plan.out), target))


def _say_outcome(console: Console, plan: SweepPlan, outcome: Outcome, recalled: Recalled) -> None:
    if outcome.num_failed:
        console.print(f"{outcome.num_failed} of {outcome.num_made} runs failed: {plan.out / RUNS_FOLDER} says why")
    if outcome.num_invalid:
        console.print(f"{outcome.num_invalid} of {outcome.num_made} runs are not valid; --retry repeats them")
    if outcome.num_left:
        console.print(f"the budget left out {outcome.num_left} runs; the same command goes on from there")
    for record in recalled.short:
        console.print(words_of_recall(record))
    if recalled.failed:
        named = ", ".join(record.arm for record in recalled.failed)
        console.print(f"the recall of {named} failed: {plan.out / RECALL_FOLDER} says why; --retry asks again")
    if recalled.num_left:
        arms = "1 arm" if recalled.num_left == 1 else f"{recalled.num_left} arms"
        console.print(f"the budget left out the recall of {arms}; the same command goes on from there")
    console.print(f"report: colocate report {plan.out}")


def _now() -> str:
    from datetime import UTC, datetime

    return datetime.now(UTC).isoformat(timespec="seconds")


def split_list(texts: list[str] | None) -> list[str] | None:
    """Of an option that may be repeated and may hold commas."""
    if not texts:
        return None
    return [part.strip() for text in texts for part in text.split(",") if part.strip()]


def numbers(texts: list[str] | None, flag: str, kind: type[_Number]) -> list[_Number] | None:
    """The same of numbers. Raises ConfigError."""
    try:
        parts = split_list(texts)
        return None if parts is None else [kind(part) for part in parts]
    except ValueError:
        raise ConfigError(flag, f"{','.join(texts or [])!r} are no such numbers", "for example 1,2,4") from None
