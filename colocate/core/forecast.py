"""What each plan would do to a steady load: TTFT, TPOT and utilisation, before anything is served.

A plan is forecast as two queues that slow each other down.

Prefill is one server in order of arrival. With `S` the seconds of one prompt (its chunks one after another) the mean
wait is that of the M/G/1 queue,

    W = rate * E[S^2] / (2 * (1 - rho)) * (ca2 + cs2) / (1 + cs2),    rho = rate * E[S]

(Pollaczek 1930, Khinchine 1932; Kleinrock, Queueing Systems vol. 1, equation 5.69). The last factor is 1 for Poisson
arrivals and otherwise the Allen-Cunneen correction for gaps of squared coefficient of variation ca2 (Allen,
Probability, Statistics and Queueing Theory, 2nd edition, 1990, section 5.3), cs2 that of S. A prompt waits with
probability rho, and then for an exponential time of mean W / rho (exact for M/M/1, and in heavy traffic: Kingman 1961).
TTFT is the wait plus the prompt's own forwards. Prompts that wait together share forwards: of the fixed cost of a
forward a prompt bears its own share of a full one with probability rho, and a whole one otherwise.

Decode is a standing batch: `rate * (output - 1)` tokens are asked for each second, every request has one row, and a
step of n rows takes c + k * n with k = b + a * context. By Little's law a row sees N = rate * (E[output] - 1) * TPOT
others, so

    TPOT = c + k * (1 + N)    =>    TPOT = (c + k) / (1 - rate * (E[output] - 1) * k)

N is Poisson (M/G/infinity), its 90th percentile gives that of TPOT. Rows end at `max_num_seqs` and where the KV pool is
full; the share of the largest batch's tokens per second that the load needs is decode's utilisation.

Contention: a phase goes at 1 / factor of its speed for as long as the other one works: prefill for the probability
that a row stands, decode for rho. Both depend on each other; a few rounds find the balance.

Left out: prefix reuse (give uncached prompt lengths), the correlation of prompt and output lengths, the time between
processes, and what a policy does when a phase is idle. All lengths are log-normal with the moments given.

How far to trust it, against the simulator (tests/sim/test_forecast.py; H200 at 20% to 70% load): mean TPOT within 8%,
its 90th percentile up to 12% short (25% under `shared`, where a row's time beside prefill varies most), TTFT within 16%
at median and 90th percentile. Two exceptions. Prompts so short that dozens share a forward all wait for the whole of
it: their TTFT comes out up to a third short. And gaps that cluster (arrival_cv2 over MAX_CV2) are no renewal process:
on a trace with ca2 = 170 the 90th percentile came out a third short and the median meaningless. Simulate those.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from colocate.config.plan_file import Load
from colocate.config.slo import SloClass
from colocate.core.latency import LatencyModel
from colocate.core.plan import SHARED, Plan, PlanTable
from colocate.errors import ConfigError

MAX_CV2 = 4.0  # of the gaps between arrivals: burstier ones must be simulated
ATTAINMENT = 0.9  # a plan meets its SLO where this share of the requests does
_Z90 = 1.2815515655446004  # 90th percentile of the standard normal
_ROUNDS = 50  # of the contention balance, which contracts: a handful is enough
_CUTS = tuple(-3.0 + 0.05 * index for index in range(141))  # of the standard normal: -3 to 4


@dataclass(frozen=True, slots=True)
class Limits:
    """The engine's bounds. `kv_tokens` is the size of the pool; 0: not known, no bound."""

    max_num_seqs: int
    max_num_batched_tokens: int
    kv_tokens: int = 0


@dataclass(frozen=True, slots=True)
class PlanForecast:
    """Seconds are infinite where the load is more than the plan can serve. `slo_ratio` is the worst of the measures
    over its target, at the 90th percentile: at most 1 meets the SLO."""

    plan: Plan
    ttft_p50_s: float
    ttft_p90_s: float
    tpot_s: float
    tpot_p90_s: float
    prefill_utilisation: float
    decode_utilisation: float
    slo_ratio: float

    @property
    def meets_slo(self) -> bool:
        return self.slo_ratio <= 1.0

    @property
    def is_saturated(self) -> bool:
        return max(self.prefill_utilisation, self.decode_utilisation) >= 1.0

    def dominates(self, other: PlanForecast) -> bool:
        """No latency longer, and one shorter. Equal plans dominate nobody."""
        ours = (self.ttft_p50_s, self.ttft_p90_s, self.tpot_s, self.tpot_p90_s)
        theirs = (other.ttft_p50_s, other.ttft_p90_s, other.tpot_s, other.tpot_p90_s)
        return ours != theirs and all(mine <= its for mine, its in zip(ours, theirs, strict=True))


def forecast_plans(
    model: LatencyModel, table: PlanTable, load: Load, slo: SloClass, limits: Limits
) -> list[PlanForecast]:
    """Every plan that serves both phases, in the table's order. Raises ConfigError for an impossible load or SLO."""
    _check(load, slo, limits)
    prompts = _lognormal(load.prompt_tokens, load.prompt_tokens_square)
    plans = [plan for plan in table.plans if plan.prefill_units and plan.decode_units]
    return [_forecast(model, plan, load, slo, limits, prompts) for plan in plans]


def best_static(model: LatencyModel, table: PlanTable, load: Load, slo: SloClass, limits: Limits) -> Plan:
    """The split that keeps farthest from its SLO; `shared` where the device cannot be split. Raises ConfigError."""
    return choose_best(forecast_plans(model, table, load, slo, limits)).plan


def choose_best(forecasts: Sequence[PlanForecast]) -> PlanForecast:
    """Smallest `slo_ratio`; among plans that cannot serve the load, the one that comes closest."""
    splits = [each for each in forecasts if each.plan.name != SHARED] or list(forecasts)
    return min(splits, key=lambda each: (each.slo_ratio, max(each.prefill_utilisation, each.decode_utilisation)))


def dominated_by(forecasts: Sequence[PlanForecast]) -> dict[str, str]:
    """Name of each plan that a split beats in every latency -> the name of the first that does. `shared` beats nobody:
    how two phases disturb each other without a border is the hardest thing to predict."""
    splits = [each for each in forecasts if each.plan.name != SHARED]
    found: dict[str, str] = {}
    for each in forecasts:
        better = next((other for other in splits if other.dominates(each)), None)
        if better is not None:
            found[each.plan.name] = better.plan.name
    return found


def _check(load: Load, slo: SloClass, limits: Limits) -> None:
    for name, mean, square in (
        ("prompt_tokens", load.prompt_tokens, load.prompt_tokens_square),
        ("output_tokens", load.output_tokens, load.output_tokens_square),
    ):
        if square < mean * mean * (1 - 1e-9):
            problem = f"a mean square of {square:g} cannot go with a mean of {mean:g}"
            raise ConfigError(f"load: {name}_square", problem, f"give at least {mean * mean:g}")
    if slo.ttft_target_s(1) is None and slo.tpot_s is None:
        raise ConfigError("slo", "promises nothing, so no plan is better than another", "name a ttft or a tpot target")
    longest = load.prompt_tokens + load.output_tokens
    if 0 < limits.kv_tokens < longest:
        problem = f"{limits.kv_tokens} tokens of KV do not hold one request of {longest:.0f}"
        raise ConfigError("kv_tokens", problem, "give the pool's real size")


@dataclass(frozen=True, slots=True)
class _Point:
    """One of the lengths that stand for the distribution."""

    probability: float
    tokens: float


def _lognormal(mean: float, mean_square: float) -> list[_Point]:
    """Strata of the log-normal distribution with these moments, each at its own mean."""
    variance = math.log(max(mean_square / mean**2, 1.0))
    if variance < 1e-9:
        return [_Point(1.0, mean)]
    sigma = math.sqrt(variance)
    edges = (-math.inf, *_CUTS, math.inf)
    points = []
    for low, high in pairwise(edges):
        probability = _normal(high) - _normal(low)
        points.append(_Point(probability, mean * (_normal(high - sigma) - _normal(low - sigma)) / probability))
    return points


def _normal(z: float) -> float:
    return 0.5 * (1.0 + math.erf(z / math.sqrt(2.0)))


@dataclass(frozen=True, slots=True)
class _Forward:
    """Seconds of one prompt without contention: its own work, and the fixed cost of forwards it bears alone and in
    full ones."""

    probability: float
    tokens: float
    work_s: float
    alone_s: float
    full_s: float


def _forecast(
    model: LatencyModel, plan: Plan, load: Load, slo: SloClass, limits: Limits, prompts: Sequence[_Point]
) -> PlanForecast:
    forwards = _forwards(model, plan, limits, prompts)
    decode = _decode_costs(model, plan, load, limits)
    rho, of_prefill, of_decode = _balance(model, plan, load, forwards, decode)
    decode_utilisation = decode.utilisation(of_decode)
    tpot_s, tpot_p90_s = decode.tpot_s(of_decode, 0.0), decode.tpot_s(of_decode, _Z90)
    ratios = [] if slo.tpot_s is None else [tpot_p90_s / slo.tpot_s]
    ttft_p50_s = ttft_p90_s = math.inf
    if rho < 1.0 and decode_utilisation < 1.0:
        wait = _wait(forwards, load, rho, of_prefill)
        own = [(each.probability, (each.work_s + each.alone_s) * of_prefill, 1.0) for each in forwards]
        ttft_p50_s, ttft_p90_s = _quantile(own, wait, 0.5), _quantile(own, wait, ATTAINMENT)
        if slo.ttft_target_s(1) is not None:
            targets = [slo.ttft_target_s(max(1, round(each.tokens))) or 0.0 for each in forwards]
            due = [(p, seconds, target_s) for (p, seconds, _), target_s in zip(own, targets, strict=True)]
            ratios.append(_quantile(due, wait, ATTAINMENT))
    else:
        ratios.append(math.inf)
    return PlanForecast(plan, ttft_p50_s, ttft_p90_s, tpot_s, tpot_p90_s, rho, decode_utilisation, max(ratios))


def _balance(
    model: LatencyModel, plan: Plan, load: Load, forwards: Sequence[_Forward], decode: _DecodeCosts
) -> tuple[float, float, float]:
    """Prefill's utilisation and how much longer each phase takes because of the other: the least fixed point of a map
    that only grows, reached from below."""
    prefill_factor, decode_factor = model.contention(plan.prefill_units, plan.decode_units)
    alone_per_s = load.rate_per_s * sum(each.probability * _service_s(each, 0.0, 1.0) for each in forwards)
    full_per_s = load.rate_per_s * sum(each.probability * _service_s(each, 1.0, 1.0) for each in forwards)
    rho, of_prefill, of_decode = 0.0, 1.0, 1.0
    for _ in range(_ROUNDS):
        rho = _utilisation(alone_per_s * of_prefill, full_per_s * of_prefill)
        of_decode = _slowed(decode_factor, min(rho, 1.0))
        of_prefill = _slowed(prefill_factor, 1.0 - math.exp(-decode.rows(of_decode)))
    return rho, of_prefill, of_decode


def _slowed(factor: float, share: float) -> float:
    """Work that goes at 1 / factor of its speed for this share of the time takes so much longer."""
    return 1.0 / (1.0 - share + share / factor)


def _forwards(model: LatencyModel, plan: Plan, limits: Limits, prompts: Sequence[_Point]) -> list[_Forward]:
    """Chunks add up to the pairs of the whole prompt, so only the fixed cost counts them."""
    fixed_s = model.prefill_s(plan.prefill_units, 0, 0)
    forwards = []
    for point in prompts:
        n = point.tokens
        work_s = model.prefill_s(plan.prefill_units, n, n * n / 2) - fixed_s
        fullness = n / limits.max_num_batched_tokens
        forwards.append(
            _Forward(point.probability, n, work_s, fixed_s * max(1, math.ceil(fullness - 1e-9)), fixed_s * fullness)
        )
    return forwards


def _service_s(forward: _Forward, rho: float, stretch: float) -> float:
    shared = min(rho, 1.0)
    return (forward.work_s + (1.0 - shared) * forward.alone_s + shared * forward.full_s) * stretch


def _utilisation(alone: float, full: float) -> float:
    """rho = rate * E[S], given for forwards that nobody shares and for full ones; they fill as rho grows, so that
    rho = alone * (1 - rho) + full * rho. From 1 on every forward is full."""
    return full if full >= 1.0 else alone / (1.0 + alone - full)


@dataclass(frozen=True, slots=True)
class _Wait:
    """A prompt waits with this probability, then for an exponential time of this mean."""

    probability: float
    mean_s: float


def _wait(forwards: Sequence[_Forward], load: Load, rho: float, stretch: float) -> _Wait:
    if rho <= 0.0:
        return _Wait(0.0, 0.0)
    services = [(each.probability, _service_s(each, rho, stretch)) for each in forwards]
    mean_s = sum(p * s for p, s in services)
    square = sum(p * s * s for p, s in services)
    cs2 = square / mean_s**2 - 1.0
    bursts = (load.arrival_cv2 + cs2) / (1.0 + cs2)
    wait_s = load.rate_per_s * square / (2.0 * (1.0 - rho)) * bursts
    return _Wait(rho, wait_s / rho)


def _quantile(own: Sequence[tuple[float, float, float]], wait: _Wait, share: float) -> float:
    """The x for which (wait + service <= x * target) holds with probability `share`; own: (probability, service,
    target)."""

    def reached(x: float) -> float:
        total = 0.0
        for probability, service_s, target in own:
            spare_s = x * target - service_s
            if spare_s >= 0.0:
                late = wait.probability * math.exp(-spare_s / wait.mean_s) if wait.mean_s > 0.0 else 0.0
                total += probability * (1.0 - late)
        return total

    high = 1e-3
    while reached(high) < share:
        high *= 2.0
    low = 0.0
    for _ in range(50):
        middle = (low + high) / 2.0
        low, high = (middle, high) if reached(middle) < share else (low, middle)
    return high


@dataclass(frozen=True, slots=True)
class _DecodeCosts:
    """A step of n rows takes fixed_s + row_s * n; `tokens_per_s` are asked for and at most `max_rows` rows stand."""

    fixed_s: float
    row_s: float
    tokens_per_s: float
    max_rows: float

    def rows(self, slowed: float) -> float:
        """Mean number of rows, the Little balance of this file's head."""
        spare = 1.0 - self.tokens_per_s * self.row_s * slowed
        if spare <= 0.0:
            return self.max_rows
        return min(self.tokens_per_s * (self.fixed_s + self.row_s) * slowed / spare, self.max_rows)

    def tpot_s(self, slowed: float, z: float) -> float:
        """A step as a row sees it, with the number of other rows `z` standard deviations above its mean."""
        others = self.rows(slowed)
        seen = min(1.0 + others + z * math.sqrt(others), max(self.max_rows, 1.0))
        return (self.fixed_s + self.row_s * seen) * slowed

    def utilisation(self, slowed: float) -> float:
        most = max(self.max_rows, 1.0)
        return self.tokens_per_s * (self.fixed_s + self.row_s * most) * slowed / most


def _decode_costs(model: LatencyModel, plan: Plan, load: Load, limits: Limits) -> _DecodeCosts:
    """A row of m outputs steps m - 1 times and reads n + j tokens at its j-th, so that a standing row's context is
    E[n] + E[(m - 1)^2] / (2 E[m - 1]) on average."""
    steps = max(load.output_tokens - 1.0, 1e-9)
    steps_square = max(load.output_tokens_square - 2.0 * load.output_tokens + 1.0, steps * steps)
    context = load.prompt_tokens + steps_square / (2.0 * steps)
    fixed_s = model.decode_s(plan.decode_units, 0, 0)
    row_s = model.decode_s(plan.decode_units, context, 1) - fixed_s
    max_rows = float(limits.max_num_seqs)
    if limits.kv_tokens:
        max_rows = min(max_rows, max(limits.kv_tokens / context, 1.0))
    return _DecodeCosts(fixed_s, row_s, load.rate_per_s * steps, max_rows)
