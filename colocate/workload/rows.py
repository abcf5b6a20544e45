"""The rows of a workload, and what makes a list of them legal."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
from msgspec import Struct

from colocate.errors import ConfigError

DEFAULT_BLOCK_TOKENS = 512  # what one prefix id stands for, as in the Mooncake traces


class WorkloadRow(Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """One request. Our JSONL files hold one of these per line.

    `prefix` names the first `len(prefix) * block_tokens` tokens of the prompt (as far as it reaches): two requests
    share tokens exactly as far as their ids agree. What no id names is this request's own. Rows of one `session` are
    the turns of a conversation: a later turn's prompt begins with the prompt and the answer before it, and
    `prompt_tokens` counts them.
    """

    arrival_s: float  # after the start of the run
    prompt_tokens: int
    output_tokens: int  # exactly so many are generated: an end of sequence is ignored
    prefix: tuple[int, ...] = ()
    block_tokens: int = DEFAULT_BLOCK_TOKENS
    slo_class: str = ""  # empty: the default class
    session: str = ""


@dataclass(frozen=True, slots=True)
class Workload:
    """Rows in order of arrival, offered over `duration_s`."""

    name: str
    rows: tuple[WorkloadRow, ...]
    duration_s: float

    @property
    def rate(self) -> float:
        """Offered requests per second."""
        return len(self.rows) / self.duration_s


def make_workload(name: str, rows: Sequence[WorkloadRow], duration_s: float | None = None) -> Workload:
    """Check the rows and bind them. Without a duration the last arrival plus one mean gap ends the load.

    Raises ConfigError naming `name` and the number of the row.
    """
    rows = tuple(rows)
    check_rows(name, rows)
    if duration_s is None:
        last_s = rows[-1].arrival_s
        duration_s = last_s + last_s / (len(rows) - 1) if len(rows) > 1 and last_s > 0 else max(last_s, 1.0)
    return Workload(name, rows, duration_s)


def check_rows(where: str, rows: Sequence[WorkloadRow], lines: Sequence[int] = ()) -> None:
    """Raises ConfigError at the first row that cannot be served; `lines` are those of the rows, 1, 2, ... if empty."""
    if not rows:
        raise ConfigError(where, "holds no request", "a workload needs at least one row")
    previous_s = -math.inf
    history: dict[str, int] = {}
    for line, row in zip(lines or range(1, len(rows) + 1), rows, strict=True):
        problem, remedy = _problem(row, previous_s, history)
        if problem:
            raise ConfigError(f"{where}: line {line}", problem, remedy)
        previous_s = row.arrival_s
        if row.session:
            history[row.session] = row.prompt_tokens + row.output_tokens


def _problem(row: WorkloadRow, previous_s: float, history: dict[str, int]) -> tuple[str, str]:
    if row.arrival_s < previous_s:
        remedy = "sort the rows by arrival time: `colocate workload convert --sort` does"
        return f"arrives at {row.arrival_s} s, after a row of {previous_s} s", remedy
    if not math.isfinite(row.arrival_s) or row.arrival_s < 0:
        return f"arrives at {row.arrival_s} s", "times count from the start of the run: shift them to 0 or later"
    if row.prompt_tokens < 1 or row.output_tokens < 1:
        return f"has {row.prompt_tokens} prompt and {row.output_tokens} output tokens", "both must be at least 1"
    if row.block_tokens < 1:
        return f"has blocks of {row.block_tokens} tokens", "block_tokens must be at least 1"
    known = history.get(row.session) if row.session else None
    if known is None:
        return "", ""
    if row.prefix:
        return f"names a prefix in a later turn of session {row.session!r}", "only a session's first turn may have one"
    if row.prompt_tokens <= known:
        problem = f"has a prompt of {row.prompt_tokens} tokens where session {row.session!r} already holds {known}"
        return problem, "prompt_tokens counts the turns before, answers included, and at least one new token"
    return "", ""


def to_jsonl(workload: Workload) -> bytes:
    """The workload as our own format, one row per line."""
    encode = msgspec.json.encode
    return b"".join(encode(row) + b"\n" for row in workload.rows)
