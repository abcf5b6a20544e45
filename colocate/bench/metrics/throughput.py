"""Rates over the window. Tokens and ends are counted where they happen in the window, whoever they belong to; offered
requests where they were scheduled in it."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable

from colocate.bench.metrics.window import Window
from colocate.bench.records import RequestRow


def num_output_tokens(rows: Iterable[RequestRow], window: Window) -> int:
    """Output tokens that arrived in the window, of every row, whatever its phase and outcome."""
    return sum(bisect_left(row.token_s, window.end_s) - bisect_left(row.token_s, window.start_s) for row in rows)


def num_input_tokens(rows: Iterable[RequestRow], window: Window) -> int:
    """Prompt tokens of the requests whose first token arrived in the window: their prompts were done there. Those found
    in a prefix cache count too."""
    return sum(row.prompt_tokens for row in rows if row.token_s and window.holds(row.token_s[0]))


def num_completed(rows: Iterable[RequestRow], window: Window) -> int:
    """Requests that finished, with their last token (without one: their end) in the window."""
    ends = (row.token_s[-1] if row.token_s else row.end_s for row in rows if row.outcome == "finished")
    return sum(end_s is not None and window.holds(end_s) for end_s in ends)


def per_second(count: float, window: Window) -> float | None:
    """count / length of the window, per second. None of an empty window."""
    return count / window.length_s if window.length_s > 0 else None


def failures(rows: Iterable[RequestRow]) -> dict[str, int]:
    """Offered requests that did not finish, by `outcome: error_kind`, most frequent first."""
    kinds = Counter(
        f"{row.outcome}: {row.error_kind}" if row.error_kind else row.outcome
        for row in rows
        if row.outcome != "finished"
    )
    return dict(sorted(kinds.items(), key=lambda kind: (-kind[1], kind[0])))


def cached_share(rows: Iterable[RequestRow]) -> float | None:
    """Prompt tokens found in the server's prefix cache / prompt tokens, of the offered requests whose answers tell. No
    unit, 0 to 1; None where none tells."""
    told = [row for row in rows if row.cached_tokens is not None]
    num_prompt_tokens = sum(row.prompt_tokens for row in told)
    return sum(row.cached_tokens or 0 for row in told) / num_prompt_tokens if num_prompt_tokens else None
