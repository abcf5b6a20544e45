"""Synthetic loads: seeded, at the rate asked for, and sharing exactly the tokens that they say they share."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from colocate.errors import ConfigError
from colocate.workload.lengths import FixedLengths, LognormalLengths, parse_lengths
from colocate.workload.patterns import PATTERNS, PatternShape, prefix_pattern
from colocate.workload.prompts import drawn_tokens, lay_out, plain_tokens
from colocate.workload.recipe import Recipe, cook
from colocate.workload.rows import WorkloadRow, make_workload
from colocate.workload.scale import at_rate, at_speed, first_seconds
from colocate.workload.segments import Segment, phase_shifting, ramp, synthetic

SHORT = FixedLengths(10, 5)


def gaps_of(arrivals: str) -> list[float]:
    rows = synthetic("load", [Segment(2000, 5, SHORT)], seed=1, arrivals=arrivals).rows
    return [after.arrival_s - before.arrival_s for before, after in pairwise(rows)]


@pytest.mark.parametrize(
    ("arrivals", "cv"), [("constant", 0.0), ("poisson", 1.0), ("gamma:3", 3.0), ("gamma:0.5", 0.5)]
)
def test_gaps_have_the_mean_and_the_variation_asked_for(arrivals: str, cv: float) -> None:
    gaps = gaps_of(arrivals)
    assert statistics.fmean(gaps) == pytest.approx(0.2, rel=0.08)
    assert statistics.stdev(gaps) / statistics.fmean(gaps) == pytest.approx(cv, rel=0.1, abs=1e-9)


def test_phases_take_turns_with_their_own_rates_and_lengths() -> None:
    segments = phase_shifting((10, 2), (FixedLengths(1000, 1), FixedLengths(1, 100)), 20, 50)
    rows = synthetic("phases", segments, seed=3, arrivals="constant").rows
    heavy = Counter(int((row.arrival_s - 1e-6) // 10) for row in rows if row.prompt_tokens == 1000)
    light = Counter(int((row.arrival_s - 1e-6) // 10) for row in rows if row.prompt_tokens == 1)
    assert set(heavy) == {0, 2, 4}
    assert set(light) == {1, 3}
    assert all(abs(number - 100) <= 1 for number in heavy.values())
    assert all(abs(number - 20) <= 1 for number in light.values())


def test_a_ramp_arrives_when_its_integrated_rate_says() -> None:
    rows = synthetic("ramp", ramp(0, 10, SHORT, 40), seed=0, arrivals="constant").rows
    assert len(rows) == 200
    # With a rate of t / 2 the number of arrivals is t * t / 4.
    for number, row in enumerate(rows[:100], 1):
        assert row.arrival_s == pytest.approx(2 * math.sqrt(number))


@pytest.mark.parametrize("pattern", ["steady", *PATTERNS])
def test_the_same_seed_gives_the_same_load_and_another_one_does_not(pattern: str) -> None:
    recipe = Recipe(rates=(5.0,), lengths=("lognormal:50,0.5/20,0.5",), pattern=pattern, duration_s=20)
    assert cook(recipe, 1) == cook(recipe, 1)
    assert cook(recipe, 1) != cook(recipe, 2)


def tokens_of(rows: list[WorkloadRow]) -> list[list[int]]:
    return [plain_tokens(layout.pieces) for layout in lay_out(rows)]


def common(one: list[int], other: list[int]) -> int:
    return next(
        (place for place, pair in enumerate(zip(one, other, strict=False)) if pair[0] != pair[1]),
        min(len(one), len(other)),
    )


@given(st.lists(st.lists(st.integers(0, 2), max_size=4), min_size=2, max_size=5), st.integers(1, 40))
def test_prompts_agree_exactly_as_far_as_their_prefix_ids(prefixes: list[list[int]], own: int) -> None:
    block = 8
    rows = [WorkloadRow(0.0, len(ids) * block + own, 1, tuple(ids), block) for ids in prefixes]
    prompts = tokens_of(rows)
    for first, one in enumerate(prefixes):
        assert len(prompts[first]) == rows[first].prompt_tokens
        for second, other in enumerate(prefixes[:first]):
            assert common(prompts[first], prompts[second]) == block * common(one, other)


def test_a_turn_begins_with_the_turn_before_and_its_answer() -> None:
    rows = [
        WorkloadRow(0.0, 20, 6, prefix=(9,), block_tokens=8, session="a"),
        WorkloadRow(0.5, 20, 6, session="b"),
        WorkloadRow(1.0, 40, 3, session="a"),
        WorkloadRow(2.0, 50, 3, session="a"),
    ]
    layouts = lay_out(rows)
    first, _, second, third = (plain_tokens(layout.pieces) for layout in layouts)
    assert second[:26] == first + [layouts[0].answer] * 6
    assert third[:43] == second + [layouts[2].answer] * 3
    assert [len(tokens) for tokens in (second, third)] == [40, 50]


def test_drawn_tokens_agree_where_plain_ones_do_and_stay_in_the_vocabulary() -> None:
    rows = [WorkloadRow(0.0, 30, 1, (5,), 16), WorkloadRow(0.0, 40, 1, (5,), 16)]
    one, other = (drawn_tokens(layout.pieces, range(100, 200), seed=4) for layout in lay_out(rows))
    assert one[:16] == other[:16]
    assert one[16:30] != other[16:30]
    assert set(one) <= set(range(100, 200))
    assert len(other) == 40


def test_patterns_share_what_their_names_say() -> None:
    shape = PatternShape(shared_tokens=512, num_shared=2, num_uses=3, num_prefixes=4)

    def rows_of(pattern: str) -> list[WorkloadRow]:
        return list(prefix_pattern(pattern, 5, FixedLengths(32, 8), 12, seed=0, arrivals="constant", shape=shape).rows)

    assert len({row.prefix for row in rows_of("shared-schema")}) == 1
    uses = Counter(row.prefix for row in rows_of("same-document"))
    assert max(uses.values()) == 3
    assert sum(number == 3 for number in uses.values()) >= len(uses) - 2  # all but those still open
    pressure = [row.prefix for row in rows_of("eviction-pressure")]
    assert pressure[:4] == pressure[4:8]
    assert len(set(pressure)) == 4
    agent = [row.prefix for row in rows_of("agent-branching")]
    parents = Counter(prefix[:-1] for prefix in agent if len(prefix) > 2)
    assert sorted(parents.values())[1:] == [2] * (len(parents) - 1)  # the last step may be cut off by the end
    assert set(parents) <= set(agent)
    turns = Counter(row.session for row in rows_of("chat"))
    assert max(turns.values()) == 3


def test_speed_rate_and_duration_scale_a_load() -> None:
    load = make_workload("load", [WorkloadRow(float(second), 5, 5) for second in range(10)])
    assert load.rate == pytest.approx(1.0)
    assert at_speed(load, 2).rows[9].arrival_s == 4.5
    assert at_rate(load, 4).rate == pytest.approx(4.0)
    assert len(first_seconds(load, 3.5).rows) == 4


def test_a_load_lasts_as_long_as_asked_whatever_scales_it(tmp_path: Path) -> None:
    trace = tmp_path / "t.csv"  # 2 a second for 10 s, then 1 a second for 20 s
    times = [*(index / 2 for index in range(20)), *(10.0 + index for index in range(20))]
    trace.write_text("arrival_s,prompt_tokens,output_tokens\n" + "".join(f"{at},5,2\n" for at in times))
    fast = cook(Recipe(trace=trace, speed=4.0, duration_s=5.0), 0)
    assert fast.duration_s == 5.0
    assert [row.arrival_s * 4 for row in fast.rows] == [at for at in times if at < 20.0]
    mean = cook(Recipe(trace=trace, rates=(4.0,), duration_s=5.0), 0)  # the first twenty, however busy
    assert (mean.duration_s, mean.rate) == (5.0, 4.0)
    assert [row.arrival_s for row in mean.rows] == [at / 2 for at in times[:20]]
    short = cook(Recipe(trace=trace, rates=(4.0,), duration_s=50.0), 0)  # all there is
    assert (len(short.rows), short.duration_s) == (40, pytest.approx(10.0))
    made = cook(Recipe(rates=(3.0,), lengths=("5/5",), duration_s=20.0, speed=2.0, arrivals="constant"), 0)
    assert (made.duration_s, len(made.rows), made.rows[-1].arrival_s) == (20.0, 120, pytest.approx(20.0))


def test_lengths_in_words() -> None:
    assert parse_lengths("512/128") == FixedLengths(512, 128)
    assert parse_lengths("lognormal:512,0.8/128,0.6") == LognormalLengths(512, 0.8, 128, 0.6)
    for wrong in ("512", "0/5", "1.5/2", "lognormal:5/5", "nothing/here", "lognormal:nan,1/5,1"):
        with pytest.raises(ConfigError, match="lengths"):
            parse_lengths(wrong)


@pytest.mark.parametrize(
    ("recipe", "where"),
    [
        (Recipe(lengths=("5/5",)), "--rate"),
        (Recipe(rates=(0.0,), lengths=("5/5",)), "--rate"),
        (Recipe(rates=(1.0,)), "--lengths"),
        (Recipe(rates=(1.0,), lengths=("5/5",), pattern="waves"), "--pattern"),
        (Recipe(rates=(1.0, 2.0), lengths=("5/5",)), "--rate"),
        (Recipe(rates=(1.0,), lengths=("5/5",), duration_s=0.0), "--duration"),
        (Recipe(rates=(1.0,), lengths=("5/5",), arrivals="gamma:0"), "arrivals"),
        (Recipe(rates=(1.0,), lengths=("5/5",), arrivals="often"), "arrivals"),
        (Recipe(rates=(1.0,), lengths=("5/5",), speed=0.0), "--speed"),
        (Recipe(rates=(math.inf,), lengths=("5/5",)), "--rate"),  # else it would never be made
        (Recipe(rates=(1.0,), lengths=("5/5",), duration_s=math.inf), "--duration"),
        (Recipe(rates=(1.0,), lengths=("5/5",), speed=math.inf), "--speed"),
        (Recipe(trace=Path("t.csv"), rates=(1.0,), speed=2.0), "--speed"),
        (Recipe(rates=(1.0,), lengths=("5/5",), pattern="phase-shifting", period_s=math.nan), "--period"),
    ],
)
def test_a_recipe_that_makes_no_load_is_refused(recipe: Recipe, where: str) -> None:
    with pytest.raises(ConfigError) as refused:
        cook(recipe, 0)
    assert refused.value.where == where
    assert refused.value.remedy
