"""What a run leaves: one record per request, and the figures made of them.

Times are seconds after the start of the run, on the engine's clock: what HTTP adds is not in them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from msgspec import Struct

from colocate.config.slo import SloClass
from colocate.messages.client import EngineState
from colocate.telemetry.promises import judge_latencies, slo_by_name
from colocate.telemetry.quantiles import itl_p99 as longest_kept_gap
from colocate.telemetry.quantiles import quantile


class RequestRecord(Struct, frozen=True):
    """One offered request. `first_token_s` and `finished_s` are None where the run ended before, or it was rejected."""

    request_id: int  # 1, 2, .. in order of arrival
    arrival_s: float
    prompt_tokens: int
    max_tokens: int
    slo_class: str
    replica: int = 0
    scheduled_s: float | None = None
    first_token_s: float | None = None
    finished_s: float | None = None
    output_tokens: int = 0
    cached_tokens: int = 0  # of the prompt: found in the prefix tree
    preemptions: int = 0
    itl_p99_s: float | None = None  # 99th percentile of its gaps; None where it has none, or never ended
    rejected: bool = False
    slo: SloClass | None = None  # what it was promised where it brought targets of its own; None: what its class says

    @property
    def ttft_s(self) -> float | None:
        """Time to first token: when the engine has it minus the arrival of the request."""
        return None if self.first_token_s is None else self.first_token_s - self.arrival_s

    @property
    def tpot_s(self) -> float | None:
        """Time per output token: the mean after the first. None for an answer of one token, or without an end."""
        if self.finished_s is None or self.first_token_s is None or self.output_tokens < 2:
            return None
        return (self.finished_s - self.first_token_s) / (self.output_tokens - 1)

    @property
    def e2e_s(self) -> float | None:
        """End to end: when the engine has the last token minus the arrival of the request."""
        return None if self.finished_s is None else self.finished_s - self.arrival_s

    def is_good(self, slo: SloClass) -> bool:
        """Finished, and within every target of its class. An answer of one token has no TPOT to miss."""
        ttft_s = self.ttft_s
        if self.finished_s is None or ttft_s is None:
            return False
        return judge_latencies(slo, self.prompt_tokens, ttft_s, self.tpot_s, self.itl_p99_s).both is not False


class Quantiles(Struct, frozen=True):
    """In seconds; None where there is nothing to take them of."""

    p50: float | None
    p90: float | None
    p99: float | None
    mean: float | None


class Summary(Struct, frozen=True):
    """Figures of one run. Attainment is good / offered: what was rejected or not finished is a miss."""

    num_offered: int
    num_finished: int
    num_rejected: int
    num_good: int
    attainment: float
    attainment_by_class: dict[str, float]
    offered_rate: float  # requests per second
    goodput: float  # good requests per second of the load
    output_tokens_per_s: float
    ttft_s: Quantiles
    tpot_s: Quantiles
    itl_p99_s: Quantiles  # over requests, of each one's own 99th percentile
    e2e_s: Quantiles
    queue_s: Quantiles
    cached_share: float  # of the prompt tokens of requests that were scheduled
    num_preemptions: int


@dataclass(frozen=True, slots=True)
class SimResult:
    """`states` are the engines' own last snapshots, one per replica."""

    records: tuple[RequestRecord, ...]
    states: tuple[EngineState, ...]
    summary: Summary
    simulated_s: float

    @property
    def residency(self) -> dict[str, float]:
        """Share of phase-active time that each plan was truly in force, over all replicas."""
        total: dict[str, int] = {}
        for state in self.states:
            for plan, spent_ns in state.residency_ns.items():
                total[plan] = total.get(plan, 0) + spent_ns
        active_ns = sum(total.values())
        return {plan: spent_ns / active_ns for plan, spent_ns in sorted(total.items(), key=lambda item: -item[1])}

    @property
    def num_switches(self) -> int:
        return sum(state.switch_count for state in self.states)


def summarise(
    records: Sequence[RequestRecord],
    duration_s: float,
    classes: Sequence[SloClass] = (),
    default_class: str = "",
    *,
    warm_up_s: float = 0.0,
) -> Summary:
    """Figures over the requests that arrived after `warm_up_s`, per second of the rest of the load. A request with
    targets of its own is judged by those, and counts for its class."""
    counted = [record for record in records if record.arrival_s >= warm_up_s]
    duration_s = max(duration_s - warm_up_s, 1e-9)
    slos = slo_by_name(classes, default_class)
    good: dict[str, int] = {}
    offered: dict[str, int] = {}
    for record in counted:
        slo = record.slo or slos.get(record.slo_class, slos[""])
        offered[slo.name] = offered.get(slo.name, 0) + 1
        good[slo.name] = good.get(slo.name, 0) + record.is_good(slo)
    num_good = sum(good.values())
    scheduled = [record for record in counted if record.scheduled_s is not None]
    num_prompt_tokens = sum(record.prompt_tokens for record in scheduled)
    return Summary(
        num_offered=len(counted),
        num_finished=sum(record.finished_s is not None for record in counted),
        num_rejected=sum(record.rejected for record in counted),
        num_good=num_good,
        attainment=num_good / len(counted) if counted else 0.0,
        attainment_by_class={name: good[name] / offered[name] for name in sorted(offered)},
        offered_rate=len(counted) / duration_s,
        goodput=num_good / duration_s,
        output_tokens_per_s=sum(record.output_tokens for record in counted) / duration_s,
        ttft_s=quantiles([record.ttft_s for record in counted]),
        tpot_s=quantiles([record.tpot_s for record in counted]),
        itl_p99_s=quantiles([record.itl_p99_s for record in counted]),
        e2e_s=quantiles([record.e2e_s for record in counted]),
        queue_s=quantiles(
            [None if record.scheduled_s is None else record.scheduled_s - record.arrival_s for record in counted]
        ),
        cached_share=sum(record.cached_tokens for record in scheduled) / num_prompt_tokens
        if num_prompt_tokens
        else 0.0,
        num_preemptions=sum(record.preemptions for record in counted),
    )


def itl_p99(token_times_ns: Sequence[int]) -> float | None:
    """As telemetry.quantiles says, of times in nanoseconds; in seconds."""
    gap_ns = longest_kept_gap(token_times_ns)
    return None if gap_ns is None else gap_ns / 1e9


def quantiles(values: Sequence[float | None]) -> Quantiles:
    """By linear interpolation between order statistics (type 7). None values are left out."""
    known = sorted(value for value in values if value is not None)
    if not known:
        return Quantiles(None, None, None, None)
    p50, p90, p99 = (quantile(known, share) for share in (0.5, 0.9, 0.99))
    return Quantiles(p50, p90, p99, math.fsum(known) / len(known))
