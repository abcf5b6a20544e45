"""`colocate replay LOG --policy ...`: what another policy would have done with the logged requests."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

import msgspec
from rich.console import Console
from rich.table import Table

from colocate.cli.plan_table import PRIOR
from colocate.cli.replay import logs_at, torn_text
from colocate.config.profile import load_profile
from colocate.config.serve import Mode
from colocate.core.latency import LatencyModel
from colocate.core.plan import build_plan_table
from colocate.core.policy.choose import choose_policy
from colocate.errors import ConfigError
from colocate.runtime.plan_source import PlanSource
from colocate.sim.records import Summary
from colocate.sim.settings import SimSettings, engine_settings
from colocate.sim.what_if import LoggedRun, read_logged_run, settings_of, simulate_logged


@dataclass(frozen=True, slots=True)
class WhatIf:
    """What is to differ from the logged run; None as it was."""

    policy: str | None = None
    mode: str | None = None
    plans: Path | None = None
    profile: Path | None = None
    json: Path | None = None


@dataclass(frozen=True, slots=True)
class Arm:
    """One column of the answer."""

    name: str
    summary: Summary
    num_switches: int


def run_what_if(path: Path, ask: WhatIf) -> int:
    """Print the logged run, the same simulated, and the other policy simulated. Raises ConfigError."""
    logs = logs_at(path)
    if len(logs) != 1:
        raise ConfigError(str(path), f"holds {len(logs)} event logs", "name one of them")
    run = read_logged_run(logs[0])
    as_logged = settings_of(run, logs[0], load_profile(ask.profile) if ask.profile is not None else None)
    other = _other(as_logged, ask)
    if ask.policy is not None:
        _check_policy(other, ask.policy)
    arms = [Arm(f"logged: {_name(as_logged)}", run.summary(), run.num_switches)]
    for title, settings in (("simulated", as_logged), ("what if", other)):
        result = simulate_logged(run, settings)
        arms.append(Arm(f"{title}: {_name(settings)}", result.summary, result.num_switches))
    _show(run, as_logged, arms)
    if ask.json is not None:
        _write(ask.json, as_logged, arms)
    return 0


def _check_policy(settings: SimSettings, word: str) -> None:
    """Resolve it as the engine will, and blame the option that named it. Raises ConfigError."""
    core = engine_settings(settings)
    model = None if core.latency is None else LatencyModel(core.latency)
    choose_policy(core, word, core.plan_table(), model, "policy")


def _other(settings: SimSettings, ask: WhatIf) -> SimSettings:
    mode = _mode(ask.mode) or ("colocated" if ask.policy is not None else settings.mode)
    plan = ask.policy or ("shared" if mode != "colocated" else settings.plan)
    other = replace(settings, mode=mode, plan=plan, shadow=None)  # it serves nothing, and a mode may not allow it
    if ask.plans is None:
        return other
    if mode != "colocated":
        raise ConfigError("--plans", f"mode {mode!r} runs no partition", "drop --plans")
    profile = settings.profile
    table = build_plan_table(profile.units, profile.granularity)
    choice, _ = PlanSource(ask.plans, table, profile.name, profile.model).read()
    return replace(other, candidates=choice.candidates, best_static=choice.best_static)


def _mode(text: str | None) -> Mode | None:
    modes: dict[str, Mode] = {mode: mode for mode in get_args(Mode)}
    if text is None or text in modes:
        return modes.get(text or "")
    raise ConfigError("--mode", f"no mode is named {text!r}", f"choose one of: {', '.join(modes)}")


def _name(settings: SimSettings) -> str:
    return settings.plan if settings.mode == "colocated" else f"mode {settings.mode}"


def _show(run: LoggedRun, settings: SimSettings, arms: list[Arm]) -> None:
    console = Console(soft_wrap=True, highlight=False)
    if not settings.profile.is_measured:
        console.print(PRIOR, style="bold red")
    left_out = f" ({run.left_out} without an answer left out)" if run.left_out else ""
    load = f"{len(run.requests)} requests{left_out} over {run.duration_s:.1f} s, device {settings.profile.name}"
    console.print(load + torn_text(run.num_torn_bytes))
    console.print("logged against simulated is the simulator's error; compare the simulated columns with each other\n")
    table = Table(box=None, pad_edge=False)
    table.add_column("")
    for arm in arms:
        table.add_column(arm.name, justify="right", no_wrap=True)
    measures = (("TTFT", "ttft_s"), ("TPOT", "tpot_s"), ("ITL p99", "itl_p99_s"), ("E2E", "e2e_s"))
    for title, measure in measures:
        for share in ("p50", "p99"):
            cells = [_ms(getattr(getattr(arm.summary, measure), share)) for arm in arms]
            table.add_row(f"{title} {share} ms", *cells)
    table.add_row("attainment %", *(f"{arm.summary.attainment * 100:.1f}" for arm in arms))
    table.add_row("goodput /s", *(f"{arm.summary.goodput:.2f}" for arm in arms))
    table.add_row("rejected", *(str(arm.summary.num_rejected) for arm in arms))
    table.add_row("plan switches", *(str(arm.num_switches) for arm in arms))
    table.add_row("preemptions", *(str(arm.summary.num_preemptions) for arm in arms))
    console.print(table)


def _ms(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1e3:.1f}"


def _write(path: Path, settings: SimSettings, arms: list[Arm]) -> None:
    document = {
        "version": 1,
        "device": settings.profile.name,
        "prediction": settings.profile.kind,
        "warning": "" if settings.profile.is_measured else PRIOR,
        "arms": [{"name": arm.name, "summary": arm.summary, "switches": arm.num_switches} for arm in arms],
    }
    try:
        path.write_bytes(msgspec.json.format(msgspec.json.encode(document), indent=1) + b"\n")
    except OSError as error:
        raise ConfigError(str(path), f"cannot be written: {error.strerror}", "name a writable file") from None
