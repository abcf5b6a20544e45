"""Arms stand next to each other at every rate and seed, and none is always first."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from colocate.bench.sweep.order import RunSpec, by_server, every_run, interleaved
from tests.sweep_world import falling, make_plan, play

ARMS = ("static:p1d1", "shared", "chunked:64", "elastic", "slo")


@given(
    st.permutations(ARMS).map(lambda arms: arms[:3]),
    st.lists(st.floats(0.1, 50), min_size=1, max_size=4, unique=True).map(sorted),
    st.integers(1, 4),
    st.integers(0, 5),
)
def test_every_run_stands_once_and_in_blocks_of_all_arms(
    arms: list[str], rates: list[float], num_seeds: int, order_seed: int
) -> None:
    specs = every_run(arms, rates, range(num_seeds))
    ordered = interleaved(reversed(specs), order_seed)

    assert sorted(ordered) == sorted(specs) and len(set(ordered)) == len(arms) * len(rates) * num_seeds
    blocks = [ordered[start : start + len(arms)] for start in range(0, len(ordered), len(arms))]
    assert [{(spec.level, spec.seed) for spec in block} for block in blocks] == [
        {(level, seed)} for level in range(len(rates)) for seed in range(num_seeds)
    ]
    assert all({spec.arm for spec in block} == set(arms) for block in blocks)
    assert interleaved(specs, order_seed) == ordered


def test_no_arm_is_always_first() -> None:
    ordered = interleaved(every_run(ARMS, (1.0, 2.0, 3.0), range(10)), 0)
    firsts = [ordered[start].arm for start in range(0, len(ordered), len(ARMS))]
    assert set(firsts) == set(ARMS)
    assert ordered != interleaved(ordered, 1)


def test_a_kept_server_serves_all_rates_of_one_arm_and_seed() -> None:
    ordered = by_server(every_run(ARMS, (1.0, 2.0), (0, 1)), 0)
    pairs = [ordered[start : start + 2] for start in range(0, len(ordered), 2)]
    assert all(len({(spec.arm, spec.seed) for spec in pair}) == 1 for pair in pairs)
    assert [pair[0].seed for pair in pairs] == [0] * len(ARMS) + [1] * len(ARMS)
    assert [[spec.level for spec in pair] for pair in pairs] == [[0, 1]] * len(pairs)


def test_names_of_runs_are_folders_and_differ() -> None:
    specs = every_run(("peer:x/../y", "slo+discipline=edf"), (0.5, 2.25), (0, 1))
    names = {spec.run_id for spec in specs}
    assert len(names) == 8 and all("/" not in name for name in names)
    assert RunSpec("slo+discipline=edf", 0, 0.5, 1).run_id == "slo-discipline=edf@0.5@s1"


def test_a_list_of_rates_is_run_in_that_order(tmp_path: Path) -> None:
    plan = make_plan(tmp_path, ARMS)
    curves = dict.fromkeys(ARMS, falling(2.0, 0.5))
    whole = list(play(plan, curves))
    assert whole == interleaved(every_run(ARMS, plan.rates, plan.seeds), 0)
    assert list(play(plan, curves, one_at_a_time=True)) == whole


def test_prompts_differ_from_rate_to_rate_where_a_server_is_kept(tmp_path: Path) -> None:
    fresh, kept = make_plan(tmp_path), make_plan(tmp_path, keep_server=True)
    assert {fresh.run_seed(1, level) for level in range(3)} == {1}
    assert len({kept.run_seed(seed, level) for level in range(3) for seed in range(3)}) == 9
