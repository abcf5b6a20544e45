"""How far the simulator is from the live run, and whether both put the arms in the same order."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations

from msgspec import Struct

from colocate.sim.records import Summary
from live_study.pair import Live, Simulated

MEDIANS = ("ttft_p50_s", "tpot_p50_s")
FIGURES = ("ttft_p50_s", "ttft_p99_s", "tpot_p50_s", "tpot_p99_s", "itl_p99_s", "goodput")
TARGET = 0.10  # of the medians
# Two arms closer than this, live or simulated, have no order worth comparing.
CLOSE_ATTAINMENT = 0.02
CLOSE_MEDIAN = math.log(1.05)


class Figure(Struct, frozen=True):
    """`distance` is simulated / live - 1. `engine` is live on the engine's clock: without HTTP and client."""

    live: float
    simulated: float
    distance: float
    engine: float
    engine_distance: float
    spread: float  # of the simulator over seeds of the device's noise: (highest - lowest) / median


class Comparison(Struct, frozen=True):
    arm: str
    load: str
    seed: int
    num_requests: int
    figures: dict[str, Figure]  # without those that nobody has, e.g. nobody finished
    attainment: float
    attainment_simulated: float
    # Over seeds of the device's noise. One stall misses for everybody who decodes, so some arms jump from run to run.
    attainment_range: tuple[float, float]
    live: Live
    simulated: Simulated


class Order(Struct, frozen=True):
    """Pairs of arms. A pair is `close` where live or simulated values are within the tolerance of each other: neither
    order is then worth anything."""

    figure: str
    tolerance: float
    live: list[str]  # best first
    simulated: list[str]
    agreeing: int
    opposed: list[str]
    close: int


def figures_of(summary: Summary) -> dict[str, float | None]:
    return {
        "ttft_p50_s": summary.ttft_s.p50,
        "ttft_p99_s": summary.ttft_s.p99,
        "tpot_p50_s": summary.tpot_s.p50,
        "tpot_p99_s": summary.tpot_s.p99,
        "itl_p99_s": summary.itl_p99_s.p50,  # median over requests of each one's 99th percentile
        "goodput": summary.goodput,
    }


def compare(arm: str, load: str, seed: int, live: Live, simulated: Simulated) -> Comparison:
    client, engine = figures_of(live.client), figures_of(live.engine)
    # The log's own idea of how long the load was differs by a gap; good requests are per second of the same load.
    engine["goodput"] = live.engine.num_good / (live.client.num_offered / live.client.offered_rate)
    runs = [figures_of(summary) for summary in simulated.runs]
    figures: dict[str, Figure] = {}
    for name in FIGURES:
        known = [value for run in runs if (value := run[name]) is not None]
        here, inner = client[name], engine[name]
        if not known or not here or not inner:
            continue
        middle = statistics.median(known)
        figures[name] = Figure(
            here, middle, middle / here - 1, inner, middle / inner - 1, (max(known) - min(known)) / (middle or 1.0)
        )
    shares = [summary.attainment for summary in simulated.runs]
    return Comparison(
        arm,
        load,
        seed,
        live.client.num_offered,
        figures,
        live.client.attainment,
        statistics.median(shares),
        (min(shares), max(shares)),
        live,
        simulated,
    )


def _order(
    figure: str, live: Mapping[str, float], simulated: Mapping[str, float], tolerance: float, *, most_is_best: bool
) -> Order:
    agreeing, close, opposed = 0, 0, []
    for one, other in combinations(live, 2):
        here, there = live[one] - live[other], simulated[one] - simulated[other]
        if abs(here) <= tolerance or abs(there) <= tolerance:
            close += 1
        elif (here > 0) == (there > 0):
            agreeing += 1
        else:
            opposed.append(f"{one} / {other}")
    names = [sorted(values, key=lambda name: values[name], reverse=most_is_best) for values in (live, simulated)]
    return Order(figure, tolerance, names[0], names[1], agreeing, opposed, close)


def orders(comparisons: Sequence[Comparison]) -> list[Order]:
    """Of the arms of one load, values averaged over its seeds: by attainment, which orders them as goodput does since
    the load is the same, and by the medians of TTFT and TPOT (the logarithm, so that tolerance is relative)."""
    live = _by_arm(comparisons, lambda each: each.attainment)
    simulated = _by_arm(comparisons, lambda each: each.attainment_simulated)
    found = [_order("attainment", live, simulated, CLOSE_ATTAINMENT, most_is_best=True)]
    for name in MEDIANS:
        having = [each for each in comparisons if name in each.figures]
        live = _by_arm(having, lambda each, name=name: math.log(each.figures[name].live))
        simulated = _by_arm(having, lambda each, name=name: math.log(each.figures[name].simulated))
        found.append(_order(name, live, simulated, CLOSE_MEDIAN, most_is_best=False))
    return found


def _by_arm(comparisons: Sequence[Comparison], value: Callable[[Comparison], float]) -> dict[str, float]:
    values: dict[str, list[float]] = {}
    for each in comparisons:
        values.setdefault(each.arm, []).append(value(each))
    return {arm: statistics.fmean(found) for arm, found in values.items()}


def median_distances(comparisons: Sequence[Comparison]) -> dict[str, dict[str, float]]:
    """Of every figure, over arms and runs: mean and largest |distance|, and how many are within the target."""
    found: dict[str, dict[str, float]] = {}
    for name in FIGURES:
        distances = [abs(each.figures[name].distance) for each in comparisons if name in each.figures]
        inner = [abs(each.figures[name].engine_distance) for each in comparisons if name in each.figures]
        if distances:
            found[name] = {
                "num": len(distances),
                "mean": statistics.fmean(distances),
                "max": max(distances),
                "within_target": sum(distance <= TARGET for distance in distances) / len(distances),
                "engine_mean": statistics.fmean(inner),
                "engine_max": max(inner),
            }
    return found
