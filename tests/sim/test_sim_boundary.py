"""Simulated workers share the device by the rules of the real border, whatever order their boundaries come in."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from colocate.core.plan import SHARED, build_plan_table
from colocate.sim.boundary import SimBoard, SimBoundary
from colocate.types import Role

TABLE = build_plan_table(8, 2)


@given(st.lists(st.one_of(st.integers(0, len(TABLE.plans) - 1), st.sampled_from(["prefill", "decode"])), max_size=40))
def test_nobody_takes_what_the_other_holds(actions: list[int | str]) -> None:
    board = SimBoard(8)
    prefill, decode = (SimBoundary(role, board, lambda: None) for role in (Role.PREFILL, Role.DECODE))
    for action in [0, *actions]:
        before = prefill.num_units + decode.num_units
        if isinstance(action, int):
            board.seq += 1
            board.plan = TABLE.plans[action]
            continue
        (prefill if action == "prefill" else decode).check(board.seq)
        assert board.plan is not None
        if board.plan.name != SHARED:
            # Under `shared` both hold everything; from there shares only shrink until they fit.
            assert prefill.num_units + decode.num_units <= max(8, before)
    for _ in range(2):  # two boundaries each settle everything
        for each in (prefill, decode):
            each.check(board.seq)
    plan = board.plan
    assert plan is not None
    assert (prefill.num_units, decode.num_units) == (plan.prefill_units, plan.decode_units)
    assert prefill.is_settled()
    assert decode.is_settled()


def test_a_growing_share_waits_for_the_shrinking_one_and_is_rung() -> None:
    board = SimBoard(8)
    rung: list[str] = []
    prefill = SimBoundary(Role.PREFILL, board, lambda: rung.append("by prefill"))
    decode = SimBoundary(Role.DECODE, board, lambda: rung.append("by decode"))
    board.seq, board.plan = 1, TABLE.by_name("p6d2")
    assert prefill.check(5) is not None
    assert decode.check(5) is not None
    board.seq, board.plan = 2, TABLE.by_name("p2d6")
    assert decode.check(6) is None
    assert decode.num_units == 2
    applied = prefill.check(7)
    assert applied is not None
    assert (applied.role, applied.seq, applied.applied_ns) == (Role.PREFILL, 2, 7)
    assert rung == ["by prefill"]
    assert decode.check(8) is not None
    assert decode.num_units == 6
