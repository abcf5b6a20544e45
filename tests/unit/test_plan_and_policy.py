"""Plan tables for any device, and the policies that choose among them."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from colocate.core.latency import LatencyModel
from colocate.core.plan import ALL_DECODE, ALL_PREFILL, SHARED, Plan, build_plan_table
from colocate.core.policy import Controller, LoadView, Policy, choose_policy
from colocate.core.settings import EngineSettings
from colocate.errors import ConfigError
from colocate.types import Role
from tests.sim.devices import DEVICE


def settings(total_units: int, mode: str = "colocated") -> EngineSettings:
    return EngineSettings(
        num_blocks=8,
        block_size=16,
        max_num_seqs=4,
        max_num_batched_tokens=64,
        max_queue=4,
        total_units=total_units,
        mode=mode,
    )


def choose(word: str, total_units: int = 2, mode: str = "colocated") -> Policy[Any]:
    return choose_policy(settings(total_units, mode), word, build_plan_table(total_units), None)


def view(prefill_busy: bool, decode_busy: bool, current: Plan) -> LoadView:
    return LoadView(0, current, 0, prefill_busy, decode_busy)


@given(st.integers(1, 160), st.sampled_from([1, 2, 8]))
def test_every_split_covers_the_device_once(total_units: int, granularity: int) -> None:
    table = build_plan_table(total_units, granularity)
    for plan in table.plans:
        decode = set(plan.units_of(Role.DECODE, total_units))
        prefill = set(plan.units_of(Role.PREFILL, total_units))
        assert decode | prefill == set(range(total_units))
        assert (decode & prefill == set()) == (plan.name != SHARED)
        assert len(decode) % granularity == 0 or plan.name in (SHARED, ALL_DECODE)
    names = [plan.name for plan in table.plans]
    assert len(set(names)) == len(names)
    assert table.default_split in names


def test_two_cores_have_one_split() -> None:
    table = build_plan_table(2)
    assert [plan.name for plan in table.plans] == ["p1d1", ALL_PREFILL, ALL_DECODE, SHARED]
    assert table.default_split == "p1d1"


def test_one_core_is_shared_whatever_is_asked() -> None:
    table = build_plan_table(1)
    assert [plan.name for plan in table.plans] == [SHARED]
    for word in ("elastic", "shared", "static:shared", "slo", "on-demand"):
        assert choose(word, 1).first.name == SHARED


def test_an_h200_splits_in_steps_of_eight() -> None:
    table = build_plan_table(132, 8)
    assert [plan.decode_units for plan in table.plans if plan.is_split] == list(range(8, 128, 8))
    assert table.by_name("p92d40").prefill_units == 92
    assert table.default_split == "p92d40"


@pytest.mark.parametrize(
    ("prefill_busy", "decode_busy", "expected"),
    [(True, True, "p1d1"), (True, False, ALL_PREFILL), (False, True, ALL_DECODE)],
)
def test_elastic_lends_idle_units(prefill_busy: bool, decode_busy: bool, expected: str) -> None:
    table = build_plan_table(2)
    now = view(prefill_busy, decode_busy, table.by_name(SHARED))
    assert choose("elastic").decide(None, now)[0].name == expected


def test_elastic_leaves_an_idle_device_alone() -> None:
    table = build_plan_table(2)
    for plan in table.plans:
        assert choose("elastic:p1d1").decide(None, view(False, False, plan))[0] is plan


@pytest.mark.parametrize("setting", ["static:p1d1", "p1d1", "static:shared", "shared"])
def test_static_never_moves(setting: str) -> None:
    choice = choose(setting)
    for busy in (True, False):
        assert choice.decide(None, view(busy, not busy, choice.first))[0] is choice.first


@pytest.mark.parametrize(
    ("mode", "setting", "problem"),
    [
        ("colocated", "p9d9", "no plan named 'p9d9'"),
        ("colocated", "static:all-prefill", "would never run decode"),
        ("colocated", "all-decode", "would never run prefill"),
        ("colocated", "elastic:all-decode", "needs a split"),
        ("shared", "p1d1", "runs no partition"),
        ("chunked", "slo", "runs no partition"),
    ],
)
def test_plans_that_cannot_serve_are_refused(mode: str, setting: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        choose(setting, mode=mode)


@pytest.mark.parametrize(
    ("mode", "word", "remedy"),
    [
        ("shared", "slo", "drop --shadow"),
        ("chunked", "on-demand", "drop --shadow"),
        ("colocated", "p9d9", "choose one of: p1d1"),
        ("colocated", "elastic:all-decode", "elastic:p1d1"),
        ("colocated", "static:all-prefill", "--shadow elastic"),
        ("colocated", "slo", "--latency-profile"),
    ],
)
def test_a_refusal_names_the_option_that_brought_the_word(mode: str, word: str, remedy: str) -> None:
    with pytest.raises(ConfigError) as refused:
        choose_policy(settings(2, mode), word, build_plan_table(2), None, "shadow")
    assert refused.value.where == "shadow" and remedy in refused.value.remedy
    assert "--plan" not in refused.value.remedy


def test_the_controller_tells_a_bad_shadow_from_a_bad_plan() -> None:
    for option, told in (
        ("shadow", replace(settings(2), shadow="p9d9")),
        ("plan", replace(settings(2), plan="p9d9")),
        ("plans", replace(settings(2), candidates=("p9d9",), plan="slo", latency=DEVICE)),
        ("best_static", replace(settings(2), best_static="p9d9")),
    ):
        with pytest.raises(ConfigError, match="no plan named 'p9d9'") as refused:
            Controller(told, build_plan_table(2), LatencyModel(DEVICE))
        assert refused.value.where == option


def test_a_device_that_cannot_be_cut_says_what_to_give() -> None:
    with pytest.raises(ConfigError, match="at least 1"):
        build_plan_table(0)


def test_elastic_starts_from_the_best_static_split_where_one_is_known() -> None:
    table = build_plan_table(4)
    told = replace(settings(4), best_static="p1d3")
    assert choose_policy(told, "elastic", table, None).first.name == "p1d3"
    assert choose_policy(told, "elastic:p2d2", table, None).first.name == "p2d2"
    assert choose_policy(replace(told, best_static=SHARED), "elastic", table, None).first.name == table.default_split
