"""How a load is described on the command line: one meaning for `simulate` and `bench`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

WorkloadOption = Annotated[
    Path | None, typer.Option(metavar="FILE", help="A trace: JSON lines or CSV.", rich_help_panel="Load")
]
LengthsOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="LENGTHS",
        help="PROMPT/OUTPUT tokens, lognormal:MEDIAN,SIGMA/MEDIAN,SIGMA, or a trace; twice for two phases.",
        rich_help_panel="Load",
    ),
]
PatternOption = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="steady, phase-shifting, ramp, shared-schema, same-document, agent-branching, eviction-pressure or chat.",
        rich_help_panel="Load",
    ),
]
ArrivalsOption = Annotated[
    str,
    typer.Option(metavar="NAME", help="constant, poisson, or gamma:CV for bursts.", rich_help_panel="Load"),
]
PeriodOption = Annotated[
    float, typer.Option(metavar="S", help="phase-shifting: both phases once.", rich_help_panel="Load")
]
SpeedOption = Annotated[
    float | None, typer.Option(metavar="X", help="Let time run so many times as fast.", rich_help_panel="Load")
]
BlockTokensOption = Annotated[
    int, typer.Option(min=1, help="Tokens per hash id of a Mooncake trace.", rich_help_panel="Load")
]
