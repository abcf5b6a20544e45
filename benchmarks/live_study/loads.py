"""The loads of the live runs: shapes of the policy study, cut so that 36 runs through real processes take minutes.

Answers are at most 200 tokens: after the last arrival a run lasts as long as its longest answer. `rate` is where the
simulator sees the arms differ; it was chosen there, before anything ran live.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from policy_study.loads import CHAT, LONG, SHAREGPT, Load

from colocate.workload.lengths import LengthPair, Lengths, LognormalLengths, TraceLengths
from colocate.workload.read import read_lengths
from colocate.workload.rows import Workload
from colocate.workload.segments import Segment, phase_shifting, synthetic

MAX_ANSWER = 200
PROMPT_HEAVY = LognormalLengths(4096, 0.3, 32, 0.5)
ANSWER_HEAVY = LognormalLengths(256, 0.5, 200, 0.2)
PERIOD_S = 8.0
STEADY_RATE = 8.0
BURSTY_RATE = 4.0
SHIFT_RATES = (5.5, 22.0)


@dataclass(frozen=True, slots=True)
class CutLengths:
    """Implements `Lengths`: those of another with short answers."""

    whole: Lengths

    def draw(self, rng: random.Random) -> LengthPair:
        prompt_tokens, output_tokens = self.whole.draw(rng)
        return prompt_tokens, min(output_tokens, MAX_ANSWER)


def live_loads(seconds: float) -> dict[str, Load]:
    """By name, each offered for so long at the device's own speed."""

    def chat(scale: float, seed: int, name: str, rate: float, arrivals: str) -> Workload:
        lengths = CutLengths(TraceLengths(read_lengths(SHAREGPT)))
        return synthetic(name, [Segment(seconds, rate * scale, lengths)], seed=seed, arrivals=arrivals)

    def shifting(scale: float, seed: int) -> Workload:
        rates = (SHIFT_RATES[0] * scale, SHIFT_RATES[1] * scale)
        lengths = (PROMPT_HEAVY, CutLengths(ANSWER_HEAVY))
        return synthetic("shifting", phase_shifting(rates, lengths, PERIOD_S, seconds), seed=seed)

    return {
        load.name: load
        for load in (
            Load(
                "steady", "steady", CHAT, STEADY_RATE,
                lambda scale, seed: chat(scale, seed, "steady", STEADY_RATE, "poisson"),
                f"ShareGPT lengths, answers cut at {MAX_ANSWER}, Poisson",
            ),
            Load(
                "bursty", "bursty", CHAT, BURSTY_RATE,
                lambda scale, seed: chat(scale, seed, "bursty", BURSTY_RATE, "gamma:3"),
                "the same lengths, gamma arrivals of CV 3",
            ),
            Load("shifting", "shifting", LONG, sum(SHIFT_RATES) / 2, shifting, "4,096/32, then 256/200, 4 s each"),
        )
    }  # fmt: skip
