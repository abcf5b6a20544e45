"""`colocate profile`: measure this device, or show a profile that exists."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from rich.console import Console

from colocate.config.profile import DeviceProfile, load_profile
from colocate.config.serve import ServeConfig
from colocate.errors import ConfigError
from colocate.runtime.profiling.plot import check_plot, plot_profile
from colocate.runtime.profiling.run import Outcome, ProfileRequest, run_profile
from colocate.runtime.profiling.show import show_profile

_SECONDS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0}


def parse_budget(text: str) -> float:
    """Seconds of `90`, `90s`, `10m` or `1.5h`. Raises ConfigError."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smh]?)", text.strip())
    seconds = float(match.group(1)) * _SECONDS[match.group(2)] if match else 0.0
    if seconds <= 0:
        raise ConfigError("budget", f"{text!r} is not a time", "give for example 90s, 10m or 1h")
    return seconds


def run_show(path: Path, plot: Path | None) -> int:
    _show(load_profile(path), plot)
    return 0


def run_measure(config: ServeConfig, request: ProfileRequest, plot: Path | None) -> int:
    """0 with a profile written, 1 where a process died, 130 where it was interrupted."""
    if plot is not None:
        check_plot(plot)
    outcome = run_profile(config, request)
    if outcome.profile is None:
        _say_what_is_kept(outcome)
        return outcome.exit_code
    _show(outcome.profile, plot)
    print(f"written: {outcome.out}", file=sys.stderr)
    return 0


def _show(profile: DeviceProfile, plot: Path | None) -> None:
    console = Console()
    # Piped into a file or a pager, a table keeps its own width.
    show_profile(profile, console if console.is_terminal else Console(width=120))
    if plot is not None:
        plot_profile(profile, plot)
        print(f"drawn: {plot}", file=sys.stderr)


def _say_what_is_kept(outcome: Outcome) -> None:
    if outcome.spent_s:
        kept = f"{outcome.spent_s:.0f} s of measuring are kept in {outcome.journal}"
        print(f"{kept}; the same command goes on from there", file=sys.stderr)
