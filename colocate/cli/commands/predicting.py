"""Commands that measure a device and predict from it."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from colocate.cli.load_options import (
    ArrivalsOption,
    BlockTokensOption,
    LengthsOption,
    PatternOption,
    PeriodOption,
    SpeedOption,
    WorkloadOption,
)
from colocate.cli.options import (
    PROFILE_OPTIONS,
    SIMULATE_OPTIONS,
    with_settings,
)
from colocate.cli.root import ConfigOption, ModelArgument, app
from colocate.cli.sharing_options import with_sharing
from colocate.config.load import load_config


@app.command(
    help="Run the engine under a virtual clock on a device made from a profile: what a policy does to a load, many "
    "times faster than in real time."
)
@with_settings(SIMULATE_OPTIONS)
@with_sharing()
def simulate(
    flags: dict[str, object],
    sharing: dict[str, int],
    config: ConfigOption = None,
    workload: WorkloadOption = None,
    rate: Annotated[
        list[float] | None,
        typer.Option(metavar="X", help="Requests per second; twice for two phases or a ramp.", rich_help_panel="Load"),
    ] = None,
    lengths: LengthsOption = None,
    pattern: PatternOption = "steady",
    arrivals: ArrivalsOption = "poisson",
    duration: Annotated[
        float | None,
        typer.Option(metavar="S", help="Seconds of load. [dim](default 60, or the trace)[/]", rich_help_panel="Load"),
    ] = None,
    period: PeriodOption = 60.0,
    speed: SpeedOption = None,
    block_tokens: BlockTokensOption = 512,
    slo: Annotated[
        str | None,
        typer.Option(metavar="TARGETS", help="For everybody: 'ttft 300 ms, tpot 50 ms'.", rich_help_panel="Load"),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of load and device.", rich_help_panel="Runs")] = 0,
    seeds: Annotated[
        int, typer.Option(min=1, help="How many runs, each with the next seed.", rich_help_panel="Runs")
    ] = 1,
    replicas: Annotated[
        int, typer.Option(min=0, help="Replicas behind a router; 0 is one daemon.", rich_help_panel="Runs")
    ] = 0,
    router: Annotated[
        str, typer.Option(metavar="NAME", help="round-robin, least-loaded or prefix.", rich_help_panel="Runs")
    ] = "round-robin",
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Processes. [dim](default: one per core)[/]", rich_help_panel="Runs")
    ] = None,
    kv_tokens: Annotated[
        int, typer.Option(min=0, help="Tokens the KV pool holds. 0: the profile's.", rich_help_panel="Simulated device")
    ] = 0,
    prediction_error: Annotated[
        float,
        typer.Option(
            min=0.0,
            metavar="X",
            help="Bend what the engine believes: 0.2 is about 20%.",
            rich_help_panel="Simulated device",
        ),
    ] = 0.0,
    truth_error: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            metavar="X",
            help="How far the device is from its profile. [dim](default 0.05)[/]",
            rich_help_panel="Simulated device",
        ),
    ] = None,
    drain: Annotated[
        float | None,
        typer.Option(
            min=0.0, metavar="S", help="Seconds after the last arrival. [dim](default 60)[/]", rich_help_panel="Runs"
        ),
    ] = None,
    json: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the figures.", rich_help_panel="Output")
    ] = None,
    records: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write one JSON line per request.", rich_help_panel="Output")
    ] = None,
    event_log: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write the engine's event log, for replay.", rich_help_panel="Output"),
    ] = None,
) -> None:
    from colocate.cli.simulate import Ask, run_simulate
    from colocate.workload.patterns import PatternShape
    from colocate.workload.recipe import Recipe

    recipe = Recipe(
        trace=workload,
        rates=tuple(rate or ()),
        lengths=tuple(lengths or ()),
        pattern=pattern,
        arrivals=arrivals,
        duration_s=duration,
        period_s=period,
        speed=speed,
        block_tokens=block_tokens,
        shape=PatternShape(**sharing),
    )
    ask = Ask(
        recipe=recipe,
        slo=slo,
        seed=seed,
        num_seeds=seeds,
        num_replicas=replicas,
        router=router,
        jobs=jobs,
        kv_tokens=kv_tokens,
        prediction_error=prediction_error,
        truth_error=truth_error,
        drain_s=drain,
        json=json,
        records=records,
        event_log=event_log,
    )
    sys.exit(run_simulate(load_config(config, os.environ, flags), ask))


@app.command(help="Compute what each partition plan would do to a load, and write a plan file for `serve --plans`.")
def plan(
    profile: Annotated[Path, typer.Option("--profile", metavar="FILE", help="Device profile of `colocate profile`.")],
    slo: Annotated[str, typer.Option("--slo", metavar="TARGETS", help="For example 'ttft 300 ms, tpot 50 ms'.")],
    rate: Annotated[
        float | None, typer.Option(metavar="X", help="Requests per second.", rich_help_panel="Load")
    ] = None,
    prompt_tokens: Annotated[
        float | None, typer.Option(metavar="N", help="Mean length of a prompt.", rich_help_panel="Load")
    ] = None,
    output_tokens: Annotated[
        float | None, typer.Option(metavar="N", help="Mean length of an answer.", rich_help_panel="Load")
    ] = None,
    prompt_cv: Annotated[
        float | None,
        typer.Option(metavar="X", help="Standard deviation over mean. [dim](default 1)[/]", rich_help_panel="Load"),
    ] = None,
    output_cv: Annotated[
        float | None,
        typer.Option(metavar="X", help="Standard deviation over mean. [dim](default 1)[/]", rich_help_panel="Load"),
    ] = None,
    workload: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="A trace instead; --rate then scales it.", rich_help_panel="Load"),
    ] = None,
    max_num_seqs: Annotated[int, typer.Option(min=1, help="As in serve.", rich_help_panel="Engine")] = 64,
    max_num_batched_tokens: Annotated[
        int,
        typer.Option("--max-num-batched-tokens", "--chunk-size", min=1, help="As in serve.", rich_help_panel="Engine"),
    ] = 512,
    kv_tokens: Annotated[
        int, typer.Option(min=0, help="Tokens the KV pool holds. 0: the profile's.", rich_help_panel="Engine")
    ] = 0,
    out: Annotated[Path | None, typer.Option("--out", metavar="FILE", help="Write a plan file.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Machine-readable output.")] = False,
) -> None:
    from colocate.cli.plan import Ask, run_plan
    from colocate.core.forecast import Limits

    limits = Limits(max_num_seqs, max_num_batched_tokens, kv_tokens)
    lengths = (prompt_tokens, output_tokens, prompt_cv, output_cv)
    sys.exit(run_plan(Ask(profile, slo, rate, *lengths, workload, limits, out, json)))


@app.command(
    name="profile",
    help="Measure how long prefill and decode take on each share of this device, alone and together, and fit the "
    "latency model that the engine predicts from.",
)
@with_settings(PROFILE_OPTIONS)
def profile_command(
    flags: dict[str, object],
    model: ModelArgument = None,
    config: ConfigOption = None,
    budget: Annotated[str, typer.Option(metavar="TIME", help="Time to measure for, e.g. 90s or 1h.")] = "10m",
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Where to. [dim](default profiles/DEVICE/MODEL.json)[/]", show_default=False),
    ] = None,
    resume: Annotated[bool, typer.Option(help="Go on with an interrupted run of the same output.")] = True,
    temperature: Annotated[float, typer.Option(min=0.0, help="Of the draws measured; 0 is greedy.")] = 0.0,
    show: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Print this profile and measure nothing.", show_default=False),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Also draw it: a PNG, SVG or PDF.", show_default=False),
    ] = None,
) -> None:
    from colocate.cli.profile import parse_budget, run_measure, run_show
    from colocate.runtime.profiling.run import ProfileRequest

    if show is not None:
        sys.exit(run_show(show, plot))
    if model is not None:
        flags["model"] = model
    request = ProfileRequest(parse_budget(budget), out, resume, temperature)
    sys.exit(run_measure(load_config(config, os.environ, flags), request, plot))
