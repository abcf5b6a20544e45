"""A simulated run: exact where the arithmetic can be done by hand, deterministic, and legal at every event."""

from __future__ import annotations

from dataclasses import replace
from itertools import accumulate
from pathlib import Path

import msgspec
import pytest

from colocate.config.profile import NoiseProfile
from colocate.config.slo import SloClass
from colocate.errors import ConfigError
from colocate.runtime.replay import replay
from colocate.sim.records import itl_p99
from colocate.sim.run import simulate
from colocate.sim.settings import SimSettings
from colocate.sim.what_if import read_logged_run
from colocate.workload.recipe import Recipe, cook
from colocate.workload.rows import Workload, WorkloadRow, make_workload
from tests.sim.devices import DEVICE, exact, rows_of

NOISY = NoiseProfile(sigma=0.1, tail_probability=0.02, tail_factor=5.0)


def load(rate: float = 30.0, seconds: float = 2.0, lengths: str = "lognormal:150,0.8/25,0.6") -> Workload:
    return cook(Recipe(rates=(rate,), lengths=(lengths,), duration_s=seconds), 7)


def test_one_request_takes_what_the_formulas_and_the_messages_say() -> None:
    settings = exact(plan="static:p4d4", message_s=0.001, turn_s=0.0005, max_slice_ms=1e3)
    (record,) = simulate(rows_of((0.0, 100, 3)), settings).records
    forward_s = 100 * 1e-4 + 100 * 50 * 2.5e-8 + 2e-3
    step_s = [context * 1e-7 + 1e-4 + 4e-3 for context in (100, 101)]
    # To the engine, to the worker, the forward, back.
    assert record.first_token_s == pytest.approx(3 * 0.001 + forward_s, abs=1e-8)
    # To the worker, two steps with a turn of the loop between, back.
    decode_s = 0.001 + step_s[0] + 0.0005 + step_s[1] + 0.001
    assert record.finished_s == pytest.approx(3 * 0.001 + forward_s + decode_s, abs=1e-8)
    assert record.itl_p99_s == pytest.approx(0.001 + 0.001 + step_s[0], abs=1e-8)  # the longer gap is the hand-over's
    assert record.scheduled_s == pytest.approx(0.001)
    assert (record.output_tokens, record.cached_tokens, record.preemptions) == (3, 0, 0)


def test_slices_cost_a_turn_each_and_a_switch_waits_for_one() -> None:
    """100 tokens are 4 layers of about 3 ms: slices of at most 7 ms hold two."""
    whole = simulate(rows_of((0.0, 100, 1)), exact(plan="static:p4d4", turn_s=0.001, max_slice_ms=1e3)).records[0]
    sliced = simulate(rows_of((0.0, 100, 1)), exact(plan="static:p4d4", turn_s=0.001, max_slice_ms=7.0)).records[0]
    assert sliced.first_token_s == pytest.approx((whole.first_token_s or 0) + 0.001, abs=1e-8)


def test_chunked_runs_chunk_and_batch_in_one_forward() -> None:
    settings = exact(mode="chunked", message_s=0.001, turn_s=0.0, max_slice_ms=1e3)
    first, second = simulate(rows_of((0.0, 100, 50), (0.05, 80, 1)), settings).records
    assert first.first_token_s == pytest.approx(0.003 + 100 * 5e-5 + 5000 * 1.25e-8 + 2e-3, abs=1e-8)
    # The second prompt's forward carries the first one's row: longer than the prompt alone.
    alone = simulate(rows_of((0.05, 80, 1)), settings).records[0]
    assert (second.ttft_s or 0) > (alone.ttft_s or 0) + 5e-5


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"plan": "static:p4d4", "discipline": "sjf-window"},
        {"plan": "slo", "admission": "throttle", "discipline": "edf", "prediction_error": 0.3},
        {"plan": "on-demand", "shadow": "elastic"},
        {"mode": "shared"},
        {"mode": "chunked"},
        {"kv_tokens": 900, "plan": "slo"},  # preempts
        {"kv_tokens": 900, "mode": "chunked"},
    ],
    ids=str,
)
def test_same_seed_same_log_and_the_log_replays_with_every_invariant(
    tmp_path: Path, changes: dict[str, object]
) -> None:
    settings = exact(**{"kv_tokens": 4_000, "noise": NOISY, "truth_error": 0.1, **changes})
    workload = load(lengths="lognormal:150,0.8/25,0.6" if "kv_tokens" not in changes else "lognormal:60,0.5/60,0.3")
    first = simulate(workload, settings, event_log=tmp_path / "first.log")
    again = simulate(workload, settings, event_log=tmp_path / "again.log")
    assert (tmp_path / "first.log").read_bytes() == (tmp_path / "again.log").read_bytes()
    assert first == again
    assert first.records == simulate(workload, settings).records  # with a log or without
    result = replay(tmp_path / "first.log", check=True)
    assert result.difference is None
    assert result.num_events > len(workload.rows)
    assert [record.output_tokens for record in first.records] == [row.output_tokens for row in workload.rows]
    assert all(record.finished_s is not None for record in first.records)
    told = read_logged_run(tmp_path / "first.log").summary()
    assert (told.itl_p99_s.p99 or 0) == pytest.approx(first.summary.itl_p99_s.p99, rel=0.01)
    assert (first.states[0].num_preemptions > 0) == ("kv_tokens" in changes)
    assert first.records != simulate(workload, replace(settings, seed=1)).records


def test_a_worker_that_decodes_slower_makes_slower_tokens() -> None:
    """The device, not the engine's belief, sets the pace: belief bent or not."""
    plain = simulate(load(), exact(plan="static:p4d4")).summary
    slow = simulate(load(), exact(plan="static:p4d4", noise=NoiseProfile(decode_bias=1.5))).summary
    assert (slow.tpot_s.p50 or 0) > 1.3 * (plain.tpot_s.p50 or 0)
    one = rows_of((0.0, 100, 20))
    bent = simulate(one, exact(plan="static:p4d4", prediction_error=0.3))
    assert bent.records == simulate(one, exact(plan="static:p4d4")).records


def test_plans_change_what_the_device_does() -> None:
    """Long prompts: the more units prefill has, the earlier the first token."""
    workload = load(rate=4, lengths="800/10")
    many, few = (simulate(workload, exact(plan=f"static:{plan}")).summary.ttft_s.p50 for plan in ("p6d2", "p2d6"))
    assert (many or 0) < (few or 0)
    elastic = simulate(workload, exact(plan="elastic:p4d4"))
    assert elastic.num_switches > 0
    assert set(elastic.residency) >= {"p4d4", "all-prefill"}
    assert sum(elastic.residency.values()) == pytest.approx(1.0)


def test_turns_of_a_conversation_find_their_past_cached() -> None:
    turns = [WorkloadRow(0.0, 160, 32, session="a"), WorkloadRow(3.0, 400, 8, session="a")]
    first, second = simulate(make_workload("chat", turns), exact(block_size=16)).records
    assert first.cached_tokens == 0
    # 160 + 32 tokens of which the last answer token was never fed: 191 written, 11 whole blocks.
    assert second.cached_tokens == 176
    cold = simulate(make_workload("chat", turns), exact(prefix_caching=False)).records[1]
    assert cold.cached_tokens == 0
    assert (second.ttft_s or 0) < (cold.ttft_s or 0)


def test_an_urgent_prompt_goes_between_two_slices_of_a_long_one() -> None:
    classes = (SloClass("batch"), SloClass("urgent", ttft_s=0.04))
    rows = [WorkloadRow(0.0, 2000, 2, slo_class="batch"), WorkloadRow(0.02, 20, 2, slo_class="urgent")]
    settings = exact(slo_classes=classes, default_slo_class="batch", plan="static:p4d4", max_slice_ms=20.0)
    result = simulate(make_workload("urgent", rows), settings)
    assert result.states[0].set_aside_count == 1
    long, urgent = result.records
    assert (urgent.first_token_s or 0) < (long.first_token_s or 0)
    assert urgent.is_good(classes[1])


def test_what_does_not_end_in_time_is_unfinished_and_a_miss() -> None:
    result = simulate(rows_of((0.0, 10, 5), (0.1, 4000, 4000)), exact(drain_s=1.0))
    assert result.summary.num_finished == 1
    assert result.summary.num_good == 1
    assert result.summary.attainment == 0.5
    late = result.records[1]
    assert late.finished_s is None
    assert 0 < late.output_tokens < 4000


def test_what_is_refused_is_a_miss() -> None:
    result = simulate(rows_of((0.0, 10, 5), (0.1, 30_000, 5)), exact())
    assert [record.rejected for record in result.records] == [False, True]
    assert result.summary.num_rejected == 1
    assert result.summary.attainment == 0.5


@pytest.mark.parametrize(("num_gaps", "num_long", "expected"), [(99, 1, 9), (100, 1, 1), (200, 2, 1), (200, 3, 9)])
def test_one_gap_in_a_hundred_may_be_longer(num_gaps: int, num_long: int, expected: int) -> None:
    gaps = [1] * (num_gaps - num_long) + [9] * num_long
    assert itl_p99([0, *accumulate(gaps)]) == expected / 1e9
    assert itl_p99([5]) is None


def test_chunks_stall_a_stream_and_its_mean_does_not_tell() -> None:
    """A long prompt arrives in mid-answer: one worker makes everybody wait for its chunk, two do not."""
    slo = SloClass("smooth", tpot_s=0.05, itl_s=0.05)
    rows = rows_of((0.0, 10, 90), (0.2, 4000, 1))
    chunked = exact(mode="chunked", slo_classes=(slo,), max_num_batched_tokens=4096)
    stalled, split = (simulate(rows, each).records[0] for each in (chunked, exact(slo_classes=(slo,))))
    assert (stalled.tpot_s or 9) < 0.05 and (split.tpot_s or 9) < 0.05
    assert (stalled.itl_p99_s or 0) > 0.1 and (split.itl_p99_s or 9) < 0.05
    assert not stalled.is_good(slo) and split.is_good(slo)


def test_a_run_that_cannot_pass_any_more_ends_early() -> None:
    slo = SloClass("tight", ttft_s=1e-4)
    workload = load(seconds=4.0)
    whole = simulate(workload, exact(slo_classes=(slo,)))
    cut = simulate(workload, exact(slo_classes=(slo,)), most_misses=10)
    assert whole.summary.num_good == 0 == cut.summary.num_good
    assert cut.simulated_s < whole.simulated_s / 2
    assert simulate(workload, exact(slo_classes=(slo,)), most_misses=10_000).records == whole.records


@pytest.mark.parametrize(
    ("settings", "where"),
    [
        (exact(kv_tokens=8), "kv_tokens"),
        (exact(profile=msgspec.structs.replace(DEVICE, kv_tokens=0)), "kv_tokens"),
        (exact(latency_profile=msgspec.structs.replace(DEVICE, units=16)), "latency_profile"),
        (exact(plan="static:p3d5"), "plan"),
        (exact(plan="nonsense"), "plan"),
        (exact(mode="shared", plan="static:p4d4"), "plan"),
    ],
)
def test_settings_that_cannot_be_served_are_refused(settings: SimSettings, where: str) -> None:
    with pytest.raises(ConfigError) as refused:
        simulate(rows_of((0.0, 10, 5)), settings)
    assert refused.value.where == where
