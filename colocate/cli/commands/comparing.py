"""Commands that hold many runs against each other, or look into one."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from colocate.cli.options import (
    SWEEP_OPTIONS,
    SWEEP_PANEL,
    with_settings,
)
from colocate.cli.root import ModelArgument, app
from colocate.cli.sharing_options import with_sharing
from colocate.errors import ConfigError


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
    recall: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Then ask each arm for N values that stand in the prompt, with the embedded model. [dim](0)[/]",
        ),
    ] = None,
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
        "recall": recall,
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
    picture: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Attainment against rate as one .svg or .png for a README. Without --out and --format, that alone.",
        ),
    ] = None,
) -> None:
    from colocate.cli.report import ReportAsk, run_report

    ask = ReportAsk(tuple(results or ()), out, formats, compare, tuple(slo or ()), denominator, title, picture)
    sys.exit(run_report(ask))


@app.command(
    help="Write what bench and sweep wrote as tables: one line per request (fields, good or not, latencies), one per "
    "run (every figure), one per look at the server."
)
def export(
    results: Annotated[
        list[Path], typer.Argument(metavar="RESULTS...", help="Folders that bench or sweep has written.")
    ],
    out: Annotated[
        Path,
        typer.Option(
            "--out", "-o", metavar="PATH", help="A folder for all tables, or a file that ends in .csv or .parquet."
        ),
    ],
    format: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="csv, or parquet (needs pyarrow). [dim](default: by --out, else csv)[/]"),
    ] = None,
    table: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Of a file: requests, figures or server. [dim](default requests)[/]"),
    ] = None,
) -> None:
    from colocate.cli.export import ExportAsk, run_export

    sys.exit(run_export(ExportAsk(tuple(results), out, format, table)))


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
