"""Latencies of one request, in seconds. They count from the scheduled time: what the client sends late shows as latency
of that request (coordinated omission), and `lateness_s` says how much of it is the client's."""

from __future__ import annotations

import operator
from typing import Literal

from colocate.bench.records import RequestRow
from colocate.telemetry.quantiles import itl_p99

Stage = Literal["tokenize_s", "queue_s", "prefill_s", "decode_s", "stream_s"]
STAGES: tuple[Stage, ...] = ("tokenize_s", "queue_s", "prefill_s", "decode_s", "stream_s")


def ttft_s(row: RequestRow) -> float | None:
    """Time to first token: token_s[0] - scheduled_s. None without a token; a request that broke later has one."""
    return row.token_s[0] - row.scheduled_s if row.token_s else None


def ttft_per_token_s(row: RequestRow) -> float | None:
    """Time to first token per prompt token: ttft / prompt_tokens. None without a token or a prompt."""
    first_s = ttft_s(row)
    return None if first_s is None or not row.prompt_tokens else first_s / row.prompt_tokens


def itl_s(row: RequestRow) -> list[float]:
    """Inter-token latencies: token_s[i + 1] - token_s[i], each gap one value, of whatever came."""
    return list(map(operator.sub, row.token_s[1:], row.token_s))


def itl_p99_s(row: RequestRow) -> float | None:
    """The request's own 99th percentile of its gaps (docs/slo.md): of each full hundred gaps one may be longer. None
    where it did not finish, or has fewer than two tokens."""
    return itl_p99(row.token_s) if row.outcome == "finished" else None


def tpot_s(row: RequestRow) -> float | None:
    """Time per output token: (last token - first token) / (output_tokens - 1), the mean after the first. None where it
    did not finish, or has fewer than two tokens."""
    if row.outcome != "finished" or row.output_tokens < 2 or len(row.token_s) < 2:
        return None
    return (row.token_s[-1] - row.token_s[0]) / (row.output_tokens - 1)


def e2e_s(row: RequestRow) -> float | None:
    """End to end: last token - scheduled_s, which is ttft + tpot * (output_tokens - 1). None where it did not finish
    or has no token."""
    return row.token_s[-1] - row.scheduled_s if row.outcome == "finished" and row.token_s else None


def stage_s(row: RequestRow, stage: Stage) -> float | None:
    """Time in one stage as the server tells it, for example `queue_s`: accepted until its prefill starts. None where it
    does not tell."""
    return None if row.stages is None else getattr(row.stages, stage)


def lateness_s(row: RequestRow) -> float | None:
    """How late the client was: sent_s - scheduled_s. None where it was not sent."""
    return None if row.sent_s is None else row.sent_s - row.scheduled_s
