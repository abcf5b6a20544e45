"""A lean streaming client: one asyncio connection per request, the arrival time of every token.

It asks for `return_token_ids`, so a chunk says how many tokens it carries even where they have no text.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import orjson


@dataclass
class StreamRecord:
    """`token_s[i]` is when output token i arrived, on the clock of `time.perf_counter`."""

    sent_s: float
    token_s: list[float] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    finish_reason: str | None = None
    error: str | None = None
    status: int = 0  # of HTTP; 0 before it is known
    num_cached_tokens: int = 0  # of the prompt; told where `stream_options` ask for usage

    @property
    def ttft_s(self) -> float | None:
        return self.token_s[0] - self.sent_s if self.token_s else None

    def gaps_s(self, start_s: float = 0.0, end_s: float = float("inf")) -> list[float]:
        """Inter-token latencies whose later token arrived in the window."""
        pairs = zip(self.token_s, self.token_s[1:], strict=False)
        return [later - earlier for earlier, later in pairs if start_s <= later <= end_s]


async def stream(
    port: int, model: str, prompt: Sequence[int] | str, max_tokens: int, record: StreamRecord | None = None, **extra
) -> StreamRecord:
    """One streamed completion. The record is filled while it runs, so a cancelled stream keeps what it has seen."""
    record = record or StreamRecord(0.0)
    body = {
        "model": model,
        "prompt": prompt if isinstance(prompt, str) else list(prompt),
        "max_tokens": max_tokens,
        "stream": True,
        "ignore_eos": True,
        "temperature": 0,
        "return_token_ids": True,
    } | extra
    payload = orjson.dumps(body)
    head = (
        f"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(payload)}\r\nConnection: close\r\n\r\n"
    )
    record.sent_s = time.perf_counter()
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 22)
    try:
        writer.write(head.encode() + payload)
        status = (await reader.readline()).split()
        record.status = int(status[1]) if len(status) > 1 else 0
        if record.status != 200:
            record.error = (await reader.read()).decode(errors="replace")  # to the end: the connection closes
            return record
        async for line in reader:
            if line.startswith(b"data: "):
                _take(record, line[6:].strip())
    finally:
        writer.close()
    return record


def _take(record: StreamRecord, data: bytes) -> None:
    if data == b"[DONE]":
        return
    now_s = time.perf_counter()
    event = orjson.loads(data)
    if "error" in event:
        record.error = event["error"]["message"]
        return
    usage = event.get("usage") or {}
    if details := usage.get("prompt_tokens_details"):
        record.num_cached_tokens = details.get("cached_tokens") or 0
    for choice in event["choices"]:
        token_ids = choice.get("token_ids") or []
        record.token_ids += token_ids
        # A server that sends no token ids may still count what it has sent (`continuous_usage_stats`).
        num_new = len(token_ids) or max(0, (usage.get("completion_tokens") or 0) - len(record.token_s))
        record.token_s += [now_s] * num_new
        record.finish_reason = choice.get("finish_reason") or record.finish_reason


def percentile(values: Sequence[float], percent: float) -> float:
    """Nearest rank. Raises ValueError for no values: a figure nobody measured is not zero."""
    if not values:
        raise ValueError("no samples")
    ordered = sorted(values)
    return ordered[min(int(len(ordered) * percent / 100), len(ordered) - 1)]
