"""Commands that run a model, or say what became of a run."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from colocate.cli.options import (
    GENERATE_OPTIONS,
    SERVE_OPTIONS,
    with_settings,
)
from colocate.cli.root import ConfigOption, ModelArgument, app
from colocate.config.load import load_config
from colocate.errors import ConfigError

_EPILOG = (
    "Every option can also stand in the YAML file (max-num-seqs: 32) or in the environment (COLOCATE_MAX_NUM_SEQS=32). "
    "Environment only: COLOCATE_NATIVE=0 goes without the compiled CPU kernels, COLOCATE_CACHE_DIR is where they are "
    "kept."
)


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
