"""Replicas behind a router: the same answer however many processes, and routers that do what their names say."""

from __future__ import annotations

from pathlib import Path

import pytest

from colocate.errors import ConfigError
from colocate.sim.fleet import simulate_fleet
from colocate.sim.many import Task, run_tasks
from colocate.sim.router import MAX_IMBALANCE, PrefixRouter, choose_router
from colocate.sim.run import simulate
from colocate.workload.prompts import lay_out
from colocate.workload.recipe import Recipe, cook
from colocate.workload.rows import WorkloadRow
from tests.sim.devices import exact

LOAD = cook(Recipe(rates=(40.0,), lengths=("lognormal:150,0.8/25,0.6",), duration_s=2.0), 7)
SETTINGS = exact(kv_tokens=4_000)


def test_processes_change_nothing(tmp_path: Path) -> None:
    alone = simulate_fleet(LOAD, SETTINGS, 3, jobs=1, event_log=tmp_path / "alone.log")
    spread = simulate_fleet(LOAD, SETTINGS, 3, jobs=2, event_log=tmp_path / "spread.log")
    assert alone == spread
    for index in range(3):
        alone_bytes = (tmp_path / f"alone-{index}.log").read_bytes()
        assert alone_bytes == (tmp_path / f"spread-{index}.log").read_bytes()
    assert [record.replica for record in alone.records] == [index % 3 for index in range(len(LOAD.rows))]
    assert [record.request_id for record in alone.records] == list(range(1, len(LOAD.rows) + 1))
    assert len(alone.states) == 3


def test_a_fleet_of_one_is_a_daemon() -> None:
    for router in ("round-robin", "least-loaded", "prefix"):
        assert simulate_fleet(LOAD, SETTINGS, 1, router).records == simulate(LOAD, SETTINGS).records


def test_replicas_share_the_load() -> None:
    one = simulate(LOAD, SETTINGS).summary
    three = simulate_fleet(LOAD, SETTINGS, 3, "least-loaded").summary
    assert (three.ttft_s.p90 or 0) < (one.ttft_s.p90 or 0)


def test_least_loaded_goes_to_the_emptiest() -> None:
    choose = choose_router("least-loaded", 3, [])
    assert choose(0, [2, 1, 1]) == 1
    assert choose(1, [0, 0, 0]) == 0


def test_prefix_follows_what_was_sent_until_its_replica_is_too_busy() -> None:
    prefixes = ((1, 2, 3), (1, 2, 4), (9,), (1, 2, 3), (1, 2, 3), (1, 7, 7))
    rows = [WorkloadRow(0.0, 50, 1, prefix, 16) for prefix in prefixes]
    router = PrefixRouter(lay_out(rows))
    assert router.choose(0, [0, 0]) == 0
    assert router.choose(1, [1, 0]) == 0  # has seen blocks 1 and 2
    assert router.choose(2, [2, 0]) == 1  # new to everybody: the emptiest
    assert router.choose(3, [MAX_IMBALANCE + 1, 0]) == 1  # too busy
    assert router.choose(4, [4, 3]) == 1  # both have seen it now
    assert router.choose(5, [4, 5]) == 0  # a shared first block alone is little: the emptiest
    assert router.choose(5, [5, 4]) == 0  # and by now all of it


def test_prefix_router_finds_more_cached_than_round_robin() -> None:
    recipe = Recipe(rates=(20.0,), lengths=("40/8",), pattern="same-document", duration_s=3.0)
    load = cook(recipe, 0)
    settings = exact(kv_tokens=20_000)
    by_prefix = simulate_fleet(load, settings, 4, "prefix").summary.cached_share
    assert by_prefix > simulate_fleet(load, settings, 4, "round-robin").summary.cached_share


def test_tasks_come_back_in_order() -> None:
    tasks = [Task(LOAD, exact(kv_tokens=4_000, seed=seed, truth_error=0.1)) for seed in range(3)]
    done: list[None] = []
    spread = run_tasks(tasks, 2, lambda: done.append(None))
    assert spread == run_tasks(tasks, 1)
    assert len(done) == 3
    assert len({result.summary.ttft_s for result in spread}) == 3


def test_what_is_no_fleet_is_refused() -> None:
    with pytest.raises(ConfigError, match="replicas"):
        simulate_fleet(LOAD, SETTINGS, 0)
    with pytest.raises(ConfigError, match="no router is named 'random'"):
        simulate_fleet(LOAD, SETTINGS, 2, "random")
