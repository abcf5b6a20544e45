"""Policies under any view: always a plan that exists, always the same answer, and a border that guards can bound."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from colocate.core.latency import LatencyModel, roofline_profile
from colocate.core.plan import ALL_DECODE, ALL_PREFILL, SHARED, Plan, build_plan_table
from colocate.core.policy import Controller, LoadView
from colocate.core.policy.guards import MIN_DWELL_NS
from colocate.core.settings import ALL_GUARDS, EngineSettings

PROFILE = roofline_profile(
    device="any",
    model="any",
    units=64,
    granularity=8,
    num_layers=16,
    hidden_size=2048,
    num_parameters=2_000_000_000,
    weight_bytes=4_000_000_000,
    kv_bytes_per_token=65_536,
    flops_per_s=2e14,
    bytes_per_s=2e12,
    saturating_units=32,
)
TABLE = build_plan_table(64, 8)
SPLITS = [plan.name for plan in TABLE.plans if plan.is_split]

seconds = st.none() | st.floats(-1e3, 1e3)
guards = st.lists(st.sampled_from(ALL_GUARDS), unique=True).map(tuple)


@dataclass(frozen=True)
class Load:
    """A view without its time and plan."""

    gap_ns: int
    busy: tuple[bool, bool]
    rows: int
    context: int
    tokens: int
    pairs: float
    ttft_slack_s: float | None
    tpot_target_s: float | None
    tpot_slack_s: float | None
    blocked: bool
    error: float

    def view(self, now_ns: int, current: Plan) -> LoadView:
        return LoadView(
            now_ns,
            current,
            0,
            *self.busy,
            num_rows=self.rows,
            sum_context=self.context,
            prefill_tokens=self.tokens,
            prefill_pairs=self.pairs,
            ttft_slack_s=self.ttft_slack_s,
            tpot_target_s=self.tpot_target_s,
            tpot_slack_s=self.tpot_slack_s,
            admission_blocked=self.blocked,
            prediction_error=self.error,
        )


loads = st.builds(
    Load,
    gap_ns=st.sampled_from([0, 1, 500_000, 2_000_000, 30_000_000, 120_000_000, 5_000_000_000]),
    busy=st.sampled_from([(True, True), (True, True), (True, False), (False, True), (False, False)]),
    rows=st.integers(0, 1000),
    context=st.integers(0, 10**8),
    tokens=st.integers(0, 10**8),
    pairs=st.floats(0, 1e14),
    ttft_slack_s=seconds,
    tpot_target_s=st.none() | st.floats(0, 10),
    tpot_slack_s=seconds,
    blocked=st.booleans(),
    error=st.floats(0, 10),
)
streams = st.lists(loads, min_size=1, max_size=25)


def controller(word: str, guard_names: tuple[str, ...], candidates: tuple[str, ...] = ()) -> Controller:
    told = EngineSettings(
        num_blocks=64,
        block_size=16,
        max_num_seqs=64,
        max_num_batched_tokens=2048,
        max_queue=64,
        total_units=64,
        unit_granularity=8,
        plan=word,
        shadow="slo" if word == "on-demand" else "on-demand",
        guards=guard_names,
        candidates=candidates,
    )
    return Controller(told, TABLE, LatencyModel(PROFILE))


def run(held: Controller, stream: list[Load]) -> list[tuple[LoadView, Plan]]:
    now_ns, plan, answers = 0, held.first, []
    for load in stream:
        now_ns += load.gap_ns
        view = load.view(now_ns, plan)
        plan = held.decide(view)
        answers.append((view, plan))
    return answers


@pytest.mark.parametrize("word", ["slo", "on-demand", "elastic"])
@given(stream=streams, names=guards, candidates=st.lists(st.sampled_from([*SPLITS, SHARED]), unique=True))
def test_any_view_gets_a_candidate_or_a_loan(
    word: str, stream: list[Load], names: tuple[str, ...], candidates: list[str]
) -> None:
    held = controller(word, names, tuple(candidates))
    work = {*held.candidates, held.best_static} | ({SHARED} if word == "on-demand" else set())
    for view, plan in run(held, stream):
        if view.prefill_busy and view.decode_busy:
            assert plan.name in work
        elif view.prefill_busy or view.decode_busy:
            lent = ALL_PREFILL if view.prefill_busy else ALL_DECODE
            assert plan.name == lent or (word == "on-demand" and plan.name == SHARED)
        else:
            assert plan is view.current or plan.name == SHARED
    assert 0.0 <= held.shadow_record.agreement <= 1.0  # type: ignore[union-attr]


@given(stream=streams, names=guards, word=st.sampled_from(["slo", "on-demand"]))
def test_the_same_views_get_the_same_plans(stream: list[Load], names: tuple[str, ...], word: str) -> None:
    first, second = controller(word, names), controller(word, names)
    assert run(first, stream) == run(second, stream)
    assert first.guard_counts == second.guard_counts
    assert first.shadow_record == second.shadow_record


def moves_of_border(answers: list[tuple[LoadView, Plan]], first: Plan) -> list[tuple[int, Plan, Plan]]:
    """(when, from, to) of each move between plans that serve both phases."""
    border, moves = first, []
    for view, plan in answers:
        if plan.prefill_units and plan.decode_units and plan is not border:
            moves.append((view.now_ns, border, plan))
            border = plan
    return moves


@settings(max_examples=60)
@given(stream=streams, word=st.sampled_from(["slo", "on-demand"]))
def test_the_border_dwells(stream: list[Load], word: str) -> None:
    held = controller(word, ("hysteresis", "fallback", "dwell"))
    moves = moves_of_border(run(held, stream), held.first)
    assert all(late[0] - early[0] >= MIN_DWELL_NS for early, late in pairwise(moves))


@settings(max_examples=60)
@given(stream=streams)
def test_only_growth_of_decode_breaks_the_dwell_and_moves_are_bounded(stream: list[Load]) -> None:
    held = controller("slo", ALL_GUARDS)
    answers = run(held, stream)
    moves = moves_of_border(answers, held.first)
    for early, late in pairwise(moves):
        if late[0] - early[0] < MIN_DWELL_NS:
            assert late[2].decode_units > late[1].decode_units
    lasted_ns = answers[-1][0].now_ns
    num_dwells = 1 + lasted_ns // MIN_DWELL_NS
    assert len(moves) <= num_dwells * len(held.candidates)


@given(stream=streams, pinned=st.sampled_from(SPLITS))
def test_a_pin_holds_under_any_view(stream: list[Load], pinned: str) -> None:
    held = controller("slo", ALL_GUARDS)
    held.pin(TABLE.by_name(pinned))
    assert {plan.name for _, plan in run(held, stream)} == {pinned}
    held.pin(None)
    run(held, stream)
