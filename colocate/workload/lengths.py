"""How long prompts and answers are: fixed, lognormal, or drawn from a trace."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeAlias

from colocate.errors import ConfigError

LengthPair: TypeAlias = tuple[int, int]  # prompt tokens, output tokens

LENGTHS_HELP = "PROMPT/OUTPUT, lognormal:MEDIAN,SIGMA/MEDIAN,SIGMA, or a file with lengths"


class Lengths(Protocol):
    """Draws the lengths of one request; the same generator state gives the same lengths."""

    def draw(self, rng: random.Random) -> LengthPair: ...


@dataclass(frozen=True, slots=True)
class FixedLengths:
    """Implements `Lengths`."""

    prompt_tokens: int
    output_tokens: int

    def draw(self, rng: random.Random) -> LengthPair:
        return self.prompt_tokens, self.output_tokens


@dataclass(frozen=True, slots=True)
class LognormalLengths:
    """Implements `Lengths`: independent lognormals by median and sigma of the logarithm, cut at `max_tokens`."""

    prompt_median: float
    prompt_sigma: float
    output_median: float
    output_sigma: float
    max_tokens: int = 32_768

    def draw(self, rng: random.Random) -> LengthPair:
        prompt = rng.lognormvariate(math.log(self.prompt_median), self.prompt_sigma)
        output = rng.lognormvariate(math.log(self.output_median), self.output_sigma)
        return self._whole(prompt), self._whole(output)

    def _whole(self, tokens: float) -> int:
        return max(1, min(round(tokens), self.max_tokens))


@dataclass(frozen=True, slots=True)
class TraceLengths:
    """Implements `Lengths`: pairs drawn from a trace, so that prompt and answer stay correlated as they were."""

    pairs: Sequence[LengthPair]

    def draw(self, rng: random.Random) -> LengthPair:
        return self.pairs[rng.randrange(len(self.pairs))]


def parse_lengths(text: str) -> Lengths:
    """`512/128`, `lognormal:512,0.8/128,0.6`, or the path of a trace or lengths file. Raises ConfigError."""
    from colocate.workload.read import read_lengths

    if Path(text).is_file():
        return TraceLengths(read_lengths(Path(text)))
    kind, _, rest = text.rpartition(":")
    numbers = _numbers(rest)
    if kind == "" and numbers is not None and [len(half) for half in numbers] == [1, 1]:
        (prompt,), (output,) = numbers
        if prompt >= 1 and output >= 1 and prompt == int(prompt) and output == int(output):
            return FixedLengths(int(prompt), int(output))
    if kind == "lognormal" and numbers is not None and [len(half) for half in numbers] == [2, 2]:
        (prompt_median, prompt_sigma), (output_median, output_sigma) = numbers
        if min(prompt_median, output_median) >= 1 and min(prompt_sigma, output_sigma) >= 0:
            return LognormalLengths(prompt_median, prompt_sigma, output_median, output_sigma)
    raise ConfigError("lengths", f"{text!r} is neither a file nor lengths", f"write {LENGTHS_HELP}")


def _numbers(text: str) -> list[list[float]] | None:
    try:
        numbers = [[float(number) for number in half.split(",")] for half in text.split("/")]
    except ValueError:
        return None
    return numbers if all(math.isfinite(number) for half in numbers for number in half) else None
