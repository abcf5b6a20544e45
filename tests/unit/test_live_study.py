"""What the live benchmarks rest on: slow motion changes nothing but the clock, and both sides are told the same."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from colocate.config.slo import SloClass, parse_slo_classes
from colocate.sim.records import RequestRecord, summarise
from colocate.sim.run import simulate
from colocate.sim.settings import engine_settings
from colocate.workload.lengths import FixedLengths
from colocate.workload.segments import Segment, synthetic
from tests.sim.devices import CHAT, DEVICE, exact

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from live_study.compare import Comparison, compare, orders
from live_study.pair import Live, Simulated, check_told_alike, serve_flags, slo_text
from live_study.slowed import slowed_profile, slowed_slo, slowed_workload

WORKLOAD = synthetic("steady", [Segment(10.0, 8.0, FixedLengths(400, 20))], seed=0)


def test_slow_motion_changes_only_the_clock() -> None:
    usual = exact(plan="static:p4d4", kv_tokens=20_000, message_s=2e-4, turn_s=1e-4)
    slow = replace(
        usual,
        profile=slowed_profile(DEVICE, 4.0),
        slo_classes=(slowed_slo(CHAT, 4.0),),
        max_slice_ms=usual.max_slice_ms * 4,
        message_s=8e-4,
        turn_s=4e-4,
    )

    fast_run, slow_run = simulate(WORKLOAD, usual).summary, simulate(slowed_workload(WORKLOAD, 4.0), slow).summary

    assert slow_run.attainment == fast_run.attainment
    assert 0 < fast_run.attainment <= 1
    for name in ("ttft_s", "tpot_s", "itl_p99_s", "e2e_s"):
        fast_values, slow_values = msgspec.structs.astuple(getattr(fast_run, name)), getattr(slow_run, name)
        assert msgspec.structs.astuple(slow_values) == pytest.approx([4 * value for value in fast_values], rel=1e-3)


@pytest.mark.parametrize(
    "slo",
    [
        SloClass("chat", ttft_s=0.5, tpot_s=0.05, itl_s=0.1),
        SloClass("long", ttft_per_token_s=0.0015 * 3, tpot_s=0.2),
        SloClass("batch"),
    ],
)
def test_a_promise_survives_the_command_line(slo: SloClass) -> None:
    assert parse_slo_classes([slo_text(slo)], "slo_class") == (slo,)


def test_a_plan_is_named_only_where_there_is_a_choice() -> None:
    assert serve_flags(exact(plan="slo"))[:2] == ["--plan", "slo"]
    assert serve_flags(exact(mode="chunked"))[:2] == ["--mode", "chunked"]


def test_engines_that_were_told_different_things_are_refused() -> None:
    told = engine_settings(exact())

    check_told_alike(told, engine_settings(exact()))
    with pytest.raises(RuntimeError, match="max_num_seqs: 32 live, 31 simulated"):
        check_told_alike(told, engine_settings(exact(max_num_seqs=31)))


def _comparison(arm: str, live: tuple[float, float], simulated: tuple[float, float]) -> Comparison:
    """Of ten requests: the share within 1 s, and the TTFT of those."""
    summaries = [
        summarise(
            [
                RequestRecord(
                    number, 0.0, 5, 2, "", first_token_s=ttft_s if number < 10 * share else 9.0,
                    finished_s=9.5, output_tokens=2, itl_p99_s=0.1,
                )
                for number in range(10)
            ],
            10.0,
            [SloClass("one", ttft_s=1.0)],
        )
        for share, ttft_s in (live, simulated)
    ]  # fmt: skip
    here, there = summaries
    seen = Live(here, here, here.ttft_s, 0, {}, 0, 0, {})
    return compare(arm, "load", 0, seen, Simulated([there], [0]))


def test_distance_and_order_of_arms() -> None:
    found = [
        _comparison("first", (0.9, 0.2), (0.8, 0.22)),
        _comparison("second", (0.7, 0.3), (0.9, 0.3)),
        _comparison("third", (0.6, 0.4), (0.6, 0.29)),
        _comparison("fourth", (0.6, 0.4), (0.6, 0.4)),
    ]

    assert found[0].figures["ttft_p50_s"].distance == pytest.approx(0.1)
    assert found[1].figures["goodput"].distance == pytest.approx(2 / 7)
    by_attainment, by_ttft, _ = orders(found)
    assert by_attainment.live[0] == "first" and by_attainment.simulated[0] == "second"
    assert by_attainment.opposed == ["first / second"]
    assert (by_attainment.agreeing, by_attainment.close) == (4, 1)
    assert by_ttft.opposed == []  # second and third are within five percent of each other in the simulator
    assert (by_ttft.agreeing, by_ttft.close) == (4, 2)
