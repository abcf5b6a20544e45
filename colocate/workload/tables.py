"""Traces as CSV, told apart by the names of their columns. More columns than those named are let be.

| format | columns | time |
|---|---|---|
| ours, or Azure LLM 2023 reduced | `arrival_s,prompt_tokens,output_tokens` | seconds |
| Azure LLM 2023 and 2024, raw | `TIMESTAMP,ContextTokens,GeneratedTokens` | date and time, ISO 8601 |
| BurstGPT | `Timestamp,Model,Request tokens,Response tokens,...`, from release 2.0 also `Session ID` | seconds |
| lengths | `prompt_tokens,output_tokens` | none |

The raw traces do not begin at 0: their times count from the first row.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

from colocate.errors import ConfigError
from colocate.workload.rows import WorkloadRow

ARRIVAL_COLUMNS = ("arrival_s", "prompt_tokens", "output_tokens")
LENGTH_COLUMNS = ("prompt_tokens", "output_tokens")


@dataclass(frozen=True, slots=True)
class TableFormat:
    """Which columns say what. `seconds` reads a time; None where there is none."""

    name: str
    prompt: str
    output: str
    time: str = ""
    seconds: Callable[[str], float] | None = None
    time_remedy: str = "seconds after the start of the run, such as 1.25"
    session: str = ""  # a column that need not be there
    from_first: bool = False  # times count from the first row
    may_fail: bool = False  # requests that came to nothing stand in the trace with no tokens

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.time, self.prompt, self.output) if self.time else (self.prompt, self.output)


def _clock_seconds(text: str) -> float:
    moment = datetime.fromisoformat(text)
    # Traces of 2023 bear no zone: any will do, since only differences are used.
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


FORMATS = (
    TableFormat("arrivals", "prompt_tokens", "output_tokens", "arrival_s", float),
    TableFormat(
        "Azure LLM",
        "ContextTokens",
        "GeneratedTokens",
        "TIMESTAMP",
        _clock_seconds,
        "date and time as 2024-05-10 00:00:00.009930+00:00",
        from_first=True,
        may_fail=True,
    ),
    TableFormat(
        "BurstGPT",
        "Request tokens",
        "Response tokens",
        "Timestamp",
        float,
        "seconds, such as 118 or 19440110.0",
        session="Session ID",
        from_first=True,
        may_fail=True,
    ),
    TableFormat("lengths", *LENGTH_COLUMNS),
)
FORMATS_HELP = "CSV headed " + ", or ".join(",".join(known.columns) for known in FORMATS)


def table_format(where: str, header: str) -> tuple[TableFormat, dict[str, int]]:
    """The format whose columns all stand in the header, and the place of each. Raises ConfigError."""
    names = [name.strip() for name in next(csv.reader([header]))]
    places = {name: place for place, name in enumerate(names)}
    for known in FORMATS:
        if all(column in places for column in known.columns):
            return known, places
    closest = max(FORMATS, key=lambda known: sum(column in places for column in known.columns))
    missing = [column for column in closest.columns if column not in places]
    if len(missing) == len(closest.columns):
        raise ConfigError(f"{where}: line 1", f"unknown columns {','.join(names)}", f"a workload is {FORMATS_HELP}")
    problem = f"lacks the column{'s' * (len(missing) > 1)} {', '.join(missing)}"
    raise ConfigError(f"{where}: line 1", problem, f"{closest.name} is headed {','.join(closest.columns)}")


def table_rows(
    where: str, known: TableFormat, places: dict[str, int], lines: Iterable[str]
) -> Iterator[tuple[int, WorkloadRow]]:
    """Line numbers and rows of what follows the header, unchecked. Without a time column all arrive at 0.

    Raises ConfigError with the line and the field.
    """
    sessions = _Sessions()
    first_s: float | None = None
    table = csv.reader(lines)
    for fields in table:
        line = table.line_num + 1
        if not fields:
            continue
        if len(fields) < len(places):
            problem = f"{','.join(fields)!r} has {len(fields)} fields where the header names {len(places)}"
            raise ConfigError(f"{where}: line {line}", problem, f"give every row {','.join(known.columns)}")
        at_s = _time(f"{where}: line {line}", known, fields[places[known.time]]) if known.time else 0.0
        if known.from_first:
            first_s = at_s if first_s is None else first_s
            at_s = round(at_s - first_s, 6)
        prompt = _tokens(f"{where}: line {line}", known.prompt, fields[places[known.prompt]])
        output = _tokens(f"{where}: line {line}", known.output, fields[places[known.output]])
        session = fields[places[known.session]].strip() if known.session in places else ""
        yield line, WorkloadRow(at_s, prompt, output, session=sessions.name(session, prompt, output))


class _Sessions:
    """Names of conversations. A trace says which rows belong to one, not whether a prompt repeats the turns before:
    one too short to do so begins a conversation of its own."""

    def __init__(self) -> None:
        self._held: dict[str, tuple[int, int]] = {}  # session -> (its part, tokens so far)

    def name(self, session: str, prompt_tokens: int, output_tokens: int) -> str:
        if not session or prompt_tokens < 1 or output_tokens < 1:
            return session
        part, held = self._held.get(session, (1, 0))
        if prompt_tokens <= held:
            part += 1
        self._held[session] = (part, prompt_tokens + output_tokens)
        return session if part == 1 else f"{session}/{part}"


def _time(where: str, known: TableFormat, text: str) -> float:
    assert known.seconds is not None
    try:
        seconds = known.seconds(text.strip())
    except ValueError:
        seconds = math.nan
    if not math.isfinite(seconds):
        raise ConfigError(where, f"{known.time} is {text!r}, not a time", known.time_remedy)
    return seconds


def _tokens(where: str, column: str, text: str) -> int:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number) or number != int(number):
        raise ConfigError(where, f"{column} is {text!r}, not a number of tokens", "give a whole number of tokens")
    return int(number)
