"""`colocate doctor`: what this machine can do, what is missing for more, and the proof that a GPU's partitions hold."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from colocate import __version__
from colocate.cli.machine_facts import examine, lines_of
from colocate.device.cuda.backend import is_fake_chosen
from colocate.device.cuda.proof.check import Check, Status
from colocate.device.cuda.proof.run import CATALOGUE, ProofRequest, nothing_testable, prove
from colocate.device.cuda.proof.verdict import Verdict, judge
from colocate.errors import ConfigError

SCHEMA = 1  # of --json; raised when a field changes its meaning or goes
_EXIT_UNFIT = 1
_DEVICES = ("auto", "cpu", "cuda")
_MARKS = {
    Status.PASS: "[green]pass[/]",
    Status.FAIL: "[bold red]FAIL[/]",
    Status.UNTESTABLE: "[dim]not testable[/]",
}
_MARK_WIDTH = 12


@dataclass(frozen=True, slots=True)
class DoctorRequest:
    """`device` as in serve: `auto` proves the GPU that is here, `cuda` is unfit without one, `cpu` leaves it alone."""

    device: str = "auto"
    gpu: int = 0
    quick: bool = False
    drill: bool = False
    only: tuple[str, ...] = ()
    as_json: bool = False
    out: Path | None = None


def run_doctor(request: DoctorRequest) -> int:
    """0 where `colocate serve` can run on the device that was asked, 1 where something it cannot do without is
    missing or does not hold. Raises ConfigError."""
    if request.device not in _DEVICES:
        raise ConfigError("--device", f"is {request.device!r}", f"give one of {', '.join(_DEVICES)}")
    unknown = sorted(set(request.only) - {spec.name for spec in CATALOGUE})
    if unknown:
        names = ", ".join(spec.name for spec in CATALOGUE)
        raise ConfigError("--only", f"there is no check {unknown[0]!r}", f"choose among {names}")
    facts = examine()
    console = Console(quiet=request.as_json)
    _show_machine(console, facts)
    checks = _prove(request, facts["gpu"]["why_not"], console)
    verdict = judge(checks)
    exit_code = _exit_code(request, facts, verdict)
    document = _document(request, facts, checks, verdict, exit_code)
    if request.out is not None:
        _write(request.out, document)
    if request.as_json:
        print(json.dumps(document, indent=2))
    else:
        _show_verdict(console, request, facts, checks, verdict)
    return exit_code


def _prove(request: DoctorRequest, why_not: str, console: Console) -> list[Check]:
    if request.device == "cpu":
        return []
    if request.device == "auto" and why_not:
        reason = "the fake GPU is taken only where it is asked for: --device cuda" if is_fake_chosen() else why_not
        checks = nothing_testable(reason)
        console.print(f"\nGPU: {len(checks)} checks, none testable here: {escape(reason)}")
        return checks
    console.print(f"\nGPU {request.gpu}")
    proof = ProofRequest(request.gpu, is_fake_chosen(), request.quick, request.drill, request.only)
    return prove(proof, _row_printer(console))


def _row_printer(console: Console) -> Callable[[Check], None]:
    """A line per check as it is done: the whole run takes a minute."""

    def show(check: Check) -> None:
        row = Table.grid(padding=(0, 1), expand=True)
        row.add_column(width=_MARK_WIDTH, no_wrap=True)
        row.add_column(ratio=1)
        seconds = f" [dim]{check.seconds:.1f} s[/]" if check.seconds >= 0.05 else ""
        if check.status is Status.UNTESTABLE:
            row.add_row(_MARKS[check.status], f"{check.title}: [dim]{escape(check.detail)}[/]")
        else:
            row.add_row(_MARKS[check.status], check.title + seconds)
            row.add_row("", f"[dim]{escape(check.detail)}[/]")
        if check.remedy:
            row.add_row("", f"[yellow]remedy: {escape(check.remedy)}[/]")
        console.print(row)

    return show


def _exit_code(request: DoctorRequest, facts: dict[str, Any], verdict: Verdict) -> int:
    is_refuted = verdict.two_processes is False
    is_partial = request.quick or bool(request.only)
    is_missing = request.device == "cuda" and verdict.two_processes is None and not is_partial
    return _EXIT_UNFIT if facts["problems"] or is_refuted or is_missing else 0


def _document(
    request: DoctorRequest, facts: dict[str, Any], checks: list[Check], verdict: Verdict, exit_code: int
) -> dict[str, Any]:
    """What scripts read: docs/doctor.md."""
    return {
        "schema": SCHEMA,
        "version": __version__,
        "device": request.device,
        "exit_code": exit_code,
        "colocation": verdict.as_json(),
        "checks": [check.as_json() for check in checks],
        "problems": facts["problems"],
        "advice": facts["advice"],
        "facts": {name: value for name, value in facts.items() if name not in ("problems", "advice")},
    }


def _write(directory: Path, document: dict[str, Any]) -> None:
    try:
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "doctor.json").write_text(json.dumps(document, indent=2) + "\n")
    except OSError as error:
        raise ConfigError("--out", f"{directory} cannot be written: {error.strerror}", "name another one") from None


def _show_machine(console: Console, facts: dict[str, Any]) -> None:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="cyan", no_wrap=True)
    table.add_column()
    for name, text in lines_of(facts):
        table.add_row(name, escape(text))
    console.print(table)


def _show_verdict(
    console: Console, request: DoctorRequest, facts: dict[str, Any], checks: list[Check], verdict: Verdict
) -> None:
    console.print()
    for problem in facts["problems"]:
        console.print(f"[bold red]problem[/]  {escape(problem)}")
    for advice in facts["advice"]:
        console.print(f"[yellow]note[/]     {escape(advice)}")
    is_gpu_meant = request.device == "cuda" or any(check.status is not Status.UNTESTABLE for check in checks)
    if is_gpu_meant:
        console.print(_say(verdict))
    if not facts["problems"] and not (is_gpu_meant and verdict.two_processes is False):
        console.print("[bold green]`colocate serve` can run here.[/]")


def _say(verdict: Verdict) -> str:
    reasons = ", ".join(verdict.reasons)
    if verdict.two_processes:
        return "[bold green]Prefill and decode can be co-located on this GPU: every promise was kept.[/]"
    if verdict.two_processes is None:
        return f"[yellow]Co-location in two processes is not proven: {reasons} could not be tested.[/]"
    alternative = " `--single-process` can, which was seen to run both at once." if verdict.one_process else ""
    return f"[bold red]Two processes cannot be co-located on a GPU here: {reasons}.[/]{alternative}"
