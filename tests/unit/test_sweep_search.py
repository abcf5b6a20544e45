"""Bisection for goodput, on curves whose crossing is known."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from colocate.bench.records import SweepArm
from colocate.bench.sweep.journal import RunResult, differences
from colocate.bench.sweep.search import Answer, Probe, Search, Tally, grid, next_step, seeds_of_part
from colocate.bench.sweep.wanted import made_runs, next_of, wanted_runs
from colocate.errors import ConfigError
from tests.sweep_world import falling, make_plan, outcome, play

SEARCH = Search(0.9, 900)


def _solve(search: Search, shares: list[float], per_part: int) -> tuple[Answer, dict[int, Tally]]:
    """Every part of a point gives its true share, rounded to requests."""
    seen: dict[int, Tally] = {}
    for _ in range(10_000):
        step = next_step(search, len(shares), lambda level: seen.get(level, Tally()))
        if isinstance(step, Answer):
            return step, seen
        before = seen.get(step.level, Tally())
        assert step.part == before.num_parts
        good = round(shares[step.level] * per_part)
        seen[step.level] = Tally(before.good + good, before.offered + per_part, before.num_parts + 1)
    raise AssertionError("the search does not end")


@given(
    st.lists(st.floats(0, 1), min_size=1, max_size=40).map(lambda shares: sorted(shares, reverse=True)),
    st.sampled_from([100, 300]),
    st.integers(100, 2000),
)
def test_it_ends_at_the_crossing(shares: list[float], per_part: int, max_requests: int) -> None:
    search = Search(0.9, max_requests)
    answer, seen = _solve(search, shares, per_part)

    keeps = [round(share * per_part) / per_part >= search.target for share in shares]
    assert answer.level == (sum(keeps) - 1 if any(keeps) else None)
    assert answer.status == ("below-lowest" if not any(keeps) else "at-least-highest" if all(keeps) else "found")
    assert len(seen) <= math.ceil(math.log2(len(shares) + 1))
    # Nobody gets more requests than the limit and one part, and whoever was resolved by its first part gets no second.
    assert all(tally.offered < max_requests + per_part for tally in seen.values())
    assert all(seen[level].offered >= max_requests for level in answer.unresolved)
    assert answer.is_resolved == (
        not {answer.level, (-1 if answer.level is None else answer.level) + 1} & {*answer.unresolved}
    )


def test_a_straddling_point_gets_more_requests_until_it_is_clear() -> None:
    # 93% of 100 straddles 90%: Wilson gives 86 to 97. Of 800 it does not: 91.0 to 94.6.
    answer, seen = _solve(Search(0.9, 2000), [0.93], 100)
    assert answer == Answer("at-least-highest", 0) and answer.is_resolved
    assert seen[0].num_parts > 1
    answer, seen = _solve(Search(0.9, 200), [0.93], 100)
    assert answer == Answer("at-least-highest", 0, (0,)) and not answer.is_resolved
    assert seen[0].offered == 200


def test_a_server_that_does_not_start_ends_the_search_of_its_arm() -> None:
    assert next_step(SEARCH, 9, lambda level: Tally(has_failed=True)) == Answer("failed", None)


def test_points_without_requests_do_not_hang_it() -> None:
    assert next_step(SEARCH, 1, lambda level: Tally(0, 0, 1)) == Answer("below-lowest", None, (0,))


@given(st.lists(st.floats(0.5, 9), min_size=1, max_size=3), st.floats(0.02, 2))
def test_all_arms_are_searched_in_rounds_and_a_cut_search_makes_the_same_runs(knees: list[float], width: float) -> None:
    names = tuple(f"arm{number}" for number in range(len(knees)))
    plan = make_plan(Path("unused"), names, rates=grid(0.5, 8, 1.2), search=SEARCH)
    curves = {name: falling(knee, width) for name, knee in zip(names, knees, strict=True)}

    runs = list(play(plan, curves))
    assert sorted(play(plan, curves, one_at_a_time=True)) == sorted(runs)
    done = {spec.run_id: outcome(spec, curves[spec.arm]) for spec in runs}
    assert sorted(made_runs(plan, lambda spec: done.get(spec.run_id))) == sorted(runs)
    for name in names:
        answer = next_of(plan, name, lambda spec: done.get(spec.run_id))
        assert isinstance(answer, Answer)
        shares = [round(curves[name](rate) * 100) / 100 for rate in plan.rates]
        assert (answer.level is not None) == (shares[0] >= 0.9)
        if answer.level is not None:
            assert shares[answer.level] >= 0.9 and all(share < 0.9 for share in shares[answer.level + 1 :])


def test_the_first_round_is_the_same_rate_for_all_arms_and_seeds() -> None:
    plan = make_plan(Path("unused"), ("a", "b"), rates=grid(1, 4, 1.1), search=SEARCH)
    batch = wanted_runs(plan, lambda spec: None)
    assert Counter((spec.arm, spec.seed) for spec in batch) == Counter((arm, seed) for arm in "ab" for seed in range(3))
    assert len({spec.level for spec in batch}) == 1
    assert [spec.seed for spec in batch] == [0, 0, 1, 1, 2, 2]


def test_a_run_that_failed_under_load_is_a_miss_and_one_without_a_server_ends_the_arm() -> None:
    plan = make_plan(Path("unused"), ("a",), rates=(1.0, 2.0, 4.0), seeds=(0,), search=SEARCH)

    def at(level: int, status: str, offered: int) -> Probe | Answer:
        def result(spec: object) -> RunResult | None:
            found = RunResult("r", status, 0, offered)  # type: ignore[arg-type]
            return found if spec.level == level and spec.seed == 0 else None  # type: ignore[attr-defined]

        return next_of(plan, "a", result)

    assert at(1, "failed", 100) == Probe(0, 0)
    assert at(1, "failed", 0) == Answer("failed", None)


def test_new_parts_have_new_seeds() -> None:
    assert seeds_of_part((0, 1, 2), 0) == (0, 1, 2)
    assert seeds_of_part((0, 1, 2), 2) == (6, 7, 8)
    assert seeds_of_part((5,), 3) == (8,)


@given(st.floats(0.01, 10), st.floats(1, 30), st.floats(1.02, 2))
def test_a_grid_ascends_from_low_to_high(low: float, ratio: float, step: float) -> None:
    rates = grid(low, low * ratio, step)
    assert rates[0] == pytest.approx(low, rel=1e-3) and rates[-1] <= low * ratio * 1.001
    assert list(rates) == sorted(set(rates)) and rates[-1] * step > low * ratio * 0.999


@pytest.mark.parametrize("bounds", [(0, 1, 1.1), (2, 1, 1.1), (1, 2, 1.0), (1, 2, 1.00001)])
def test_what_is_no_grid_is_refused(bounds: tuple[float, float, float]) -> None:
    with pytest.raises(ConfigError, match="--search"):
        grid(*bounds)


def test_a_search_keeps_no_server(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--keep-server"):
        make_plan(tmp_path, search=SEARCH, keep_server=True)


def test_a_search_sets_out_for_no_rate_and_another_grid_is_another_sweep(tmp_path: Path) -> None:
    made, other = (
        make_plan(tmp_path, rates=rates, search=SEARCH).manifest("now", {}, {}) for rates in ((1.0, 2.0), (1.0, 3.0))
    )
    assert made.rates == ()
    assert len(differences(made, other)) == 1 and "search" in differences(made, other)[0]
    assert differences(made, made) == []


def test_arms_that_would_share_a_folder_are_refused(tmp_path: Path) -> None:
    arms = (SweepArm("x:1", "peer", "x", ()), SweepArm("x-1", "peer", "x-1", ()))
    with pytest.raises(ConfigError, match="share a folder"):
        make_plan(tmp_path, arms)
