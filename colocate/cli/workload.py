"""`colocate workload make|show|convert`: loads as files. They are written once and offered to every arm alike."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from colocate.cli.sharing_options import SHORTER, with_sharing
from colocate.errors import ConfigError

app = typer.Typer(
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode="rich",
    help="Make, look at and convert workloads: files that say what arrives when.",
)

_MAKE_EXAMPLES = (
    "[bold]Examples[/]\n\n"
    "colocate workload make -o steady.jsonl --rate 4 --lengths 512/128\n\n"
    "colocate workload make chat -o chat.jsonl --rate 2 --lengths lognormal:60,0.8/120,0.6 --num-uses 6\n\n"
    "colocate workload make phase-shifting -o phases.jsonl --rate 2 --rate 8 --lengths 2000/20 --lengths 50/200 "
    "--period 30\n\n"
    "colocate workload make -o drawn.jsonl --rate 4 --arrivals gamma:3 "
    "--lengths benchmarks/traces/azure_llm_2023_conv.csv"
)
_SHOW_EXAMPLES = (
    "[bold]Example[/]\n\n"
    "colocate workload show benchmarks/traces/mooncake_fast25_conversation_head1500.jsonl\n\n"
    "Prefix sharing is the share of prompt tokens that a cache without bounds would find."
)
_CONVERT_EXAMPLES = (
    "[bold]Examples[/]\n\n"
    "colocate workload convert AzureLLMInferenceTrace_conv_1week.csv -o hour.jsonl --seconds 3600 --rate 2\n\n"
    "colocate workload convert BurstGPT_1.csv -o burst.jsonl --skip-empty --seconds 86400 --speed 24\n\n"
    "colocate workload convert ShareGPT_V3_unfiltered_cleaned_split.json -o lengths.csv --tokenizer MODEL_DIR\n\n"
    "A dataset without arrivals becomes a CSV of lengths, for `--lengths` of make, bench and simulate."
)
OutOption = Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="Where to; - is standard output.")]
ClassOption = Annotated[
    list[str] | None,
    typer.Option(
        "--slo-class", metavar="NAME[=WEIGHT]", help="SLO class of the requests; drawn by weight if repeated."
    ),
]
RateOption = typer.Option(metavar="X", help="Mean requests per second: time is stretched or squeezed.")


@app.command(help="Write a synthetic load: the same file for the same seed and flags.", epilog=_MAKE_EXAMPLES)
@with_sharing(SHORTER)
def make(
    sharing: dict[str, int],
    out: OutOption,
    pattern: Annotated[
        str,
        typer.Argument(
            metavar="[PATTERN]",
            help="steady, phase-shifting, ramp, shared-schema, same-document, agent-branching, eviction-pressure or "
            "chat.",
        ),
    ] = "steady",
    rate: Annotated[
        list[float] | None,
        typer.Option(metavar="X", help="Requests per second; twice for two phases or a ramp."),
    ] = None,
    lengths: Annotated[
        list[str] | None,
        typer.Option(
            metavar="LENGTHS",
            help="PROMPT/OUTPUT tokens, lognormal:MEDIAN,SIGMA/MEDIAN,SIGMA, or a trace to draw from; twice for two "
            "phases. Of a pattern that shares: each request's own part.",
        ),
    ] = None,
    arrivals: Annotated[
        str, typer.Option(metavar="NAME", help="constant, poisson, or gamma:CV for bursts.")
    ] = "poisson",
    duration: Annotated[float, typer.Option(metavar="S", help="Seconds of load.")] = 60.0,
    period: Annotated[float, typer.Option(metavar="S", help="phase-shifting: both phases once.")] = 60.0,
    speed: Annotated[float | None, typer.Option(metavar="X", help="Let time run so many times as fast.")] = None,
    slo_class: ClassOption = None,
    seed: Annotated[int, typer.Option(min=0, metavar="N", help="Of arrivals, lengths and classes.")] = 0,
) -> None:
    from colocate.cli.workload_files import run_make
    from colocate.workload.patterns import PatternShape
    from colocate.workload.recipe import Recipe

    recipe = Recipe(
        rates=tuple(rate or ()),
        lengths=tuple(lengths or ()),
        pattern=pattern,
        arrivals=arrivals,
        duration_s=duration,
        period_s=period,
        speed=speed,
        shape=PatternShape(**sharing),
        classes=parse_classes(slo_class),
    )
    run_make(recipe, seed, out)


@app.command(
    help="Say what is in a workload: requests, rate over time, lengths, prefix sharing, conversations, SLO classes.",
    epilog=_SHOW_EXAMPLES,
)
def show(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A workload or trace of any known format.")],
    block_tokens: Annotated[
        int, typer.Option(min=1, metavar="N", help="Tokens per hash id of a Mooncake trace.")
    ] = 512,
    seconds: Annotated[float | None, typer.Option(metavar="S", help="Only what arrives before.")] = None,
    skip_empty: Annotated[bool, typer.Option("--skip-empty", help="Leave out requests without tokens.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Machine-readable output.")] = False,
) -> None:
    from colocate.cli.workload_files import reading
    from colocate.cli.workload_show import run_show

    run_show(file, reading(block_tokens=block_tokens, seconds=seconds, skip_empty=skip_empty), as_json=json)


@app.command(
    help="Bring a trace of any known format into our JSON lines, cut and scaled on the way.", epilog=_CONVERT_EXAMPLES
)
def convert(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE", help="Azure LLM 2023 or 2024, BurstGPT, Mooncake, ours, or a dataset such as ShareGPT."
        ),
    ],
    out: OutOption,
    rate: Annotated[float | None, RateOption] = None,
    speed: Annotated[float | None, typer.Option(metavar="X", help="Let time run so many times as fast.")] = None,
    seconds: Annotated[
        float | None, typer.Option(metavar="S", help="Only what arrives before, in the trace's own time.")
    ] = None,
    slo_class: ClassOption = None,
    seed: Annotated[int, typer.Option(min=0, metavar="N", help="Of the draw of classes.")] = 0,
    block_tokens: Annotated[
        int, typer.Option(min=1, metavar="N", help="Tokens per hash id of a Mooncake trace.")
    ] = 512,
    skip_empty: Annotated[
        bool, typer.Option("--skip-empty", help="Leave out requests without tokens, as traces record failures.")
    ] = False,
    sort: Annotated[bool, typer.Option("--sort", help="Bring the rows into order of arrival.")] = False,
    tokenizer: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder with a tokenizer.json: counts the texts of a dataset.")
    ] = None,
) -> None:
    from colocate.cli.workload_files import Conversion, reading, run_convert

    if rate is not None and speed is not None:
        raise ConfigError("--speed", "is given beside --rate", "give one of them")
    how = reading(block_tokens=block_tokens, seconds=seconds, skip_empty=skip_empty, sort=sort)
    run_convert(file, out, Conversion(how, rate, speed, parse_classes(slo_class), seed, tokenizer))


def parse_classes(texts: list[str] | None) -> dict[str, float]:
    """`chat=3` is class chat with weight 3, `chat` has weight 1. Raises ConfigError."""
    classes: dict[str, float] = {}
    for text in texts or ():
        name, _, weight = text.partition("=")
        try:
            classes[name] = float(weight) if weight else 1.0
        except ValueError:
            raise ConfigError("--slo-class", f"{text!r} has no weight", "write NAME or NAME=WEIGHT") from None
    return classes


def write(out: Path, data: bytes) -> None:
    """Whole or not at all: a load that is cut short reads like a shorter one. Raises ConfigError."""
    if str(out) == "-":
        sys.stdout.buffer.write(data)
        return
    is_place = out.exists() and not out.is_file()  # a pipe, or /dev/stdout: nothing can take its place
    unfinished = out if is_place else out.with_name(out.name + ".part")
    try:
        unfinished.write_bytes(data)
        if not is_place:
            unfinished.replace(out)
    except OSError as error:
        if not is_place:
            unfinished.unlink(missing_ok=True)
        raise ConfigError(
            str(out), f"cannot be written: {error.strerror}", "name a file with room and rights"
        ) from None
