"""Commands that measure a server from outside."""

from __future__ import annotations

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
from colocate.cli.root import app
from colocate.cli.sharing_options import with_sharing
from colocate.errors import ConfigError


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
    workload: WorkloadOption = None,
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
    lengths: LengthsOption = None,
    pattern: PatternOption = "steady",
    arrivals: ArrivalsOption = "poisson",
    period: PeriodOption = 60.0,
    speed: SpeedOption = None,
    block_tokens: BlockTokensOption = 512,
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
