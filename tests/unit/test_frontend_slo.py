"""Whether a request's own gaps between tokens kept its promise, counted as the tokens come."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from colocate.frontend.detokenizer import ByteLevelDetokenizer
from colocate.frontend.generation import Choice, Generation, TextOptions
from colocate.frontend.measures import RequestMeasures
from colocate.messages.client import OutputItem, Submit
from colocate.messages.sampling import SamplingParams
from colocate.messages.slo import SloClass
from colocate.telemetry.promises import Verdict
from colocate.types import FinishReason

MS = 1_000_000
STEADY = SloClass("steady", tpot_s=0.05, itl_s=0.05)


def verdict_of(arrivals: list[tuple[int, int]], slo: SloClass = STEADY, stops: tuple[str, ...] = ()) -> Verdict:
    """`arrivals`: how long after the one before (ms), and how many tokens came; the first is the first token's."""
    generation = Generation(RequestMeasures(), 1 << 20, wake_per_token=False)
    submit = Submit(1, [1], SamplingParams(max_tokens=10_000), 0)
    detokenizer = ByteLevelDetokenizer([bytes([byte]) for byte in range(256)])
    choice = Choice(generation, 0, submit, detokenizer, TextOptions(stops=stops), slo)
    generation.add(choice)
    now_ns = MS
    for index, (gap_ms, num_tokens) in enumerate(arrivals):
        now_ns += gap_ms * MS
        finish = FinishReason.LENGTH if index == len(arrivals) - 1 else None
        generation.deliver(choice, OutputItem(1, [97] * num_tokens, finish), now_ns)
    assert choice.verdict is not None
    return choice.verdict


@pytest.mark.parametrize(
    ("num_gaps", "num_late", "kept"),
    [(1, 0, True), (1, 1, False), (20, 1, False), (99, 1, False), (100, 1, True), (199, 2, False), (200, 2, True)],
)
def test_one_gap_in_a_hundred_may_be_late(num_gaps: int, num_late: int, kept: bool) -> None:
    gaps_ms = [51] * num_late + [10] * (num_gaps - num_late)
    assert verdict_of([(5, 1), *((gap_ms, 1) for gap_ms in gaps_ms)]).itl is kept


def test_a_stall_that_the_mean_hides() -> None:
    verdict = verdict_of([(5, 1)] + [(10, 1)] * 19 + [(600, 1)])
    assert (verdict.tpot, verdict.itl, verdict.both) == (True, False, False)


def test_a_gap_as_long_as_the_target_is_within_it() -> None:
    assert verdict_of([(5, 1), (50, 1)]).itl is True
    assert verdict_of([(5, 1), (51, 1)]).itl is False


def test_the_wait_for_the_first_token_is_no_gap() -> None:
    assert verdict_of([(9000, 1), (10, 1)]).itl is True


def test_tokens_that_come_together_have_one_gap_and_zeros() -> None:
    assert verdict_of([(5, 101)]).itl is True  # no gap but zeros
    assert verdict_of([(5, 1), (60, 100)]).itl is True  # one late gap of a hundred
    assert verdict_of([(5, 1), (60, 99)]).itl is False  # one of ninety-nine
    assert verdict_of([(5, 1), (60, 50), (60, 50)]).itl is False  # two of a hundred


def test_a_last_word_without_tokens_is_no_gap() -> None:
    assert verdict_of([(5, 1), (10, 1), (600, 0)]).itl is True


def test_an_answer_that_a_stop_string_ends_is_judged_by_what_came_until_then() -> None:
    late = [(5, 1), (60, 1), (10, 1)]
    assert verdict_of(late, stops=("aaa",)).itl is False
    assert verdict_of([*late[:1], *late[2:], (600, 1)], stops=("aa",)).itl is True


def test_without_a_target_nothing_is_said() -> None:
    assert verdict_of([(5, 1), (9000, 1)], SloClass("p", tpot_s=10.0)) == Verdict(None, True, None)


@given(st.lists(st.tuples(st.integers(0, 100), st.integers(1, 60)), min_size=1, max_size=40))
def test_the_count_is_the_nearest_rank_percentile_of_all_gaps(arrivals: list[tuple[int, int]]) -> None:
    gaps_ms = sorted(gap for gap_ms, num_tokens in arrivals for gap in [gap_ms] + [0] * (num_tokens - 1))
    gaps_ms.remove(arrivals[0][0])  # the first token's wait
    rank = len(gaps_ms) - len(gaps_ms) // 100
    kept = not gaps_ms or gaps_ms[rank - 1] <= 50
    assert verdict_of(arrivals).itl is kept
