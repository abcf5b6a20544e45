"""One run from settings to exit code: what `colocate serve` and `colocate generate` call."""

from __future__ import annotations

import dataclasses
import secrets
import time
from collections.abc import Callable

from colocate import __version__
from colocate.config.serve import ServeConfig
from colocate.config.sizes import format_size
from colocate.core.policy.choose import policy_in_force
from colocate.messages.control import ChildReady
from colocate.messages.spec import OneShot, ProfilingJob
from colocate.runtime.child import Child
from colocate.runtime.console import Console, curl_line
from colocate.runtime.crew import Crew
from colocate.runtime.gpu_guard import GpuGuard, gpu_guard_for
from colocate.runtime.listen import bind_listener, url_of
from colocate.runtime.memory_ledger import MemoryLedger
from colocate.runtime.startup import Startup, prepare
from colocate.runtime.supervisor import Supervisor
from colocate.types import Role


def run_daemon(config: ServeConfig) -> int:
    """Serve until stopped. Raises ConfigError where a start is refused; nothing is left running then."""
    console = Console()
    listener = bind_listener(config.http.host, config.http.port)
    with listener:
        startup, phases, gpu = _prepare(config, console)
        crew = Crew(config, startup.facts, _run_id(), gpu, listener, None)
        url = url_of(listener)

        def on_ready() -> None:
            _show_plans(console, config, startup)
            console.ready()
            console.line()
            console.line(f"  open {url}")
            if config.http.api_key:
                console.line("  export KEY=<your key> first, then")
            console.line(f"  {curl_line(url, startup.facts.model_name, bool(config.http.api_key))}")

        return _supervise(config, crew, console, startup, phases, on_ready)


def run_once(config: ServeConfig, prompt: OneShot) -> int:
    """Run one prompt without HTTP: the same processes, the frontend replaced by a client that prints."""
    console = Console(quiet=True)
    startup, phases, gpu = _prepare(config, console)
    crew = Crew(config, startup.facts, _run_id(), gpu, None, prompt)
    return _supervise(config, crew, console, startup, phases, lambda: None)


# Nobody waits for an answer: a machine too busy to beat for a few seconds costs a bad visit and not the run.
_MEASURING_PATIENCE_S = 30.0


def run_measuring(config: ServeConfig, job_for: Callable[[Startup], ProfilingJob]) -> tuple[int, Startup]:
    """`colocate profile`: the same keeper and workers, a profiler in the engine's place, no frontend. The exit code,
    and what was measured on. A process that dies is not replaced: what it was measuring would be another's."""
    patient_s = max(_MEASURING_PATIENCE_S, config.supervisor.heartbeat_timeout_s)
    supervisor = dataclasses.replace(config.supervisor, max_restarts=0, heartbeat_timeout_s=patient_s)
    scheduler = dataclasses.replace(  # nothing is scheduled and nothing promised
        config.scheduler,
        mode="colocated",
        plan="elastic",
        plans=None,
        shadow=None,
        slo_class=(),
        default_slo_class=None,
    )
    config = dataclasses.replace(config, supervisor=supervisor, scheduler=scheduler)
    console = Console()
    startup, phases, gpu = _prepare(config, console)
    crew = Crew(config, startup.facts, _run_id(), gpu, None, None, job_for(startup))
    return _supervise(config, crew, console, startup, phases, lambda: None), startup


def _prepare(config: ServeConfig, console: Console) -> tuple[Startup, dict[str, float], GpuGuard]:
    started_s = time.monotonic()
    console.line(f"colocate {__version__}")
    startup = prepare(config)
    seconds = time.monotonic() - started_s
    facts = startup.facts
    units = f"{facts.total_units} {'cores' if facts.device_kind == 'cpu' else 'units'}"
    console.step("device", f"{facts.device_kind}, {units} ({facts.device_name})")
    console.step("model", f"{facts.model_name}, {facts.dtype}, up to {facts.max_model_len} tokens", seconds)
    for note in startup.notes:
        console.warn(note)
    gpu = gpu_guard_for(config, facts.device_kind)
    return startup, {"prepare": seconds}, gpu


def _supervise(
    config: ServeConfig,
    crew: Crew,
    console: Console,
    startup: Startup,
    phases: dict[str, float],
    on_ready: Callable[[], None],
) -> int:
    ledger = None if startup.budget is None else MemoryLedger(startup.budget)
    gpu_memory: dict[str, int] = {}

    def describe(child: Child, ready: ChildReady) -> str:
        if ledger is not None:
            ledger.note(child.role, ready.facts)
            gpu_memory.update(ledger.as_facts())
        return f"pid {child.pid}" + _detail_of(child.role, startup)

    def all_ready() -> None:
        if ledger is not None:
            console.line(ledger.render())
            for warning in ledger.warnings():
                console.warn(warning)
        on_ready()

    supervisor = Supervisor(
        config, crew, console, phases=phases, gpu_memory=gpu_memory, on_ready=all_ready, describe=describe
    )
    return supervisor.run()


def _detail_of(role: Role, startup: Startup) -> str:
    facts = startup.facts
    if role is not Role.KEEPER:
        return ""
    if facts.device_kind == "emulated":
        return f", no memory needed; {facts.num_blocks} blocks of {facts.block_size} tokens"
    pool = f"{facts.num_blocks} blocks of {facts.block_size} tokens"
    return f", weights {format_size(startup.weights_bytes)}, KV pool {format_size(startup.kv_bytes)} in {pool}"


_SHOWN_PLANS = 8


def _show_plans(console: Console, config: ServeConfig, startup: Startup) -> None:
    scheduler, plans = config.scheduler, startup.plans
    policy = policy_in_force(scheduler.mode, scheduler.plan)
    names = [plan.name + (" (default split)" if plan.name == plans.default_split else "") for plan in plans.plans]
    if len(names) > _SHOWN_PLANS:
        names = [*names[: _SHOWN_PLANS - 4], "...", *names[-3:]]
    console.step("plans", ", ".join(names) if scheduler.mode == "colocated" else policy)
    console.step("policy", f"{policy}, mode {scheduler.mode}")


def _run_id() -> str:
    return secrets.token_hex(8)
