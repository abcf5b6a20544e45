"""What `colocate bench` prints of a run: its figures, what went wrong, and what a reader should know of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import takewhile
from pathlib import Path

import msgspec
from rich.console import Console
from rich.table import Table

from colocate.bench.figures import RunFigures, ServerFigures, run_figures, write_figures
from colocate.bench.metrics.distribution import Distribution
from colocate.bench.read import read_run
from colocate.bench.records import RequestRow, RunManifest

_NOBODY = ("refused", "unreachable")


def show(folder: Path, console: Console) -> RunFigures:
    """The figures of a run folder, read back from it, and written beside it for `benchmarks/recompute.py`."""
    run = read_run(folder)
    figures, manifest = run_figures(run), run.manifest
    load = f"{manifest.concurrency} in flight" if manifest.concurrency else f"{manifest.offered_rate or 0:.2f}/s"
    console.print(
        f"{manifest.target.system} {manifest.target.version}, model {manifest.target.model}; load {manifest.workload}, "
        f"{load}; {figures.num_offered} requests measured in {figures.window_s:.0f} s"
    )
    console.print(_latencies(figures))
    console.print()
    console.print(_counts(figures, manifest))
    for kind, message in first_errors(run.rows).items():
        console.print(f"{kind}: {message}", style="red")
    for warning in [*_gone(run.rows), *_undefined(figures), *warnings(manifest)]:
        console.print(f"note: {warning}", style="yellow")
    if figures.status != "valid":
        console.print(f"{figures.status}: {'; '.join(figures.reasons)}", style="bold red")
    console.print(f"written to {folder}")
    write_figures(folder, figures)  # last: a disk that is full by now still has its figures shown
    return figures


def first_errors(rows: Sequence[RequestRow]) -> dict[str, str]:
    """Kind of error -> what the first request that met it was told."""
    found: dict[str, str] = {}
    for row in rows:
        if row.error is not None:
            found.setdefault(row.error_kind, row.error)
    return found


def _gone(rows: Sequence[RequestRow]) -> Iterator[str]:
    """Whether the end of the load met nobody. That is a figure of the server, and seldom the one that was wanted."""
    sent = [row for row in rows if row.sent_s is not None]
    met_nobody = list(takewhile(lambda row: row.error_kind in _NOBODY, reversed(sent)))
    if met_nobody:
        since_s, number = met_nobody[-1].scheduled_s, len(met_nobody)
        yield f"the server had ended: from {since_s:.1f} s on nobody listened, {number} requests count as failed"


def _undefined(figures: RunFigures) -> Iterator[str]:
    if figures.unknown_classes and figures.classes:
        names = ", ".join(figures.unknown_classes)
        yield f"no --slo-class defines {names}: judged as {figures.default_class}"


def _latencies(figures: RunFigures) -> Table:
    table = Table(box=None, pad_edge=False)
    for heading in ("ms", "p50", "p90", "p99", "p99.9", "mean"):
        table.add_column(heading, justify="left" if heading == "ms" else "right")
    named: list[tuple[str, Distribution]] = [
        ("TTFT", figures.ttft_s),
        ("TPOT", figures.tpot_s),
        ("ITL", figures.itl_s),
        ("E2E", figures.e2e_s),
        *((f"server: {stage.removesuffix('_s')}", found) for stage, found in figures.stages.items()),
        ("sent late", figures.lateness_s),
    ]
    for name, found in named:
        table.add_row(name, *map(_ms, (found.p50, found.p90, found.p99, found.p99_9, found.mean)))
    return table


def _counts(figures: RunFigures, manifest: RunManifest) -> Table:
    table = Table(box=None, pad_edge=False, show_header=False)
    outcomes = ", ".join(f"{number} {name.replace('_', ' ')}" for name, number in figures.outcomes.items())
    table.add_row("outcomes", outcomes or "none")
    if figures.failures:
        table.add_row("failures", ", ".join(f"{number} {kind}" for kind, number in figures.failures.items()))
    for name, value in (
        ("completed, requests/s", figures.completed_per_s),
        ("prompt tokens/s", figures.input_tokens_per_s),
        ("output tokens/s", figures.output_tokens_per_s),
    ):
        table.add_row(name, "-" if value is None else f"{value:.2f}")
    if manifest.slo_classes:
        found = figures.attainment
        share = f"{_percent(found.value)} [{_percent(found.low)}..{_percent(found.high)}]"
        table.add_row("attainment (good / offered)", f"{share}, {'; '.join(manifest.slo_classes)}")
        goodput = figures.goodput_per_s
        table.add_row("goodput, good requests/s", "-" if goodput is None else f"{goodput:.2f}")
    if figures.cached_share is not None:
        table.add_row("found in the prefix cache", _percent(figures.cached_share))
    for name, told in _server_facts(figures.server):
        table.add_row(name, told)
    return table


def _server_facts(server: ServerFigures) -> Iterator[tuple[str, str]]:
    """What the server told of itself in the window, and nothing of what it did not."""
    if server.kv_usage_peak is not None:
        yield "KV in use, mean and peak", f"{_percent(server.kv_usage_mean)}, {_percent(server.kv_usage_peak)}"
    if server.num_preemptions is not None:
        yield "preemptions", str(server.num_preemptions)
    if server.num_switches is not None:
        yield "switches of plan", str(server.num_switches)
    if server.power_mean_w is not None:
        yield "power of the device, W", f"{server.power_mean_w:.0f}"
    if server.joules_per_output_token is not None:
        yield "joules per output token", f"{server.joules_per_output_token:.3g}"
    if server.memory_peak_bytes is not None:
        yield "memory of the server, peak", f"{server.memory_peak_bytes / (1 << 20):,.0f} MiB"


def warnings(manifest: RunManifest) -> list[str]:
    """What a reader of the figures should know although the run is valid."""
    client = msgspec.convert(manifest.client, _ClientFacts, strict=False)
    found = []
    if client.prompt_counts.off:
        found.append(
            f"{client.prompt_counts.off} of {client.prompt_counts.told} prompts were not of the planned length, by up "
            f"to {client.prompt_counts.largest_error:+d} tokens"
        )
    if client.answers_of_other_length:
        found.append(f"{client.answers_of_other_length} answers were not of the length asked for")
    if client.refused_fields:
        found.append(f"the server refused {', '.join(client.refused_fields)}: sent without")
    return found


class _PromptCounts(msgspec.Struct):
    told: int = 0
    off: int = 0
    largest_error: int = 0


class _ClientFacts(msgspec.Struct):
    """What of `RunManifest.client` is shown."""

    prompt_counts: _PromptCounts = msgspec.field(default_factory=_PromptCounts)
    answers_of_other_length: int = 0
    refused_fields: list[str] = msgspec.field(default_factory=list)


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def _ms(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1e3:.1f}"
