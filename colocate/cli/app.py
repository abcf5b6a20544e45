"""The commands and what each hands on to. Heavy imports happen inside the command that needs them."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from colocate.cli.options import GENERATE_OPTIONS, SERVE_OPTIONS, with_settings
from colocate.config.load import load_config

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


@app.command(help="Say what this machine can do, measured, and what is missing for more.")
def doctor(
    json: Annotated[bool, typer.Option("--json", help="Machine-readable output.")] = False,
) -> None:
    from colocate.cli.doctor import run_doctor

    sys.exit(run_doctor(as_json=json))


@app.command(help="Feed a recorded event log to a fresh engine core and check that the same commands come out.")
def replay(log: Annotated[Path, typer.Argument(metavar="LOG", help="A file or directory from --event-log.")]) -> None:
    from colocate.cli.replay import run_replay

    sys.exit(run_replay(log))


@app.command(help="Print the version.")
def version() -> None:
    from colocate import __version__

    print(__version__)
