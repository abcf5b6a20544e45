"""`colocate timeline`: event logs of engines and runs of `bench` as one trace for Perfetto."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from colocate.bench.read import Run, read_run
from colocate.bench.timeline import START_KEY, add_run, run_start_ns
from colocate.cli.replay import logs_at, torn_text
from colocate.errors import ConfigError
from colocate.telemetry.timeline.log import LogSummary, add_log, log_start_ns
from colocate.telemetry.timeline.trace import TraceWriter

MANIFEST = "manifest.json"
VIEWER = "https://ui.perfetto.dev"


@dataclass(frozen=True, slots=True)
class Ask:
    """`sources` are event logs, folders of them, and folders of bench runs; times are seconds after the first event."""

    sources: tuple[Path, ...]
    out: Path
    from_s: float | None = None
    to_s: float | None = None


def run_timeline(ask: Ask) -> int:
    """Raises ConfigError."""
    if ask.from_s is not None and ask.to_s is not None and ask.to_s <= ask.from_s:
        raise ConfigError("--to", f"{ask.to_s:g} s is not after --from {ask.from_s:g} s", "name a later time")
    logs: list[Path] = []
    runs: list[Run] = []
    for source in ask.sources:
        if (source / MANIFEST).is_file():
            runs.append(read_run(source))
        else:
            logs += logs_at(source)
    starts_ns = {log: start_ns for log in logs if (start_ns := log_start_ns(log)) is not None}
    shifts_ns = _starts_of(runs, alone=not logs and len(runs) == 1)
    all_ns = [*starts_ns.values(), *shifts_ns]
    if not all_ns:
        raise ConfigError(str(ask.sources[0]), "holds no event", "record one with `colocate serve --event-log DIR`")
    origin_ns = min(all_ns)
    window_ns = _window(ask, origin_ns)
    with TraceWriter(ask.out, origin_ns, window_ns) as writer:
        for run, start_ns in zip(runs, shifts_ns, strict=True):
            num_requests = add_run(run, writer, start_ns)
            print(f"{run.folder}: {num_requests} requests as the client saw them")
        for log in starts_ns:
            _tell(log, add_log(log, writer, f"{log.stem}: " if len(starts_ns) > 1 else ""))
    print(f"{ask.out}: {writer.num_events} events; open it at {VIEWER}, which reads it in the browser")
    return 0


def _starts_of(runs: list[Run], *, alone: bool) -> list[int]:
    """Each run's start on the clock of the others. A run on its own needs none."""
    starts_ns: list[int] = []
    for run in runs:
        start_ns = run_start_ns(run)
        if start_ns is None and not alone:
            problem = f"does not say when it began ({START_KEY}), so it cannot be laid beside anything else"
            raise ConfigError(str(run.folder / MANIFEST), problem, "show it on its own")
        starts_ns.append(start_ns or 0)
    return starts_ns


def _window(ask: Ask, origin_ns: int) -> tuple[int, int]:
    from_ns = origin_ns + round((ask.from_s or 0.0) * 1e9)
    to_ns = 1 << 62 if ask.to_s is None else origin_ns + round(ask.to_s * 1e9)
    return from_ns, to_ns


def _tell(log: Path, summary: LogSummary) -> None:
    print(
        f"{log}: {summary.num_requests} requests, {summary.num_forwards} prefill forwards, {summary.num_steps} decode "
        f"steps, {summary.num_switches} switches in {summary.num_events} events{torn_text(summary.num_torn_bytes)}"
    )
