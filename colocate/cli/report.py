"""`colocate report`: results to one page that opens offline, Markdown and JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from colocate.bench.report.build import ReportRequest, build_report
from colocate.bench.report.model import ReportModel
from colocate.bench.report.picture import check_picture, write_picture
from colocate.bench.report.write import choose_files, write_report
from colocate.errors import ConfigError


@dataclass(frozen=True, slots=True)
class ReportAsk:
    """The command line."""

    results: tuple[Path, ...]
    out: Path | None
    formats: str
    compare: tuple[str, str] | None
    slo: tuple[str, ...]
    denominator: str
    title: str
    picture: Path | None = None


def run_report(ask: ReportAsk) -> int:
    """Write the files, print the verdict and where they are. Exit code 0, whatever the verdict. Raises ConfigError."""
    if not ask.results and ask.compare is None:
        raise ConfigError("report", "no results are given", "name the folders of runs or sweeps, or --compare A B")
    if ask.results and ask.compare and all(Path(name).is_dir() for name in ask.compare):
        problem = "names two folders, and so do RESULTS"
        raise ConfigError("--compare", problem, "compare two arms of RESULTS, or two folders without RESULTS")
    if not ask.results and ask.compare:
        for name in ask.compare:
            if not Path(name).is_dir():
                raise ConfigError(
                    "--compare", f"there is no folder {name!r}", "name two folders, or RESULTS and two arms"
                )
    if ask.picture is not None:
        check_picture(ask.picture)
    files = _files(ask)
    model = build_report(ReportRequest(ask.results, ask.title, ask.slo, ask.denominator, ask.compare))
    write_report(model, files)
    if ask.picture is not None:
        write_picture(model, ask.picture)
    _show(model, [*files.values(), *([ask.picture] if ask.picture else [])])
    return 0


def _files(ask: ReportAsk) -> dict[str, Path]:
    """Which file each format goes to; none where a picture is all that is asked for."""
    formats = [name.strip() for name in ask.formats.split(",") if name.strip()]
    return {} if ask.picture and ask.out is None and not formats else choose_files(ask.out, formats)


def _show(model: ReportModel, files: Sequence[Path]) -> None:
    console = Console(soft_wrap=True, highlight=False, markup=False)
    console.print(model.verdict.headline)
    for verdict in model.verdict.by_slo:
        console.print()
        console.print(f"{verdict.slo}:" if verdict.slo else "")
        for sentence in verdict.sentences:
            console.print(f"  {sentence}")
    if model.verdict.cautions:
        console.print()
        for caution in model.verdict.cautions:
            console.print(f"Caution: {caution}")
    console.print()
    for path in files:
        console.print(f"wrote {path}")
