"""The decode loop, turn by turn: the standing batch, masks, ends, leaves, back-pressure, failures."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from colocate.messages.control import EngineAt, PlanApplied, WorkerHello
from colocate.messages.decode import DecodeUpdate, StepReport
from colocate.messages.prefill import BatchFailed
from colocate.types import FinishReason, Role
from colocate.worker.decode_loop import DecodeLoop
from colocate.worker.station import Turn
from tests.worker_harness import BLOCK_SIZE, Bench, decode_row


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench(Role.DECODE)
    bench.settle()
    yield bench
    bench.close()


def reports(messages: list[object]) -> list[StepReport]:
    return [message for message in messages if isinstance(message, StepReport)]


def tokens_of(messages: list[object], request_id: int) -> list[int]:
    return [row.token_id for report in reports(messages) for row in report.rows if row.request_id == request_id]


def loop_of(bench: Bench) -> DecodeLoop:
    assert isinstance(bench.loop, DecodeLoop)
    return bench.loop


def test_steps_without_being_asked_and_reports_each_step_once(bench: Bench) -> None:
    bench.say(DecodeUpdate(joins=[decode_row(1), decode_row(2)]))
    assert bench.turn(3) is Turn.WORKED
    found = reports(bench.heard())
    assert [report.step for report in found] == [1, 2, 3]
    assert all([row.request_id for row in report.rows] == [1, 2] for report in found)
    assert all(report.started_ns < report.finished_ns and report.plan_seq == 1 for report in found)


def test_a_row_draws_the_same_tokens_whatever_else_is_in_the_batch(bench: Bench) -> None:
    bench.say(DecodeUpdate(joins=[decode_row(7, max_tokens=9)]))
    alone = tokens_of(bench.settle(), 7)
    bench.say(DecodeUpdate(joins=[decode_row(3, max_tokens=5), decode_row(7, incarnation=2, max_tokens=9)]))
    bench.turn(2)
    bench.say(DecodeUpdate(joins=[decode_row(4, max_tokens=5)], leaves=[(3, 1)]))
    assert tokens_of(bench.settle(), 7) == alone
    assert len(alone) == 8 and len(set(alone)) > 4


def test_rows_end_by_length_stop_token_and_eos(bench: Bench) -> None:
    bench.say(DecodeUpdate(joins=[decode_row(1, max_tokens=12)]))
    tokens = tokens_of(bench.settle(), 1)
    stop = tokens[4]
    assert stop not in tokens[:4]
    bench.say(
        DecodeUpdate(
            joins=[
                decode_row(1, incarnation=2, max_tokens=12, stop_token_ids=(stop,)),
                decode_row(1, incarnation=3, max_tokens=12, stop_token_ids=(stop,), min_tokens=8),
            ]
        )
    )
    rows = [row for report in reports(bench.settle()) for row in report.rows]
    by_stop = [row for row in rows if row.incarnation == 2]
    by_length = [row for row in rows if row.incarnation == 3]
    assert [row.finish for row in by_stop] == [None] * 4 + [FinishReason.STOP]
    assert [row.finish for row in by_length] == [None] * 10 + [FinishReason.LENGTH]
    assert loop_of(bench).batch.num_rows == 0


def test_the_device_never_draws_an_eos_by_itself(bench: Bench) -> None:
    every_id = tuple(range(300, 4000))
    bench.say(DecodeUpdate(joins=[decode_row(1, max_tokens=400, eos_token_ids=every_id)]))
    assert all(token not in every_id for token in tokens_of(bench.settle(), 1))


def test_a_row_without_a_slot_is_masked_named_once_and_unmasked_by_a_grow(bench: Bench) -> None:
    bench.say(DecodeUpdate(joins=[decode_row(1, context_len=6, num_blocks=2), decode_row(2, max_tokens=20)]))
    messages = bench.settle()
    found = reports(messages)
    assert len(tokens_of(messages, 1)) == 2, "positions 6 and 7 of two blocks of four"
    assert [masked for report in found for masked in report.masked] == [(1, 1)]
    assert len(tokens_of(messages, 2)) == 19, "the others go on"
    bench.say(DecodeUpdate(grows=[(1, 1, [77])]))
    assert len(tokens_of(bench.settle(), 1)) == BLOCK_SIZE
    bench.say(DecodeUpdate(grows=[(1, 1, [78, 79])]))
    assert len(tokens_of(bench.settle(), 1)) == 2 * BLOCK_SIZE


def test_a_grow_in_time_is_never_reported_as_a_mask(bench: Bench) -> None:
    bench.say(DecodeUpdate(joins=[decode_row(1, context_len=6, num_blocks=2)]))
    bench.turn(2)
    bench.say(DecodeUpdate(grows=[(1, 1, [9])]))
    bench.turn()
    assert [report.masked for report in reports(bench.heard())] == [[], [], []]


def test_a_row_that_joins_without_a_slot_waits_masked(bench: Bench) -> None:
    bench.say(DecodeUpdate(joins=[decode_row(1, context_len=8, num_blocks=2)]))
    assert bench.turn() is Turn.WAITING
    (report,) = reports(bench.heard())
    assert (report.rows, report.masked) == ([], [(1, 1)])


def test_grows_leaves_joins_in_this_order(bench: Bench) -> None:
    bench.say(DecodeUpdate(joins=[decode_row(1, num_blocks=2, context_len=7)]))
    bench.turn()
    bench.say(
        DecodeUpdate(
            joins=[decode_row(1, incarnation=2, num_blocks=3, context_len=8)],
            leaves=[(1, 1)],
            grows=[(1, 1, [5]), (1, 2, [6])],
        )
    )
    messages = bench.settle()
    assert [row.incarnation for report in reports(messages) for row in report.rows] == [1, 2, 2, 2, 2]
    assert reports(messages)[1].left == [(1, 1)]
    assert loop_of(bench).batch.num_ignored == 1, "a grow cannot reach a row that joins after it"


def test_leaves_are_acknowledged_with_the_next_step_or_at_once_when_idle(bench: Bench) -> None:
    bench.say(DecodeUpdate(joins=[decode_row(1), decode_row(2)]))
    bench.turn()
    bench.heard()
    bench.say(DecodeUpdate(leaves=[(1, 1), (8, 8)]))
    bench.turn()
    (report,) = reports(bench.heard())
    assert report.left == [(1, 1), (8, 8)], "unknown rows too"
    assert [row.request_id for row in report.rows] == [2]
    bench.say(DecodeUpdate(leaves=[(2, 1)]))
    assert bench.turn() is Turn.WAITING
    (report,) = reports(bench.heard())
    assert (report.rows, report.left) == ([], [(2, 1)])
    assert bench.settle() == []


def test_a_leave_under_an_empty_share_is_acknowledged_too(bench: Bench) -> None:
    bench.say(DecodeUpdate(joins=[decode_row(1)]))
    bench.turn()
    bench.set_plan("all-prefill")
    assert bench.turn() is Turn.WAITING
    bench.heard()
    bench.say(DecodeUpdate(leaves=[(1, 1)]))
    assert [report.left for report in reports(bench.settle())] == [[(1, 1)]]


def test_a_masked_row_may_leave(bench: Bench) -> None:
    bench.say(DecodeUpdate(joins=[decode_row(1, context_len=8, num_blocks=2)]))
    bench.settle()
    bench.say(DecodeUpdate(leaves=[(1, 1)]))
    bench.say(DecodeUpdate(grows=[(1, 1, [9])]))
    assert [report.left for report in reports(bench.settle())] == [[(1, 1)]]
    assert loop_of(bench).batch.num_rows == 0


def test_pauses_while_the_engine_is_behind_and_loses_no_token() -> None:
    bench = Bench(Role.DECODE, high_water=4)
    bench.settle()
    bench.say(DecodeUpdate(joins=[decode_row(1, max_tokens=40)]))
    bench.turn(200)
    assert loop_of(bench).counts.steps == 5, "four on the way, one in hand"
    messages: list[object] = []
    for _ in range(100):
        messages += bench.heard()
        bench.turn()
    assert len(tokens_of(messages, 1)) == 39
    assert [report.step for report in reports(messages)] == list(range(1, 40))
    bench.close()


def test_a_failing_step_drops_its_rows_and_the_loop_lives_on() -> None:
    bench = Bench(Role.DECODE, faults=("decode:raise@token=13",))
    bench.settle()
    masked = decode_row(3, context_len=8, num_blocks=2)
    bench.say(DecodeUpdate(joins=[decode_row(1, last_token_id=13), decode_row(2), masked]))
    (failed, report) = bench.settle()
    assert isinstance(failed, BatchFailed) and isinstance(report, StepReport)
    assert (failed.role, failed.batch_id, failed.rows) == ("decode", -1, [(1, 1), (2, 1)])
    assert report.masked == [(3, 1)], "a masked row was not in that step"
    bench.say(DecodeUpdate(joins=[decode_row(2, incarnation=2, max_tokens=5)]))
    assert len(tokens_of(bench.settle(), 2)) == 4
    bench.close()


def test_a_new_engine_finds_no_row(bench: Bench) -> None:
    bench.say(DecodeUpdate(joins=[decode_row(1)]))
    bench.turn(3)
    bench.supervisor.send(EngineAt(2, "engine-2"))
    assert bench.turn() is Turn.WAITING
    hello, applied = bench.heard("engine-2")
    assert isinstance(hello, WorkerHello) and isinstance(applied, PlanApplied)
    bench.say(DecodeUpdate(joins=[decode_row(1, max_tokens=4)]), "engine-2")
    assert len(tokens_of(bench.settle("engine-2"), 1)) == 3


def test_a_plan_wake_is_acknowledged_while_idle(bench: Bench) -> None:
    bench.set_plan("p9d3")
    (applied,) = bench.settle()
    assert isinstance(applied, PlanApplied) and applied.seq == 2
    assert bench.partition.realised() == (0, 1, 2)
    assert bench.board.applied(Role.DECODE).seq == 2 and bench.board.held(Role.DECODE) == 3


def test_version_changes_with_rows_order_and_tables_only(bench: Bench) -> None:
    batch = loop_of(bench).batch
    bench.say(DecodeUpdate(joins=[decode_row(1), decode_row(2, num_blocks=2, context_len=6)]))
    bench.turn()
    seen = [batch.version]
    bench.turn()
    assert batch.version == seen[-1], "a step alone changes nothing"
    for update in (
        DecodeUpdate(grows=[(1, 1, [3])]),
        DecodeUpdate(grows=[(2, 1, [4])]),
        DecodeUpdate(leaves=[(1, 1)]),
        DecodeUpdate(joins=[decode_row(5)]),
    ):
        bench.say(update)
        bench.turn()
        assert batch.version > seen[-1]
        seen.append(batch.version)


def test_logprobs_where_asked(bench: Bench) -> None:
    bench.say(DecodeUpdate(joins=[decode_row(1, max_tokens=3, logprobs=2), decode_row(2, max_tokens=3)]))
    rows = [row for report in reports(bench.settle()) for row in report.rows]
    with_scores = [row.logprob for row in rows if row.request_id == 1]
    assert all(score is not None and len(score.top) == 2 and score.logprob <= 0 for score in with_scores)
    assert all(row.logprob is None for row in rows if row.request_id == 2)
