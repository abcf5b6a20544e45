"""What each policy chooses, the controller's early answers, pins, plan files and the shadow."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from colocate.core.latency import LatencyModel
from colocate.core.plan import ALL_DECODE, ALL_PREFILL, SHARED, build_plan_table
from colocate.core.policy import Controller, LoadView, choose_policy
from colocate.core.policy.choose import MAX_CANDIDATES, candidate_plans
from colocate.core.policy.forecast import Forecast
from colocate.core.policy.slo import Slo
from colocate.errors import ConfigError
from tests.unit.policy_plant import PROFILE, h200_settings, h200_table

TABLE = h200_table()
SECOND_NS = 1_000_000_000
BUSY = LoadView(
    now_ns=SECOND_NS,
    current=TABLE.by_name(TABLE.default_split),
    current_since_ns=0,
    prefill_busy=True,
    decode_busy=True,
    num_rows=64,
    sum_context=64_000,
    prefill_tokens=20_000,
    prefill_pairs=2e7,
    ttft_slack_s=0.3,
    tpot_target_s=0.05,
    tpot_slack_s=0.0,
)


def slo(*names: str, model: LatencyModel | None = None, static: str = TABLE.default_split) -> Slo:
    plans = candidate_plans(h200_settings(candidates=names), TABLE)
    return Slo(TABLE, Forecast(model or LatencyModel(PROFILE), plans, TABLE.by_name(static), 8192))


def controller(plan: str, model: LatencyModel | None = None, **settings: Any) -> Controller:
    return Controller(h200_settings(plan=plan, **settings), TABLE, model or LatencyModel(PROFILE))


def decode_units(policy: Slo, **changes: Any) -> int:
    return policy.split(replace(BUSY, **changes)).decode_units


# -- slo -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("slack_s", [None, -0.5, 0.0, 0.5, 5.0])
def test_slack_of_the_mean_does_not_buy_longer_gaps(slack_s: float | None) -> None:
    """A batch far ahead of its schedule may run slower on average, but no single gap may pass its own bound."""
    policy = slo()
    view = replace(BUSY, tpot_target_s=0.05, itl_target_s=0.02, tpot_slack_s=slack_s, ttft_slack_s=0.01)
    assert policy.forecast.step_s(policy.split(view), view) <= 0.02
    assert policy.forecast.allowed_s(replace(view, tpot_target_s=None)) < 0.02


def test_slo_gives_decode_the_smallest_share_that_meets_its_target_contention_included() -> None:
    model, policy = LatencyModel(PROFILE), slo()
    chosen = policy.split(BUSY)
    splits = [plan for plan in TABLE.plans if plan.is_split]
    meeting = [
        plan.decode_units
        for plan in splits
        if model.decode_s(plan.decode_units, BUSY.sum_context, BUSY.num_rows, plan.prefill_units) <= 0.9 * 0.05
    ]
    assert chosen.decode_units == min(meeting)


def test_slo_follows_the_batch_and_the_target() -> None:
    policy = slo()
    shares = [decode_units(policy, num_rows=rows, sum_context=1000 * rows) for rows in (8, 64, 128, 256)]
    assert shares == sorted(shares)
    assert shares[0] < shares[-1]
    assert decode_units(policy, tpot_target_s=0.02) > decode_units(policy, tpot_target_s=0.1)


def test_slo_spends_the_slack_of_the_batch_and_earns_it_back() -> None:
    policy = slo()
    assert decode_units(policy, tpot_slack_s=2.0) < decode_units(policy, tpot_slack_s=-1.0)
    assert decode_units(policy, tpot_slack_s=1e9) == decode_units(policy, tpot_slack_s=0.3)  # slowed, never starved
    assert decode_units(policy, tpot_slack_s=-1e9) == decode_units(policy)  # a lost row is not worked for alone


def test_slo_shares_out_the_slack_when_first_tokens_are_early() -> None:
    policy = slo()
    few = {"prefill_tokens": 2000, "prefill_pairs": 2e6}
    assert decode_units(policy, **few, ttft_slack_s=2.0) > decode_units(policy, **few, ttft_slack_s=0.01)
    assert decode_units(policy, **few, ttft_slack_s=None) == decode_units(policy, **few, ttft_slack_s=-1.0)


def test_slo_speeds_decode_up_to_the_knee_while_admission_is_blocked() -> None:
    policy = slo()
    model = LatencyModel(PROFILE)
    chosen = policy.split(replace(BUSY, admission_blocked=True))
    steps = {
        plan.name: model.decode_s(plan.decode_units, BUSY.sum_context, BUSY.num_rows, plan.prefill_units)
        for plan in TABLE.plans
        if plan.is_split
    }
    assert steps[chosen.name] <= 1.05 * min(steps.values())
    assert chosen.decode_units < 120


def test_slo_does_its_best_when_no_share_meets_the_target() -> None:
    assert decode_units(slo(), tpot_target_s=1e-4) == decode_units(slo(), admission_blocked=True)


def test_slo_treats_a_batch_without_a_target_as_the_static_plan_would() -> None:
    policy = slo(static="p76d56")
    assert decode_units(policy, tpot_target_s=None, tpot_slack_s=None, ttft_slack_s=None) == 56
    assert 8 < decode_units(policy, tpot_target_s=None, tpot_slack_s=None, ttft_slack_s=0.1) < 56


def test_slo_lends_the_units_of_an_idle_phase() -> None:
    policy = slo()
    assert policy.decide(None, replace(BUSY, decode_busy=False))[0].name == ALL_PREFILL
    assert policy.decide(None, replace(BUSY, prefill_busy=False))[0].name == ALL_DECODE
    idle = replace(BUSY, prefill_busy=False, decode_busy=False)
    assert policy.decide(None, idle)[0] is idle.current


def test_slo_takes_shared_only_where_it_is_a_candidate_and_better() -> None:
    assert slo("p68d64", "p60d72", static="p68d64").split(BUSY).name == "p68d64"
    assert slo("p68d64", "p60d72", SHARED, static="p68d64").split(BUSY).name == SHARED
    assert slo("p108d24", SHARED).split(BUSY).name == "p108d24"  # prefill is faster there


def test_slo_believes_the_online_correction() -> None:
    model = LatencyModel(PROFILE)
    policy = slo(model=model)
    before = policy.split(BUSY).decode_units
    for _ in range(200):
        model.observe("decode", 0.01, 0.03)
    assert policy.split(BUSY).decode_units > before


# -- on-demand -----------------------------------------------------------------------------------------------------


def test_on_demand_splits_for_a_predicted_miss_and_goes_back_with_hysteresis() -> None:
    policy = choose_policy(h200_settings(guards=()), "on-demand", TABLE, LatencyModel(PROFILE))
    model = LatencyModel(PROFILE)
    easy = replace(BUSY, prefill_tokens=500, prefill_pairs=1e5, ttft_slack_s=1.0)
    step_s = model.decode_s(132, easy.sum_context, easy.num_rows, 132)
    state = policy.start()
    plan, state = policy.decide(state, replace(easy, tpot_target_s=step_s / 0.9 * 1.02))
    assert plan.name == SHARED
    plan, state = policy.decide(state, replace(easy, tpot_target_s=step_s / 0.9 * 0.98))
    assert plan.is_split
    plan, state = policy.decide(state, replace(easy, tpot_target_s=step_s / 0.9 * 1.02))
    assert plan.is_split
    plan, state = policy.decide(state, replace(easy, tpot_target_s=step_s / 0.9 * 1.5))
    assert plan.name == SHARED
    plan, state = policy.decide(state, replace(easy, ttft_slack_s=0.001, tpot_target_s=0.1))
    assert plan.is_split  # prefill alone on most units is faster than disturbed on all


# -- words ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("word", ["slo", "on-demand"])
def test_a_predicting_policy_without_a_profile_is_refused(word: str) -> None:
    with pytest.raises(ConfigError, match="measure with colocate profile, or give --latency-profile"):
        choose_policy(h200_settings(), word, TABLE, None)


def test_candidates_limit_the_choice_and_the_static_plan_joins_them() -> None:
    held = controller("slo", candidates=("p100d32", "p60d72", ALL_DECODE), best_static="p84d48")
    assert held.candidates == ("p100d32", "p60d72")
    names = {held.decide(replace(BUSY, now_ns=i * SECOND_NS, num_rows=i * 8)).name for i in range(1, 40)}
    assert names <= {"p100d32", "p60d72", "p84d48"}
    assert len(names) > 1


@pytest.mark.parametrize(
    ("candidates", "best_static", "problem"),
    [
        (("p1d2",), "", "no plan named 'p1d2'"),
        ((ALL_DECODE,), "", "no plan of all-decode serves both phases"),
        ((), "all-prefill", "serves one phase only"),
    ],
)
def test_plans_that_cannot_serve_are_refused(candidates: tuple[str, ...], best_static: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        controller("slo", candidates=candidates, best_static=best_static)


def test_a_device_of_many_units_is_thinned_out() -> None:
    plans = candidate_plans(h200_settings(unit_granularity=1), build_plan_table(132))
    assert 8 < len(plans) <= MAX_CANDIDATES
    assert min(plan.decode_units for plan in plans) < 16
    assert max(plan.decode_units for plan in plans) > 116


# -- the controller ------------------------------------------------------------------------------------------------


def test_the_controller_answers_again_until_the_load_has_moved() -> None:
    held = controller("slo", guards=())
    first = held.decide(BUSY)
    heavy = {"num_rows": 256, "sum_context": 256_000, "tpot_target_s": 0.03}
    assert held.decide(replace(BUSY, now_ns=BUSY.now_ns + 1000, tpot_target_s=0.03)) is first  # not looked at
    moved = held.decide(replace(BUSY, now_ns=BUSY.now_ns + 2000, **heavy))
    assert moved.decode_units > first.decode_units
    assert held.decide(replace(BUSY, now_ns=BUSY.now_ns + 3000, decode_busy=False)).name == ALL_PREFILL
    later = replace(BUSY, now_ns=BUSY.now_ns + 1_100_000, decode_busy=False)
    assert held.decide(later).name == ALL_PREFILL


def test_a_pin_holds_until_it_is_released() -> None:
    held = controller("slo")
    held.decide(BUSY)
    held.pin(TABLE.by_name("p12d120"))
    assert held.decide(replace(BUSY, now_ns=BUSY.now_ns + 1)).name == "p12d120"
    assert held.decide(replace(BUSY, now_ns=BUSY.now_ns + SECOND_NS, decode_busy=False)).name == "p12d120"
    assert held.reason.startswith("pinned")
    with pytest.raises(ConfigError, match="would never run decode"):
        held.pin(TABLE.by_name(ALL_PREFILL))
    assert held.pinned is TABLE.by_name("p12d120")
    held.pin(None)
    assert held.decide(replace(BUSY, now_ns=BUSY.now_ns + SECOND_NS + 1)).name != "p12d120"
    assert "pinned" not in held.reason


def test_a_new_plan_file_takes_effect_or_changes_nothing() -> None:
    held = controller("slo", shadow="on-demand")
    held.decide(BUSY)
    for bad in (("p1d2",), (ALL_PREFILL,), ()):
        with pytest.raises(ConfigError):
            held.use_plans(bad, "")
        assert "p124d8" in held.candidates
    held.use_plans(("p20d112", "p12d120"), "p20d112")
    assert held.best_static == "p20d112"
    assert held.decide(replace(BUSY, now_ns=BUSY.now_ns + 1)).name in ("p20d112", "p12d120")


def test_the_reason_names_the_load_and_the_guard_that_changed_the_wish() -> None:
    held = controller("slo", best_static="p76d56", guards=("fallback",))
    held.decide(replace(BUSY, prediction_error=0.9))
    assert held.reason == "prefill busy, decode busy; 64 rows, 20000 prompt tokens; slo < fallback"
    assert held.guard_counts == {"fallback": 1}
    assert controller("elastic").guard_counts == {}


def test_the_shadow_counts_agreement_over_active_time() -> None:
    held = controller("static:p92d40", shadow="elastic:p92d40")
    assert held.shadow_record is not None
    busy = [(True, True), (True, False), (False, False), (False, False), (True, True)]
    for second, (prefill, decode) in enumerate(busy):
        plan = held.decide(replace(BUSY, now_ns=second * SECOND_NS, prefill_busy=prefill, decode_busy=decode))
        assert plan.name == "p92d40"
    record = held.shadow_record
    # one second of two busy phases agreed, one of prefill alone did not, two idle ones do not count
    assert (record.policy, record.wants, record.switch_count) == ("elastic:p92d40", "p92d40", 2)
    assert record.agreement == pytest.approx(0.5)
