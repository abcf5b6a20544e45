"""The loads of the study. Frozen: margins and guards were tuned on other loads (docs/decisions/0006), never on these.

Every load is made for a `scale`: 1 is the rate named here, and goodput is the highest scale that still meets the SLO.
Traces keep their order and burstiness and are offered faster or slower. The seed draws arrivals and lengths; for a
trace it chooses which window of it is taken.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from msgspec.structs import replace

from colocate.messages.slo import SloClass
from colocate.workload.lengths import LognormalLengths, TraceLengths
from colocate.workload.read import read_lengths, read_workload
from colocate.workload.rows import Workload, make_workload
from colocate.workload.scale import at_rate
from colocate.workload.segments import Segment, phase_shifting, synthetic

TRACES = Path(__file__).parents[1] / "traces"
CHAT_S = 40.0
SHIFT_S = 60.0  # two periods of the slow one


@dataclass(frozen=True, slots=True)
class Load:
    """`make(scale, seed)` gives the workload. `kind`: steady, bursty, shifting or trace."""

    name: str
    kind: str
    slo: SloClass
    rate: float  # requests per second at scale 1, for the report
    make: Callable[[float, int], Workload]
    about: str


# "chat, tight" of the field is 0.3 s and 50 ms; half of these prompts need more than 0.1 s on a whole device, so the
# first token gets half a second. A mean hides stalls, so the 99th percentile of a request's gaps may be twice it.
CHAT = SloClass("chat", ttft_s=0.5, tpot_s=0.05, itl_s=0.1)
# The same with the mean alone, as most studies have it: what stalls cost shows in the difference.
MEAN = SloClass("mean", ttft_s=0.5, tpot_s=0.05)
# MuxWise's bound for an 8B model: P99 of the gaps within 50 ms.
STRICT = SloClass("strict", ttft_s=0.5, itl_s=0.05)
LONG = SloClass("long", ttft_s=1.0, tpot_s=0.05, itl_s=0.1)
LONG_STRICT = SloClass("long-strict", ttft_s=1.0, itl_s=0.05)
# Bullet's definition for code and long documents: 1.5 ms of first-token time per prompt token. Its 200 ms per output
# token would make decode free, so that stays at 50.
PER_TOKEN = SloClass("per-token", ttft_per_token_s=0.0015, tpot_s=0.05, itl_s=0.1)

SHAREGPT = TRACES / "sharegpt_8k_lengths.csv"
PROMPT_HEAVY = LognormalLengths(4096, 0.3, 32, 0.5)
ANSWER_HEAVY = LognormalLengths(256, 0.5, 512, 0.4)


def _chat(
    name: str, rate: float, slo: SloClass, arrivals: str, kind: str, about: str, duration_s: float = CHAT_S
) -> Load:
    def make(scale: float, seed: int) -> Workload:
        lengths = TraceLengths(read_lengths(SHAREGPT))
        return synthetic(name, [Segment(duration_s, rate * scale, lengths)], seed=seed, arrivals=arrivals)

    return Load(name, kind, slo, rate, make, about)


def _shift(name: str, period_s: float, slo: SloClass, about: str) -> Load:
    rates = (4.5, 14.0)

    def make(scale: float, seed: int) -> Workload:
        scaled = (rates[0] * scale, rates[1] * scale)
        segments = phase_shifting(scaled, (PROMPT_HEAVY, ANSWER_HEAVY), period_s, SHIFT_S)
        return synthetic(name, segments, seed=seed)

    return Load(name, "shifting", slo, sum(rates) / 2, make, about)


def _trace(name: str, file: str, rate: float, slo: SloClass, num_rows: int, about: str) -> Load:
    def make(scale: float, seed: int) -> Workload:
        whole = read_workload(TRACES / file)
        first = random.Random(f"{name}/{seed}").randrange(len(whole.rows) - num_rows)
        start_s = whole.rows[first].arrival_s
        rows = [replace(row, arrival_s=row.arrival_s - start_s) for row in whole.rows[first : first + num_rows]]
        return at_rate(make_workload(name, rows), rate * scale)

    return Load(name, "trace", slo, rate, make, about)


LOADS = (
    _chat("chat-steady", 6.0, CHAT, "poisson", "steady", "ShareGPT lengths, Poisson"),
    _chat("chat-mean", 6.0, MEAN, "poisson", "steady", "the same, no bound on gaps"),
    _chat("chat-strict", 5.0, STRICT, "poisson", "steady", "the same, gaps within 50 ms"),
    _chat("chat-bursty", 2.0, CHAT, "gamma:3", "bursty", "ShareGPT lengths, gamma arrivals of CV 3", 100.0),
    _shift("shift-slow", 30.0, LONG, "15 s of 4,096/32, then 15 s of 256/512, by turns"),
    _shift("shift-fast", 8.0, LONG, "the same, 4 s each"),
    _shift("shift-strict", 30.0, LONG_STRICT, "shift-slow, gaps within 50 ms"),
    _trace("azure-conv", "azure_llm_2023_conv.csv", 16.0, CHAT, 300, "Azure conversations, a window of 300"),
    _trace("azure-code", "azure_llm_2023_code.csv", 1.0, PER_TOKEN, 250, "Azure code, very bursty, a window of 250"),
    _trace(
        "mooncake", "mooncake_fast25_conversation_head1500.jsonl", 0.55, PER_TOKEN, 120,
        "Mooncake conversations with their shared prefixes, a window of 120",
    ),
)  # fmt: skip
