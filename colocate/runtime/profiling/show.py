"""A profile as tables: latency against units, the knee, the contention matrix, the errors, the verdict."""

from __future__ import annotations

from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from colocate.config.profile import DeviceProfile, FitError, Phase
from colocate.core.latency import LatencyModel

TARGET_WITHIN_15 = 0.9
KNEE = 1.1  # the smallest share that is at most so many times slower than the fastest

_NEW_TOKENS = (64, 256, 512, 2048)
_BATCHES = ((1, 512), (16, 512), (64, 512), (64, 2048))  # rows, tokens of context each
_PHASES: tuple[Phase, Phase] = ("prefill", "decode")


@dataclass(frozen=True, slots=True)
class Curve:
    """Milliseconds of one piece of work on each share, alone. `knee_units` is where more units stop paying."""

    label: str
    phase: Phase
    milliseconds: tuple[float, ...]
    knee_units: int


def shares_of(profile: DeviceProfile) -> tuple[int, ...]:
    return tuple(share.units for share in profile.shares)


def curves_of(profile: DeviceProfile) -> list[Curve]:
    """For work inside what was measured; for a profile without samples, of all sizes below."""
    model = LatencyModel(profile)
    most_new = max((s.linear for s in profile.samples if s.phase == "prefill"), default=float("inf"))
    most_rows = max((s.pairs for s in profile.samples if s.phase == "decode"), default=float("inf"))
    most_context = max((s.linear for s in profile.samples if s.phase == "decode"), default=float("inf"))
    curves = [
        _curve(profile, "prefill", f"{new} new", [model.prefill_s(u, new, new * new / 2) for u in shares_of(profile)])
        for new in _NEW_TOKENS
        if new <= most_new
    ]
    curves += [
        _curve(
            profile,
            "decode",
            f"{rows} x {context}",
            [model.decode_s(u, rows * context, rows) for u in shares_of(profile)],
        )
        for rows, context in _BATCHES
        if rows <= most_rows and rows * context <= most_context
    ]
    return curves


def _curve(profile: DeviceProfile, phase: Phase, label: str, seconds: list[float]) -> Curve:
    fastest = min(seconds)
    knee = next(units for units, each in zip(shares_of(profile), seconds, strict=True) if each <= KNEE * fastest)
    return Curve(label, phase, tuple(each * 1e3 for each in seconds), knee)


def show_profile(profile: DeviceProfile, console: Console) -> None:
    what = f"[bold]{profile.model or 'any model'}[/] on [bold]{profile.name}[/], {profile.units} units"
    console.print(f"{what}{f', {profile.dtype}' if profile.dtype else ''}")
    console.print(f"[dim]{profile.source}{f'; {profile.created}' if profile.created else ''}[/]")
    if not profile.is_measured:
        console.print("[yellow]a prior, not measured: no verdict can rest on it[/]")
    for phase, what in (("prefill", "one forward over new tokens"), ("decode", "one step of rows x context")):
        curves = [curve for curve in curves_of(profile) if curve.phase == phase]
        if curves:
            console.print(f"[bold]{phase}: milliseconds of {what}, alone[/]")
            console.print(_latency_table(profile, curves))
    if profile.contention:
        console.print("[bold]contention: times slower beside the other phase[/]")
        console.print(_contention_table(profile))
    if profile.noise.sigma:
        noise = profile.noise
        tail = f"; {noise.tail_probability:.2%} of the repeats take {noise.tail_factor:.1f} times as long"
        console.print(f"noise of repeats: sigma {noise.sigma:.1%}{tail if noise.tail_probability else ''}")
    if profile.errors:
        console.print("[bold]error on held-out states: |predicted - measured| / measured[/]")
        console.print(_error_table(profile.errors))
        console.print(verdict(profile))


def verdict(profile: DeviceProfile) -> str:
    """Against the target, over all held-out states of each kind."""
    parts = []
    for contended, name in ((False, "alone"), (True, "contended")):
        of_kind = [error for error in profile.errors if error.contended == contended]
        count = sum(error.num_samples for error in of_kind)
        if count:
            within = sum(error.within_15_percent * error.num_samples for error in of_kind) / count
            word = "[green]met[/]" if within >= TARGET_WITHIN_15 else "[yellow]missed[/]"
            parts.append(f"{name} {within:.0%} of {count}: {word}")
    return f"target: {TARGET_WITHIN_15:.0%} of the held-out states within 15%; " + "; ".join(parts)


def _latency_table(profile: DeviceProfile, curves: list[Curve]) -> Table:
    table = Table(show_footer=True)
    table.add_column("units", justify="right", footer="knee")
    for curve in curves:
        table.add_column(curve.label, justify="right", footer=str(curve.knee_units))
    for row, units in enumerate(shares_of(profile)):
        table.add_row(str(units), *(_milliseconds(curve.milliseconds[row]) for curve in curves))
    return table


def _contention_table(profile: DeviceProfile) -> Table:
    table = Table()
    for name in ("prefill units", "decode units", "prefill", "decode"):
        table.add_column(name, justify="right")
    for pair in profile.contention:
        is_shared = pair.prefill_units + pair.decode_units > profile.units
        name = f"{pair.prefill_units} (shared)" if is_shared else str(pair.prefill_units)
        table.add_row(name, str(pair.decode_units), f"{pair.prefill:.2f}", f"{pair.decode:.2f}")
    return table


def _error_table(errors: list[FitError]) -> Table:
    table = Table()
    for name in ("phase", "", "states", "p50", "p95", "max", "within 15%"):
        table.add_column(name, justify="left" if name in ("phase", "") else "right")
    for error in errors:
        kind = "contended" if error.contended else "alone"
        shares = (f"{value:.1%}" for value in (error.p50, error.p95, error.max))
        table.add_row(error.phase, kind, str(error.num_samples), *shares, f"{error.within_15_percent:.0%}")
    return table


def _milliseconds(value: float) -> str:
    return f"{value:.0f}" if value >= 1000 else f"{value:.3g}"
