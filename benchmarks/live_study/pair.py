"""One arm on one load, live through `colocate serve` over HTTP and in the simulator, told the same things.

What the two are not told alike: the simulator's clock has no HTTP, no tokenizer and no client; its messages between
processes take `message_s` and its workers need `turn_s` between two pieces of work, both constants that were measured
once; a live worker learns how long a layer takes before it cuts longer slices, a simulated one knows.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

from msgspec import Struct
from open_loop import offer
from server import running_server

from colocate.config.slo import SloClass
from colocate.core.settings import EngineSettings
from colocate.sim.records import Quantiles, Summary
from colocate.sim.run import simulate
from colocate.sim.settings import SimSettings, engine_settings
from colocate.sim.what_if import read_logged_run
from colocate.workload.rows import Workload
from live_study.host import HostWatch
from live_study.slowed import targets_of

MODEL_NAME = "bench"
NUM_SEEDS = 7  # of the device's noise, per simulated arm


class Live(Struct, frozen=True):
    """`client` is what the client saw; `engine` the same requests on the engine's clock, from its event log."""

    client: Summary
    engine: Summary
    late_s: Quantiles  # how late the client sent
    num_errors: int
    cores: dict[str, float]
    kv_tokens: int
    num_switches: int
    residency: dict[str, float]


class Simulated(Struct, frozen=True):
    """The median over several seeds of the device's noise, figure by figure, and the summaries of all seeds."""

    runs: list[Summary]
    num_switches: list[int]


@dataclass(frozen=True, slots=True)
class Site:
    """Where an arm runs live: the checkpoint served, and the flags of the device. `tail_s`: how long answers may take
    after the last arrival."""

    model: Path
    flags: tuple[str, ...]
    tail_s: float = 60.0


def run_live(site: Site, workload: Workload, settings: SimSettings) -> Live:
    """A fresh daemon, the whole load, and the daemon is gone again. Raises RuntimeError where it does not start."""
    with tempfile.TemporaryDirectory(prefix="colocate-live-") as directory:
        flags = (*site.flags, *serve_flags(settings), "--event-log", directory)
        command = (str(site.model), "--served-model-name", MODEL_NAME, "--log-level", "warning", *flags)
        with running_server(*command) as server:
            watch = HostWatch(server.pid)
            watch.start()
            run = offer(workload, server.port, MODEL_NAME, drain_s=site.tail_s)
            cores = watch.stop()
            state = server.state()
        (log,) = Path(directory).glob("*.log")
        logged = read_logged_run(log)
    kv_tokens = state["kv"]["blocks_total"] * state["kv"]["block_size"]
    check_told_alike(logged.settings, engine_settings(replace(settings, kv_tokens=kv_tokens)))
    return Live(
        client=run.summary(settings.slo_classes, settings.default_slo_class),
        engine=logged.summary(),
        late_s=run.lateness(),
        num_errors=len(run.errors),
        cores=cores,
        kv_tokens=kv_tokens,
        num_switches=state["switches"]["count"],
        residency=state["residency"],
    )


def check_told_alike(live: EngineSettings, simulated: EngineSettings) -> None:
    """Raises RuntimeError where the two engines were not given the same settings."""
    names = [field for field in live.__struct_fields__ if getattr(live, field) != getattr(simulated, field)]
    if names:
        told = "; ".join(f"{name}: {getattr(live, name)} live, {getattr(simulated, name)} simulated" for name in names)
        raise RuntimeError(f"the live engine and the simulated one were told different things: {told[:2000]}")


def run_simulated(workload: Workload, settings: SimSettings, num_seeds: int = NUM_SEEDS) -> Simulated:
    """`truth_error` is 0: the device of the live run is the one that the profile describes, as well as it does."""
    results = [
        simulate(workload, replace(settings, truth_error=0.0, seed=settings.seed + index)) for index in range(num_seeds)
    ]
    return Simulated([result.summary for result in results], [result.num_switches for result in results])


def serve_flags(settings: SimSettings) -> list[str]:
    """The flags of `serve` that mean what these settings of the simulator mean; the device's own are not among them."""
    chosen = ["--plan", settings.plan] if settings.mode == "colocated" else ["--mode", settings.mode]
    named = {
        "block-size": settings.block_size,
        "max-num-seqs": settings.max_num_seqs,
        "max-num-batched-tokens": settings.max_num_batched_tokens,
        "max-queue": settings.max_queue,
        "max-slice-ms": settings.max_slice_ms,
        "discipline": settings.discipline,
        "admission": settings.admission,
    }
    sizes = [word for name, value in named.items() for word in (f"--{name}", str(value))]
    classes = [word for slo in settings.slo_classes for word in ("--slo-class", slo_text(slo))]
    return [*chosen, *sizes, *classes]


def slo_text(slo: SloClass) -> str:
    given = ", ".join(f"{name} {seconds!r} s" for name, seconds in targets_of(slo).items())
    return f"{slo.name}: {given or 'none'}"
