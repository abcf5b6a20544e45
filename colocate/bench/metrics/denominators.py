"""What each tool divides by when it says attainment or goodput, so that one log gives everybody's figure.

Only the denominator and the reading of one-token answers differ here. Phase, window and clocks (TTFT counts from the
scheduled time) are ours in every row of the table, so that two figures differ by this one choice.

| name | divides by | an answer of one token, where TPOT or ITL has a target |
|---|---|---|
| colocate | offered | passes |
| distserve | finished | passes |
| vllm | finished | passes |
| sglang | sent | passes |
| guidellm | finished, and every target can be judged | is not judged |
| aiperf | finished, and errors | is not good: its metric is absent |
| inference-perf | finished | passes |
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from msgspec import Struct

from colocate.bench.records import Outcome, RequestRow
from colocate.config.slo import SloClass
from colocate.errors import ConfigError

OneToken = Literal["passes", "not_judged", "misses"]

ALL_OUTCOMES: frozenset[Outcome] = frozenset(("finished", "rejected", "failed", "timed_out", "cut_off", "not_sent"))
_FINISHED: frozenset[Outcome] = frozenset(("finished",))
_ERRORS: frozenset[Outcome] = frozenset(("finished", "rejected", "failed", "timed_out"))


class Denominator(Struct, frozen=True):
    """Counts a request with one of `outcomes`; with `sent_only`, if it was sent."""

    name: str
    words: str  # what is divided by
    outcomes: frozenset[Outcome]
    sent_only: bool = False
    one_token: OneToken = "passes"

    def counts(self, row: RequestRow, slo: SloClass) -> bool:
        """Whether this offered request is in the denominator."""
        if row.outcome not in self.outcomes or (self.sent_only and row.sent_s is None):
            return False
        return not (self.one_token == "not_judged" and lacks_gaps(row, slo))

    def allows_good(self, row: RequestRow, slo: SloClass) -> bool:
        """Whether a finished request that missed nothing is good."""
        return not (self.one_token == "misses" and lacks_gaps(row, slo))


def lacks_gaps(row: RequestRow, slo: SloClass) -> bool:
    """A finished answer of one token (or none) that is promised something about its gaps."""
    return row.outcome == "finished" and row.output_tokens < 2 and slo.step_s is not None


_RULES: Sequence[Denominator] = (
    Denominator("colocate", "offered", ALL_OUTCOMES),
    Denominator("distserve", "finished", _FINISHED),
    Denominator("vllm", "finished", _FINISHED),
    Denominator("sglang", "sent", ALL_OUTCOMES, sent_only=True),
    Denominator("guidellm", "finished and judged", _FINISHED, one_token="not_judged"),
    Denominator("aiperf", "finished and errors", _ERRORS, one_token="misses"),
    Denominator("inference-perf", "finished", _FINISHED),
)
DENOMINATORS: dict[str, Denominator] = {rule.name: rule for rule in _RULES}


def denominator(name: str) -> Denominator:
    """By name. Raises ConfigError."""
    if name not in DENOMINATORS:
        raise ConfigError("--denominator", f"there is no rule {name!r}", f"one of {', '.join(DENOMINATORS)}")
    return DENOMINATORS[name]
