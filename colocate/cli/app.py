"""The commands and what each hands on to. Heavy imports happen inside the command that needs them."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from colocate.cli.options import (
    GENERATE_OPTIONS,
    PROFILE_OPTIONS,
    SERVE_OPTIONS,
    SIMULATE_OPTIONS,
    SWEEP_OPTIONS,
    SWEEP_PANEL,
    with_settings,
)
from colocate.cli.sharing_options import with_sharing
from colocate.cli.workload import app as workload_app
from colocate.config.load import load_config
from colocate.errors import ConfigError

app = typer.Typer(
    name="colocate",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode="rich",
    help="Serve a language model with prefill and decode in two processes on one device, each on its own share of it.",
)

_EPILOG = (
    "Every option can also stand in the YAML file (max-num-seqs: 32) or in the environment (COLOCATE_MAX_NUM_SEQS=32). "
    "Environment only: COLOCATE_NATIVE=0 goes without the compiled CPU kernels, COLOCATE_CACHE_DIR is where they are "
    "kept."
)
ModelArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="MODEL",
        help="A Hugging Face directory, a hub id such as org/name, or demo, the model inside this package. "
        "[dim](default demo)[/]",
        show_default=False,
    ),
]
ConfigOption = Annotated[
    Path | None,
    typer.Option("--config", "-c", metavar="FILE", help="YAML file with the same names; flags and environment win."),
]


@app.command(help="Serve a model over an OpenAI-compatible HTTP API.", epilog=_EPILOG)
@with_settings(SERVE_OPTIONS)
def serve(flags: dict[str, object], model: ModelArgument = None, config: ConfigOption = None) -> None:
    """Every option can also stand in the YAML file (`max-num-seqs: 32`) or the environment
    (`COLOCATE_MAX_NUM_SEQS=32`)."""
    from colocate.runtime.daemon import run_daemon

    if model is not None:
        flags["model"] = model
    sys.exit(run_daemon(load_config(config, os.environ, flags)))


@app.command(help="Run one prompt through the same processes, without HTTP, and stream the text to standard output.")
@with_settings(GENERATE_OPTIONS)
def generate(
    flags: dict[str, object],
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="The text; `-` reads standard input.")],
    model: ModelArgument = None,
    config: ConfigOption = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Most tokens to generate.", rich_help_panel="Sampling")] = 256,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 is greedy.", rich_help_panel="Sampling")] = 0.0,
    top_p: Annotated[float, typer.Option(min=0.0, max=1.0, rich_help_panel="Sampling")] = 1.0,
    top_k: Annotated[int, typer.Option(min=0, help="0 is off.", rich_help_panel="Sampling")] = 0,
    min_p: Annotated[float, typer.Option(min=0.0, max=1.0, rich_help_panel="Sampling")] = 0.0,
    sampling_seed: Annotated[int, typer.Option(min=0, help="Seed of the draw.", rich_help_panel="Sampling")] = 0,
    raw: Annotated[bool, typer.Option("--raw", help="Feed the text as it is, without the chat template.")] = False,
) -> None:
    from colocate.messages.spec import OneShot
    from colocate.runtime.daemon import run_once

    if model is not None:
        flags["model"] = model
    text = sys.stdin.read() if prompt == "-" else prompt
    request = OneShot(text, max_tokens, temperature, top_p, top_k, min_p, sampling_seed, raw)
    sys.exit(run_once(load_config(config, os.environ, flags), request))


@app.command(
    help="Say what this machine can do, measured, and what is missing for more; on a GPU, prove in real processes that "
    "partitions hold."
)
def doctor(
    device: Annotated[
        str, typer.Option(metavar="NAME", help="auto, cpu or cuda; cuda exits with 1 where it cannot be in force.")
    ] = "auto",
    gpu: Annotated[int, typer.Option(min=0, metavar="N", help="Which GPU, as CUDA counts them.")] = 0,
    quick: Annotated[bool, typer.Option("--quick", help="Leave out what needs two processes.")] = False,
    drill: Annotated[
        bool, typer.Option("--drill", help="Also make faults on purpose, in processes of this command's own.")
    ] = False,
    only: Annotated[
        list[str] | None, typer.Option(metavar="CHECK", help="Just this check, by its name in --json; repeatable.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Machine-readable output.")] = False,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Write doctor.json there too.")] = None,
) -> None:
    from colocate.cli.doctor import DoctorRequest, run_doctor

    if quick and drill:
        raise ConfigError("--drill", "needs the processes that --quick leaves out", "drop one of them")
    sys.exit(run_doctor(DoctorRequest(device, gpu, quick, drill, tuple(only or ()), json, out)))


@app.command(
    help="Feed a recorded event log to a fresh engine core and check that the same commands come out; with --policy or "
    "--mode, simulate what another policy would have done with the same requests."
)
def replay(
    log: Annotated[Path, typer.Argument(metavar="LOG", help="A file or directory from --event-log.")],
    policy: Annotated[
        str | None, typer.Option(metavar="PLAN", help="What if: this policy, as --plan in serve.")
    ] = None,
    mode: Annotated[str | None, typer.Option(metavar="MODE", help="What if: this mode, as in serve.")] = None,
    plans: Annotated[
        Path | None, typer.Option(metavar="FILE", help="What if: plans the policy may choose from.")
    ] = None,
    profile: Annotated[
        Path | None, typer.Option(metavar="FILE", help="What if: the device. Default: the logged engine's own profile.")
    ] = None,
    json: Annotated[Path | None, typer.Option(metavar="FILE", help="What if: write the figures there too.")] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Also hold the engine's invariants after every event; slow.")
    ] = False,
) -> None:
    from colocate.cli.what_if import WhatIf, run_what_if

    if policy is not None or mode is not None:
        if check:
            raise ConfigError("--check", "what if replays no command, so there is nothing to check", "drop --check")
        sys.exit(run_what_if(log, WhatIf(policy, mode, plans, profile, json)))
    if plans is not None or profile is not None or json is not None:
        raise ConfigError("replay", "--plans, --profile and --json ask what if", "say with --policy or --mode what")
    from colocate.cli.replay import run_replay

    sys.exit(run_replay(log, check=check))


@app.command(
    help="Draw event logs of engines, and runs of bench, as one trace: what every request, worker, plan and queue did "
    "when. Open it in Perfetto (ui.perfetto.dev) or chrome://tracing."
)
def timeline(
    sources: Annotated[
        list[Path] | None,
        typer.Argument(metavar="LOG...", help="Files or folders from --event-log, and folders of bench runs."),
    ] = None,
    runs: Annotated[
        list[Path] | None, typer.Option("--runs", "--run", metavar="DIR", help="A folder of a bench run; repeatable.")
    ] = None,
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="FILE", help="Where to; a name ending in .gz is compressed.")
    ] = Path("trace.json"),
    from_s: Annotated[
        float | None, typer.Option("--from", min=0.0, metavar="S", help="Seconds after the first event.")
    ] = None,
    to_s: Annotated[float | None, typer.Option("--to", min=0.0, metavar="S", help="As --from.")] = None,
) -> None:
    from colocate.cli.timeline import Ask, run_timeline

    named = (*(sources or ()), *(runs or ()))
    if not named:
        raise ConfigError("timeline", "nothing to draw", "name an event log or the folder of a bench run")
    sys.exit(run_timeline(Ask(named, out, from_s, to_s)))


@app.command(
    help="Ask a server for values that stand in the prompt and count right answers: the embedded model gives all of "
    "them, unless KV is lost or mixed up. Exit code 1 where one was wrong."
)
def recall(
    url: Annotated[str, typer.Argument(metavar="URL", help="The server.")] = "http://127.0.0.1:8000",
    model: Annotated[str | None, typer.Option(metavar="NAME", help="Default: the first it lists.")] = None,
    api_key: Annotated[
        str | None, typer.Option(metavar="KEY", envvar="OPENAI_API_KEY", help="Sent as a bearer token.")
    ] = None,
    questions: Annotated[int, typer.Option(min=1, help="How many.")] = 50,
    pairs: Annotated[int, typer.Option(min=2, help="In each prompt; 2 to 40 are what the model learned.")] = 16,
    seed: Annotated[int, typer.Option(min=0, help="Of the questions.")] = 0,
) -> None:
    from colocate.cli.recall import run_recall

    sys.exit(run_recall(url, model, api_key, questions, seed, pairs))


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
    workload: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A trace: JSON lines or CSV.", rich_help_panel="Load")
    ] = None,
    rate: Annotated[
        list[float] | None,
        typer.Option(metavar="X", help="Requests per second; twice for two phases or a ramp.", rich_help_panel="Load"),
    ] = None,
    lengths: Annotated[
        list[str] | None,
        typer.Option(
            metavar="LENGTHS",
            help="PROMPT/OUTPUT tokens, lognormal:MEDIAN,SIGMA/MEDIAN,SIGMA, or a trace; twice for two phases.",
            rich_help_panel="Load",
        ),
    ] = None,
    pattern: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="steady, phase-shifting, ramp, shared-schema, same-document, agent-branching, eviction-pressure or "
            "chat.",
            rich_help_panel="Load",
        ),
    ] = "steady",
    arrivals: Annotated[
        str,
        typer.Option(metavar="NAME", help="constant, poisson, or gamma:CV for bursts.", rich_help_panel="Load"),
    ] = "poisson",
    duration: Annotated[
        float | None,
        typer.Option(metavar="S", help="Seconds of load. [dim](default 60, or the trace)[/]", rich_help_panel="Load"),
    ] = None,
    period: Annotated[
        float, typer.Option(metavar="S", help="phase-shifting: both phases once.", rich_help_panel="Load")
    ] = 60.0,
    speed: Annotated[
        float | None, typer.Option(metavar="X", help="Let time run so many times as fast.", rich_help_panel="Load")
    ] = None,
    block_tokens: Annotated[
        int, typer.Option(min=1, help="Tokens per hash id of a Mooncake trace.", rich_help_panel="Load")
    ] = 512,
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


@app.command(
    help="Offer a load to a server of OpenAI's API, this one or another, and write down what came of every request.",
    epilog="Open loop unless --concurrency is given: requests are sent on schedule whatever the server does. Exit "
    "code: 0 a valid run, 1 one that is not, 2 something to mend, 130 interrupted; what was measured is always kept.",
)
@with_sharing()
def bench(
    sharing: dict[str, int],
    address: Annotated[
        str | None, typer.Argument(metavar="URL", help="The server. [dim](http://127.0.0.1:8000)[/]")
    ] = None,
    url: Annotated[
        str | None, typer.Option("--url", "--base-url", metavar="URL", help="The same.", rich_help_panel="Server")
    ] = None,
    model: Annotated[
        str | None, typer.Option(metavar="NAME", help="Default: the first it lists.", rich_help_panel="Server")
    ] = None,
    api_key: Annotated[
        str | None,
        typer.Option(metavar="KEY", envvar="OPENAI_API_KEY", help="Sent as a bearer token.", rich_help_panel="Server"),
    ] = None,
    endpoint: Annotated[
        str, typer.Option(metavar="NAME", help="completions or chat.", rich_help_panel="Server")
    ] = "completions",
    header: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="Sent with every request.", rich_help_panel="Server"),
    ] = None,
    extra_body: Annotated[
        str | None,
        typer.Option(
            metavar="JSON", help='Laid over every request, e.g. \'{"cache_salt": "a"}\'.', rich_help_panel="Server"
        ),
    ] = None,
    prompts: Annotated[
        str,
        typer.Option(metavar="KIND", help="ids, text, or auto: ids where they are taken.", rich_help_panel="Server"),
    ] = "auto",
    tokenizer: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Counts the tokens of text. [dim](default: ask the server)[/]", rich_help_panel="Server"
        ),
    ] = None,
    workload: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A trace: JSON lines or CSV.", rich_help_panel="Load")
    ] = None,
    rate: Annotated[
        list[float] | None,
        typer.Option(
            "--rate",
            "--request-rate",
            metavar="X",
            help="Requests per second; twice for two phases or a ramp.",
            rich_help_panel="Load",
        ),
    ] = None,
    concurrency: Annotated[
        int | None,
        typer.Option(metavar="N", help="Closed loop: always so many in flight.", rich_help_panel="Load"),
    ] = None,
    lengths: Annotated[
        list[str] | None,
        typer.Option(
            metavar="LENGTHS",
            help="PROMPT/OUTPUT tokens, lognormal:MEDIAN,SIGMA/MEDIAN,SIGMA, or a trace; twice for two phases.",
            rich_help_panel="Load",
        ),
    ] = None,
    pattern: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="steady, phase-shifting, ramp, shared-schema, same-document, agent-branching, eviction-pressure or "
            "chat.",
            rich_help_panel="Load",
        ),
    ] = "steady",
    arrivals: Annotated[
        str,
        typer.Option(metavar="NAME", help="constant, poisson, or gamma:CV for bursts.", rich_help_panel="Load"),
    ] = "poisson",
    period: Annotated[
        float, typer.Option(metavar="S", help="phase-shifting: both phases once.", rich_help_panel="Load")
    ] = 60.0,
    speed: Annotated[
        float | None, typer.Option(metavar="X", help="Let time run so many times as fast.", rich_help_panel="Load")
    ] = None,
    block_tokens: Annotated[
        int, typer.Option(min=1, help="Tokens per hash id of a Mooncake trace.", rich_help_panel="Load")
    ] = 512,
    num_prompts: Annotated[
        int | None, typer.Option(metavar="N", help="End after so many requests.", rich_help_panel="Load")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of arrivals, lengths and tokens.", rich_help_panel="Load")] = 0,
    duration: Annotated[
        float | None,
        typer.Option(
            metavar="S",
            help="Seconds that are measured; warm-up and cool-down come on top. [dim](default 60, or the trace)[/]",
            rich_help_panel="Phases",
        ),
    ] = None,
    warmup: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            metavar="S",
            help="Load before it counts. [dim](default 5; 0 for a trace or --num-prompts)[/]",
            rich_help_panel="Phases",
        ),
    ] = None,
    cooldown: Annotated[
        float, typer.Option(min=0.0, metavar="S", help="Load after it counts.", rich_help_panel="Phases")
    ] = 0.0,
    timeout: Annotated[float, typer.Option(metavar="S", help="Of one request.", rich_help_panel="Phases")] = 600.0,
    drain: Annotated[
        float,
        typer.Option(min=0.0, metavar="S", help="After the load; then what is left is cut.", rich_help_panel="Phases"),
    ] = 60.0,
    lateness_bound: Annotated[
        float,
        typer.Option(
            metavar="S", help="Of this client's own p99: beyond it, no run is valid.", rich_help_panel="Phases"
        ),
    ] = 0.01,
    slo_class: Annotated[
        list[str] | None,
        typer.Option(metavar="TEXT", help="As in serve: 'chat: ttft 1 s, tpot 50 ms'.", rich_help_panel="Promises"),
    ] = None,
    slo: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME", help="A published definition (configs/slo), or 'ttft 1 s'.", rich_help_panel="Promises"
        ),
    ] = None,
    default_slo_class: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Of rows that name none. Default: the first.", rich_help_panel="Promises"),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Run folder. [dim](default bench-results/TIME)[/]", rich_help_panel="Output"),
    ] = None,
    arm: Annotated[
        str, typer.Option(metavar="NAME", help="Name of this run in a report.", rich_help_panel="Output")
    ] = "",
    keep_token_ids: Annotated[
        bool, typer.Option("--keep-token-ids", help="Write the tokens of answers.", rich_help_panel="Output")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.", rich_help_panel="Output")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress.", rich_help_panel="Output")] = False,
) -> None:
    from colocate.cli.bench import Ask, run_command
    from colocate.workload.patterns import PatternShape
    from colocate.workload.recipe import Recipe

    if address is not None and url is not None:
        raise ConfigError("--url", "is given beside the argument URL", "give one of them")
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
        url=address or url or "http://127.0.0.1:8000",
        recipe=recipe,
        model=model,
        api_key=api_key,
        endpoint=endpoint,
        concurrency=concurrency,
        num_prompts=num_prompts,
        warmup_s=warmup,
        cooldown_s=cooldown,
        seed=seed,
        slo_class=tuple(slo_class or ()),
        slo=tuple(slo or ()),
        default_slo_class=default_slo_class,
        timeout_s=timeout,
        drain_s=drain,
        lateness_bound_s=lateness_bound,
        out=out,
        arm=arm,
        tokenizer=tokenizer,
        prompts=prompts,
        extra_body=extra_body,
        header=tuple(header or ()),
        keep_token_ids=keep_token_ids,
        json=json,
        quiet=quiet,
    )
    sys.exit(run_command(ask))


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


@app.command(
    help="Measure many ways to serve against each other: every arm at every rate with every seed, interleaved, each "
    "run against a fresh server that this command starts. Goes on where it was cut off."
)
@with_settings(SWEEP_OPTIONS)
@with_sharing()
def sweep(
    flags: dict[str, object],
    sharing: dict[str, int],
    model: ModelArgument = None,
    config: Annotated[
        Path | None,
        typer.Option("--config", "-c", metavar="FILE", help="YAML with the same names; see configs/bench. Flags win."),
    ] = None,
    out: Annotated[
        str | None, typer.Option(metavar="DIR", help="Where to, and from where to go on. [dim](sweeps/MODEL)[/]")
    ] = None,
    estimate: Annotated[bool, typer.Option("--estimate", help="Say how long it would take, and stop.")] = False,
    budget: Annotated[
        str | None, typer.Option(metavar="TIME", help="Begin no run that would end later, e.g. 2h.")
    ] = None,
    resume: Annotated[bool, typer.Option(help="Go on with the same sweep in --out.")] = True,
    retry: Annotated[bool, typer.Option("--retry", help="Repeat runs that failed or are not valid.")] = False,
    arms: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAMES",
            help="static (every split), static:PLAN, shared, chunked (every chunk size), chunked:N, elastic, slo, "
            "on-demand, peer:NAME; +setting=value changes one. [dim](default: all but peers)[/]",
            rich_help_panel=SWEEP_PANEL,
        ),
    ] = None,
    chunk_sizes: Annotated[
        list[str] | None,
        typer.Option(metavar="N,...", help="Of arm chunked. [dim](256,512,1024,2048)[/]", rich_help_panel=SWEEP_PANEL),
    ] = None,
    rates: Annotated[
        list[str] | None,
        typer.Option(metavar="X,...", help="Requests per second, for every arm.", rich_help_panel=SWEEP_PANEL),
    ] = None,
    search: Annotated[
        str | None,
        typer.Option(
            metavar="LOW:HIGH[:STEP]",
            help="Instead of rates: find each arm's goodput by bisection on a grid. [dim](step 1.05)[/]",
            rich_help_panel=SWEEP_PANEL,
        ),
    ] = None,
    goodput_at: Annotated[
        float | None, typer.Option(metavar="X", help="Its attainment. [dim](0.9)[/]", rich_help_panel=SWEEP_PANEL)
    ] = None,
    max_requests: Annotated[
        int | None,
        typer.Option(metavar="N", help="Of one point that is unresolved. [dim](600)[/]", rich_help_panel=SWEEP_PANEL),
    ] = None,
    seeds: Annotated[
        int | None, typer.Option(metavar="N", help="Runs of each point. [dim](3)[/]", rich_help_panel=SWEEP_PANEL)
    ] = None,
    min_requests: Annotated[
        int | None, typer.Option(metavar="N", help="Measured in each run. [dim](100)[/]", rich_help_panel=SWEEP_PANEL)
    ] = None,
    keep_server: Annotated[
        bool | None,
        typer.Option("--keep-server", help="One server for all rates of an arm and seed.", rich_help_panel=SWEEP_PANEL),
    ] = None,
    workload: Annotated[
        str | None, typer.Option(metavar="FILE", help="A trace, offered at each rate.", rich_help_panel="Load")
    ] = None,
    lengths: Annotated[
        list[str] | None,
        typer.Option(metavar="LENGTHS", help="As in simulate; twice for two phases.", rich_help_panel="Load"),
    ] = None,
    pattern: Annotated[str | None, typer.Option(metavar="NAME", help="As in simulate.", rich_help_panel="Load")] = None,
    arrivals: Annotated[
        str | None, typer.Option(metavar="NAME", help="poisson, constant, or gamma:CV.", rich_help_panel="Load")
    ] = None,
    proportion: Annotated[
        list[str] | None,
        typer.Option(metavar="A,B", help="Of the two rates of a pattern that has two.", rich_help_panel="Load"),
    ] = None,
    period: Annotated[
        str | None, typer.Option(metavar="S", help="phase-shifting: both phases once.", rich_help_panel="Load")
    ] = None,
    duration: Annotated[
        str | None, typer.Option(metavar="S", help="Measure at least so long.", rich_help_panel="Load")
    ] = None,
    warmup: Annotated[
        str | None, typer.Option(metavar="S", help="Load before it counts. [dim](5)[/]", rich_help_panel="Load")
    ] = None,
    cooldown: Annotated[
        str | None, typer.Option(metavar="S", help="Load after it counts. [dim](0)[/]", rich_help_panel="Load")
    ] = None,
    endpoint: Annotated[
        str | None, typer.Option(metavar="NAME", help="completions or chat.", rich_help_panel="Load")
    ] = None,
    timeout: Annotated[
        str | None, typer.Option(metavar="S", help="Of one request. [dim](600)[/]", rich_help_panel="Load")
    ] = None,
    drain: Annotated[
        str | None, typer.Option(metavar="S", help="After the load; then cut. [dim](60)[/]", rich_help_panel="Load")
    ] = None,
    lateness_bound: Annotated[
        str | None, typer.Option(metavar="S", help="Of the client's p99. [dim](0.01)[/]", rich_help_panel="Load")
    ] = None,
) -> None:
    from colocate.cli.sweep import Manner, numbers, run_sweep, split_list
    from colocate.cli.sweep_options import read_options

    asked: dict[str, object] = {
        "model": model,
        "out": out,
        "budget": budget,
        "arms": split_list(arms),
        "chunk_sizes": numbers(chunk_sizes, "--chunk-sizes", int),
        "rates": numbers(rates, "--rates", float),
        "search": search,
        "goodput_at": goodput_at,
        "max_requests": max_requests,
        "seeds": seeds,
        "min_requests": min_requests,
        "keep_server": keep_server,
        "workload": workload,
        "lengths": lengths or None,
        "pattern": pattern,
        "arrivals": arrivals,
        "proportion": numbers(proportion, "--proportion", float),
        "period": period,
        "duration": duration,
        "warmup": warmup,
        "cooldown": cooldown,
        "endpoint": endpoint,
        "timeout": timeout,
        "drain": drain,
        "lateness_bound": lateness_bound,
        "sharing": {name.replace("_", "-"): value for name, value in sharing.items()} or None,
    }
    given = {name: value for name, value in asked.items() if value is not None}
    sys.exit(run_sweep(read_options(config, given, flags), Manner(resume, retry, estimate)))


@app.command(
    help="Make one self-contained page (and Markdown and JSON) of what bench and sweep wrote: the verdict in words, "
    "then every figure with its interval. --compare holds two folders or two arms against each other."
)
def report(
    results: Annotated[
        list[Path] | None, typer.Argument(metavar="RESULTS...", help="Folders that bench or sweep has written.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH", help="A folder, or a file that ends in .html, .md or .json. [dim](default report/)[/]"
        ),
    ] = None,
    formats: Annotated[
        str, typer.Option("--format", metavar="LIST", help="html,md,json: which of them. [dim](default all)[/]")
    ] = "",
    compare: Annotated[
        tuple[str, str] | None,
        typer.Option(metavar="A B", help="Two folders, or two arms of RESULTS: every figure's difference."),
    ] = None,
    slo: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SLO",
            help="Judge by this instead: 'chat: ttft 300 ms, tpot 50 ms', or a published one, semi-pd-8b-sharegpt; "
            "repeatable.",
        ),
    ] = None,
    denominator: Annotated[
        str, typer.Option(metavar="RULE", help="Whose denominator: colocate (offered), vllm, sglang, aiperf, ...")
    ] = "colocate",
    title: Annotated[str, typer.Option(metavar="TEXT", help="Heading of the page.")] = "",
) -> None:
    from colocate.cli.report import ReportAsk, run_report

    ask = ReportAsk(tuple(results or ()), out, formats, compare, tuple(slo or ()), denominator, title)
    sys.exit(run_report(ask))


@app.command(
    help="Write what bench and sweep wrote as tables: one line per request (fields, good or not, latencies) and one "
    "per run (every figure)."
)
def export(
    results: Annotated[
        list[Path], typer.Argument(metavar="RESULTS...", help="Folders that bench or sweep has written.")
    ],
    out: Annotated[
        Path,
        typer.Option(
            "--out", "-o", metavar="PATH", help="A folder for both tables, or a file that ends in .csv or .parquet."
        ),
    ],
    format: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="csv, or parquet (needs pyarrow). [dim](default: by --out, else csv)[/]"),
    ] = None,
    table: Annotated[
        str | None, typer.Option(metavar="NAME", help="Of a file: requests or figures. [dim](default requests)[/]")
    ] = None,
) -> None:
    from colocate.cli.export import ExportAsk, run_export

    sys.exit(run_export(ExportAsk(tuple(results), out, format, table)))


app.add_typer(workload_app, name="workload")


@app.command(help="Print the version.")
def version() -> None:
    from colocate import __version__

    print(__version__)
