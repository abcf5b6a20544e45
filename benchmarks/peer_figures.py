"""Figures of `benchmarks/peers.py`: of one arm in one round, over rounds, and as a table."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from colocate.bench.metrics.latency import itl_s, ttft_s
from colocate.bench.records import RequestRow
from colocate.telemetry.quantiles import quantile

BASE_ARM = "colocate elastic"  # of the ratios
_TOGETHER = 1.05  # tokens per event

# Figure -> its heading and how it is written.
COLUMNS = {
    "ttft_p50_s": ("TTFT p50, 2,048 tokens", 1e3, "{:,.0f} ms"),
    "itl_quiet_p50_s": ("ITL p50 quiet", 1e3, "{:.1f} ms"),
    "itl_quiet_p99_s": ("ITL p99 quiet", 1e3, "{:.1f} ms"),
    "itl_prefill_p50_s": ("ITL p50 in prefill", 1e3, "{:,.1f} ms"),
    "itl_prefill_p99_s": ("ITL p99 in prefill", 1e3, "{:,.1f} ms"),
    "output_tokens_per_s": ("output tokens/s", 1.0, "{:.0f}"),
    "memory_bytes": ("memory", 1 / 2**20, "{:,.0f} MiB"),
    "start_s": ("start", 1.0, "{:.1f} s"),
}
RATIOS = ("ttft_p50_s", "itl_prefill_p99_s", "output_tokens_per_s")
Figures = dict[str, float | None]
Rounds = Mapping[str, Sequence[Figures]]


@dataclass(frozen=True, slots=True)
class Seen:
    """Rows of both loads on one clock, and the window of it that counts."""

    streams: Sequence[RequestRow]
    prompts: Sequence[RequestRow]
    start_s: float
    end_s: float


def figures(seen: Seen) -> Figures:
    """Of one arm in one round; None where nothing was seen."""
    long = [row for row in seen.prompts if row.scheduled_s >= seen.start_s]
    first_s = sorted(value for row in long if (value := ttft_s(row)) is not None)
    quiet, busy = split_gaps(seen)
    tokens = sum(seen.start_s <= at_s < seen.end_s for row in seen.streams for at_s in row.token_s)
    rows = [*seen.streams, *long]
    return {
        "ttft_p50_s": _quantile(first_s, 0.5),
        "ttft_max_s": first_s[-1] if first_s else None,
        "itl_quiet_p50_s": _quantile(quiet, 0.5),
        "itl_quiet_p99_s": _quantile(quiet, 0.99),
        "itl_prefill_p50_s": _quantile(busy, 0.5),
        "itl_prefill_p99_s": _quantile(busy, 0.99),
        "output_tokens_per_s": tokens / (seen.end_s - seen.start_s),
        "num_prompts": len(long),
        "num_prompts_unanswered": len(long) - len(first_s),
        "num_quiet_gaps": len(quiet),
        "num_prefill_gaps": len(busy),
        "num_failed": sum(row.outcome in ("failed", "rejected", "timed_out") for row in rows),
        "tokens_per_event": _tokens_per_event(seen),
    }


def split_gaps(seen: Seen) -> tuple[list[float], list[float]]:
    """Gaps of the streams that end in the window: those that touch no long prompt's prefill, and the others. A prompt
    without an answer counts as being prefilled to the end. Sorted."""
    spans = [
        (row.sent_s, row.token_s[0] if row.token_s else float("inf")) for row in seen.prompts if row.sent_s is not None
    ]
    quiet: list[float] = []
    busy: list[float] = []
    for row in seen.streams:
        for gap_s, later_s in zip(itl_s(row), row.token_s[1:], strict=True):
            if seen.start_s <= later_s < seen.end_s:
                touches = any(sent_s < later_s and later_s - gap_s < first_s for sent_s, first_s in spans)
                (busy if touches else quiet).append(gap_s)
    return sorted(quiet), sorted(busy)


def _tokens_per_event(seen: Seen) -> float | None:
    """Of the streams: tokens that come together have gaps of zero, so an ITL means little where this is far above 1."""
    tokens = [row.token_s for row in seen.streams if row.token_s]
    return sum(map(len, tokens)) / sum(len(set(token_s)) for token_s in tokens) if tokens else None


def _quantile(values: Sequence[float], share: float) -> float | None:
    return quantile(values, share) if values else None


def medians(rounds: Sequence[Figures]) -> Figures:
    """Over the rounds that have the figure. The start is the shortest: vLLM compiles in its first."""
    found: Figures = {}
    for key in {key: None for each in rounds for key in each}:
        values = [value for each in rounds if (value := each.get(key)) is not None]
        found[key] = (min if key == "start_s" else statistics.median)(values) if values else None
    return found


def best_chunks(results: Mapping[str, Figures], sizes: Mapping[str, Mapping[str, int]]) -> dict[str, int]:
    """System -> the chunk with the smallest product of TTFT p50 and ITL p99 in prefill: the first wants it large, the
    second small. `sizes`: system -> its arms' chunks, by the arm's name. Without those of which a prompt was never
    answered."""
    found = {}
    for system, arms in sizes.items():
        costs = {}
        for name, tokens in arms.items():
            of = results.get(name, {})
            ttft, itl = of.get("ttft_p50_s"), of.get("itl_prefill_p99_s")
            if ttft and itl and not of.get("num_prompts_unanswered"):
                costs[tokens] = ttft * itl
        if costs:
            found[system] = min(costs, key=costs.__getitem__)
    return found


def table(results: Mapping[str, Figures]) -> str:
    """Markdown; behind TTFT, ITL p99 in prefill and throughput their ratios to ours."""
    base = results.get(BASE_ARM, {})
    headings = [heading for heading, _, _ in COLUMNS.values()]
    lines = ["| server | " + " | ".join(headings) + " |", "|---" + "|---:" * len(headings) + "|"]
    for name, found in results.items():
        cells = [_cell(key, found, base if name != BASE_ARM else {}) for key in COLUMNS]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(key: str, found: Figures, base: Figures) -> str:
    value, of = found.get(key), base.get(key)
    if value is None:
        return "-"
    _, scale, form = COLUMNS[key]
    ratio = f" ({value / of:.2f}x)" if key in RATIOS and of else ""
    return form.format(value * scale) + ratio


def notes(rounds: Rounds, num_rounds: int) -> list[str]:
    """What the table does not show: missing rounds, requests and answers, and tokens that came together."""
    lines = []
    for name, found in rounds.items():
        failed = sum(each["num_failed"] or 0 for each in found)
        unanswered = sum(each["num_prompts_unanswered"] or 0 for each in found)
        together = medians(found).get("tokens_per_event") or 1.0
        if len(found) < num_rounds:
            lines.append(f"{name}: measured in {len(found)} of {num_rounds} rounds")
        if failed:
            lines.append(f"{name}: {failed:.0f} requests failed")
        if unanswered:
            lines.append(f"{name}: {unanswered:.0f} long prompts had no answer in time and are not in its TTFT")
        if together > _TOGETHER:
            lines.append(f"{name}: {together:.2f} tokens came together, so its ITL is not that of single tokens")
    return lines
