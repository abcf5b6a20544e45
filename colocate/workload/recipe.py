"""A load in a few words, as command lines give it: a trace, or a pattern with rates and lengths."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from colocate.errors import ConfigError
from colocate.workload.lengths import LENGTHS_HELP, Lengths, parse_lengths
from colocate.workload.patterns import PATTERNS, PatternShape, prefix_pattern
from colocate.workload.read import Reading, read_trace, read_workload
from colocate.workload.rows import DEFAULT_BLOCK_TOKENS, Workload
from colocate.workload.scale import at_rate, at_speed, with_classes
from colocate.workload.segments import Segment, phase_shifting, ramp, synthetic

SHAPES = ("steady", "phase-shifting", "ramp", *PATTERNS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """With `trace` the rest only scales it; without, `rates` and `lengths` make a load of `pattern`.

    phase-shifting takes two rates and two lengths, ramp two rates; a single one stands for both. `duration_s` is the
    load's own, whatever scales it: of a trace at a rate so many requests are taken as make that rate.
    """

    trace: Path | None = None
    rates: tuple[float, ...] = ()
    lengths: tuple[str, ...] = ()
    pattern: str = "steady"
    arrivals: str = "poisson"
    duration_s: float | None = None  # None: the whole trace; of a pattern 60
    period_s: float = 60.0  # of phase-shifting: both kinds of load once
    speed: float | None = None
    block_tokens: int = DEFAULT_BLOCK_TOKENS
    shape: PatternShape = field(default_factory=PatternShape)
    classes: Mapping[str, float] = field(default_factory=dict)  # SLO classes by weight; none: as the trace has them


def cook(recipe: Recipe, seed: int) -> Workload:
    """The workload. A trace is the same for every seed but for its classes. Raises ConfigError."""
    check_numbers(recipe)
    workload = _from_trace(recipe) if recipe.trace is not None else _from_pattern(recipe, seed)
    return with_classes(workload, recipe.classes, seed) if recipe.classes else workload


def check_numbers(recipe: Recipe) -> None:
    """A load without an end, or all at once, is none. Raises ConfigError."""
    for flag, given in (
        ("--rate", recipe.rates),
        ("--speed", (recipe.speed,)),
        ("--duration", (recipe.duration_s,)),
        ("--period", (recipe.period_s,)),
    ):
        for value in given:
            if value is not None and not (math.isfinite(value) and value > 0):
                remedy = "give a number above 0; --concurrency offers as much as is answered"
                raise ConfigError(flag, f"cannot be {value:g}", remedy if flag == "--rate" else "give a number above 0")


def _from_trace(recipe: Recipe) -> Workload:
    assert recipe.trace is not None
    if recipe.lengths or recipe.pattern != "steady":
        raise ConfigError("--workload", "brings its own lengths and pattern", "drop --lengths and --pattern")
    if len(recipe.rates) > 1:
        raise ConfigError("--rate", "is given more than once for a trace", "give one mean rate")
    if recipe.rates and recipe.speed is not None:
        raise ConfigError("--speed", "is given beside --rate for a trace", "give one of them")
    # Only so much of a long trace is read as is needed.
    if not recipe.rates:
        speed = 1.0 if recipe.speed is None else recipe.speed
        until_s = math.inf if recipe.duration_s is None else recipe.duration_s * speed
        return at_speed(read_workload(recipe.trace, block_tokens=recipe.block_tokens, until_s=until_s), speed)
    rate, duration_s = recipe.rates[0], recipe.duration_s
    most_rows = None if duration_s is None else max(1, round(rate * duration_s))
    reading = Reading(block_tokens=recipe.block_tokens, most_rows=most_rows)
    workload = read_trace(recipe.trace, reading).workload
    if duration_s is None or len(workload.rows) != most_rows:
        return at_rate(workload, rate)
    return at_speed(workload, workload.duration_s / duration_s)


def _from_pattern(recipe: Recipe, seed: int) -> Workload:
    if not recipe.rates:
        raise ConfigError("--rate", "is missing", "give requests per second, or a trace with --workload")
    if not recipe.lengths:
        raise ConfigError("--lengths", "is missing", f"give {LENGTHS_HELP}; or a trace with --workload")
    speed = 1.0 if recipe.speed is None else recipe.speed
    duration_s = speed * (60.0 if recipe.duration_s is None else recipe.duration_s)
    lengths = [parse_lengths(text) for text in recipe.lengths]
    rates, wanted = recipe.rates, {"phase-shifting": (2, 2), "ramp": (2, 1)}.get(recipe.pattern, (1, 1))
    for flag, given, most in (("--rate", len(rates), wanted[0]), ("--lengths", len(lengths), wanted[1])):
        if given > most:
            raise ConfigError(flag, f"is given {given} times, pattern {recipe.pattern!r} takes {most}", "give fewer")
    if recipe.pattern in PATTERNS:
        made = prefix_pattern(
            recipe.pattern,
            rates[0],
            lengths[0],
            duration_s,
            seed=seed,
            arrivals=recipe.arrivals,
            shape=recipe.shape,
        )
    else:
        segments = _segments(recipe, lengths, duration_s)
        made = synthetic(recipe.pattern, segments, seed=seed, arrivals=recipe.arrivals)
    return at_speed(made, speed)


def _segments(recipe: Recipe, lengths: list[Lengths], duration_s: float) -> list[Segment]:
    first, last = recipe.rates[0], recipe.rates[-1]
    if recipe.pattern == "steady":
        return [Segment(duration_s, first, lengths[0])]
    if recipe.pattern == "ramp":
        return ramp(first, last, lengths[0], duration_s)
    if recipe.pattern == "phase-shifting":
        return phase_shifting((first, last), (lengths[0], lengths[-1]), recipe.period_s, duration_s)
    raise ConfigError("--pattern", f"no pattern is named {recipe.pattern!r}", f"choose one of: {', '.join(SHAPES)}")
