"""Token throttling: the formula, the reserve that adapts, and that nothing waits for ever."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from colocate.config.serve import Admission as AdmissionName
from colocate.core.admission import (
    ADMISSIONS,
    MAX_RESERVE,
    MIN_RESERVE,
    RESERVE_HALF_LIFE_S,
    RESERVE_STEP,
    Greedy,
    Throttle,
    choose_admission,
)
from colocate.errors import ConfigError

HALF_LIFE_NS = int(RESERVE_HALF_LIFE_S * 1e9)


def test_every_configured_admission_can_be_chosen_and_no_other() -> None:
    assert set(AdmissionName.__args__) == set(ADMISSIONS)
    assert isinstance(choose_admission("greedy"), Greedy)
    assert isinstance(choose_admission("throttle"), Throttle)
    with pytest.raises(ConfigError, match=r"admission: there is no 'open' \(choose from: throttle, greedy\)"):
        choose_admission("open")


@pytest.mark.parametrize("kv_free", [0.0, 0.5, 1.0])
def test_greedy_always_allows_the_whole_forward(kv_free: float) -> None:
    greedy = Greedy()
    greedy.preempted(0)
    assert greedy.budget(512, 10_000, kv_free, 0, is_idle=False) == 512


@pytest.mark.parametrize(
    ("waiting_tokens", "kv_free", "expected"),
    [
        (100_000, 1.0, 2_000),  # the whole forward
        (100_000, 0.525, 1_000),  # half way between the reserve and an empty pool
        (100_000, 0.05, 0),  # at the reserve
        (100_000, 0.01, 0),  # below it
        (8_000, 1.0, 1_000),  # an eighth of what waits
        (8_000, 0.2875, 500),  # the lesser of the two
        (80, 1.0, 32),  # never less than minp for want of waiting tokens
    ],
)
def test_the_formula(waiting_tokens: int, kv_free: float, expected: int) -> None:
    throttle = Throttle(iter_p=8, min_p=32)
    assert throttle.budget(2_000, waiting_tokens, kv_free, 0, is_idle=False) == expected


def test_the_reserve_rises_with_each_preemption_up_to_its_bound() -> None:
    throttle = Throttle()
    assert throttle.reserve(0) == MIN_RESERVE
    throttle.preempted(0)
    throttle.preempted(0)
    assert throttle.reserve(0) == pytest.approx(MIN_RESERVE + 2 * RESERVE_STEP)
    for _ in range(1_000):
        throttle.preempted(0)
    assert throttle.reserve(0) == pytest.approx(MAX_RESERVE)


def test_the_reserve_halves_back_to_its_floor() -> None:
    throttle = Throttle()
    throttle.preempted(0)
    assert throttle.reserve(HALF_LIFE_NS) == pytest.approx(MIN_RESERVE + RESERVE_STEP / 2)
    throttle.preempted(HALF_LIFE_NS)
    assert throttle.reserve(2 * HALF_LIFE_NS) == pytest.approx(MIN_RESERVE + RESERVE_STEP * 0.75)
    assert throttle.reserve(2_000 * HALF_LIFE_NS) == MIN_RESERVE


def test_a_preemption_makes_prefill_hold_back() -> None:
    throttle = Throttle()
    before = throttle.budget(2_000, 100_000, 0.5, 0, is_idle=False)
    throttle.preempted(0)
    assert throttle.budget(2_000, 100_000, 0.5, 0, is_idle=False) < before


@given(
    most=st.integers(1, 16_384),
    waiting_tokens=st.integers(0, 1 << 20),
    kv_free=st.floats(0, 1),
    preemptions_ns=st.lists(st.integers(0, 10**12), max_size=40),
    is_idle=st.booleans(),
)
def test_a_budget_is_within_the_forward_and_never_nothing_when_idle(
    most: int, waiting_tokens: int, kv_free: float, preemptions_ns: list[int], is_idle: bool
) -> None:
    throttle = Throttle()
    now_ns = 0
    for now_ns in sorted(preemptions_ns):
        throttle.preempted(now_ns)
        assert MIN_RESERVE <= throttle.reserve(now_ns) <= MAX_RESERVE + 1e-9
    budget = throttle.budget(most, waiting_tokens, kv_free, now_ns, is_idle)
    assert 0 <= budget <= most
    if is_idle:
        assert budget >= min(most, waiting_tokens)


@given(kv_free=st.floats(0, 1), more=st.floats(0, 1), waiting_tokens=st.integers(0, 1 << 20))
def test_more_room_never_lowers_the_budget(kv_free: float, more: float, waiting_tokens: int) -> None:
    throttle = Throttle()
    budgets = [
        throttle.budget(4_096, waiting_tokens, free, 0, is_idle=False) for free in (kv_free, min(kv_free + more, 1.0))
    ]
    assert budgets[0] <= budgets[1]
