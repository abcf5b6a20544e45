"""Restart budget: back-off, window, forgiveness. Time is an argument."""

from __future__ import annotations

from colocate.runtime.restart import RestartBudget


def test_the_first_restart_is_immediate_and_further_ones_wait_longer() -> None:
    budget = RestartBudget(max_restarts=4, window_s=60.0)
    assert [budget.on_death(float(now_s)) for now_s in range(5)] == [0.0, 0.25, 0.5, 1.0, None]


def test_deaths_leave_the_window() -> None:
    budget = RestartBudget(max_restarts=1, window_s=10.0)
    assert budget.on_death(0.0) == 0.0
    assert budget.on_death(10.5) == 0.0
    assert budget.on_death(11.0) is None


def test_deaths_that_a_poison_request_caused_do_not_count() -> None:
    budget = RestartBudget(max_restarts=3, window_s=60.0)
    for _ in range(5):
        for now_s in range(3):
            assert budget.on_death(float(now_s)) is not None
        budget.forgive()


def test_no_restart_allowed() -> None:
    assert RestartBudget(max_restarts=0, window_s=60.0).on_death(0.0) is None
