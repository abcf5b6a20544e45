"""The hybrid loop, turn by turn: both phases in one forward, one channel, one acknowledgement for each phase."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest

from colocate.messages.control import EngineAt, PlanApplied, Shutdown, WorkerHello
from colocate.messages.decode import DecodeUpdate, StepReport
from colocate.messages.prefill import BatchFailed, PrefillBatch, PrefillCancel, PrefillCancelled, PrefillDone
from colocate.types import FinishReason, Role
from colocate.worker.at_once import AtOnce
from colocate.worker.executor import HybridResult, StandingRow
from colocate.worker.hybrid_loop import HybridLoop
from colocate.worker.station import Turn
from tests.worker_harness import BLOCK_SIZE, Bench, decode_row, prefill_row


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench(Role.HYBRID)
    bench.settle()
    yield bench
    bench.close()


def loop_of(bench: Bench) -> HybridLoop:
    assert isinstance(bench.loop, HybridLoop)
    return bench.loop


def watch(bench: Bench) -> list[tuple[int | None, list[int]]]:
    """Every forward from here on: the chunk's batch id and the standing rows' requests."""
    loop, forwards = loop_of(bench), []
    executor = loop.executor

    def step(batch: PrefillBatch | None, rows: Sequence[StandingRow], version: int) -> HybridResult:
        forwards.append((None if batch is None else batch.batch_id, [row.request_id for row in rows]))
        executor.launch(batch, rows, version)
        return executor.collect()

    loop.executor = AtOnce(step, executor.units_changed)
    return forwards


def test_greets_as_hybrid_and_acknowledges_the_plan_for_both_phases() -> None:
    bench = Bench(Role.HYBRID)
    bench.turn()
    hello, first, second = bench.heard()
    assert isinstance(hello, WorkerHello) and hello.role is Role.HYBRID
    assert isinstance(first, PlanApplied) and isinstance(second, PlanApplied)
    assert [(each.role, each.seq) for each in (first, second)] == [(Role.PREFILL, 1), (Role.DECODE, 1)]
    assert first.applied_ns == second.applied_ns
    assert bench.partition.realised() == tuple(range(12)), "every unit"
    assert bench.board.applied(Role.HYBRID).seq == 1
    bench.close()


def test_a_chunk_and_every_standing_row_go_in_one_forward(bench: Bench) -> None:
    forwards = watch(bench)
    bench.say(DecodeUpdate(joins=[decode_row(1), decode_row(2)]))
    bench.turn(2)
    bench.say(PrefillBatch(1, [prefill_row(3, 30)]))
    bench.say(PrefillBatch(2, [prefill_row(4), prefill_row(5)]))
    bench.turn(3)
    assert forwards == [(None, [1, 2]), (None, [1, 2]), (1, [1, 2]), (2, [1, 2]), (None, [1, 2])]
    reports = [message for message in bench.heard() if isinstance(message, StepReport | PrefillDone)]
    assert [type(each).__name__ for each in reports] == ["StepReport"] * 3 + ["PrefillDone", "StepReport"] + [
        "PrefillDone",
        "StepReport",
    ]
    step, done = reports[2], reports[3]
    assert isinstance(step, StepReport) and isinstance(done, PrefillDone)
    assert (step.started_ns, step.finished_ns) == (done.started_ns, done.finished_ns), "it was one forward"
    assert done.plan_seq == 1 and [row.request_id for row in done.rows] == [3]


def test_tokens_are_those_of_the_two_workers(bench: Bench) -> None:
    alone, decode = Bench(Role.PREFILL), Bench(Role.DECODE)
    alone.say(PrefillBatch(1, [prefill_row(1), prefill_row(2)]))
    decode.say(DecodeUpdate(joins=[decode_row(7, max_tokens=6)]))
    bench.say(PrefillBatch(1, [prefill_row(1), prefill_row(2)]))
    bench.say(DecodeUpdate(joins=[decode_row(7, max_tokens=6)]))
    wanted = [message for message in alone.settle() + decode.settle() if not isinstance(message, PlanApplied)]
    found = bench.settle()

    def tokens(messages: Sequence[object]) -> list[int | None]:
        steps = [row.token_id for each in messages if isinstance(each, StepReport) for row in each.rows]
        return [row.token_id for each in messages if isinstance(each, PrefillDone) for row in each.rows] + steps

    assert tokens(found) == tokens(wanted) and len(tokens(found)) == 2 + 5
    alone.close()
    decode.close()


def test_a_chunk_alone_reports_no_step(bench: Bench) -> None:
    bench.say(PrefillBatch(1, [prefill_row(1)]))
    assert [type(message) for message in bench.settle()] == [PrefillDone]


def test_a_leave_is_acknowledged_beside_a_chunk_and_without_any_work(bench: Bench) -> None:
    bench.say(DecodeUpdate(joins=[decode_row(1)]))
    bench.turn()
    bench.heard()
    bench.say(DecodeUpdate(leaves=[(1, 1)]))
    bench.say(PrefillBatch(1, [prefill_row(2)]))
    report, done = bench.settle()
    assert isinstance(report, StepReport) and (report.rows, report.left) == ([], [(1, 1)])
    assert isinstance(done, PrefillDone)
    bench.say(DecodeUpdate(leaves=[(9, 1)]))
    (report,) = bench.settle()
    assert isinstance(report, StepReport) and report.left == [(9, 1)]


def test_urgent_chunks_go_before_those_that_wait(bench: Bench) -> None:
    for batch_id in (1, 2):
        bench.say(PrefillBatch(batch_id, [prefill_row(batch_id)]))
    bench.say(PrefillBatch(3, [prefill_row(3)], urgent=True))
    done = [message.batch_id for message in bench.settle() if isinstance(message, PrefillDone)]
    assert done == [3, 1, 2]


def test_a_cancel_drops_rows_of_waiting_chunks_and_is_answered_at_once(bench: Bench) -> None:
    forwards = watch(bench)
    bench.say(PrefillBatch(1, [prefill_row(1)]))
    bench.say(PrefillBatch(2, [prefill_row(2), prefill_row(3)]))
    bench.say(PrefillBatch(3, [prefill_row(4)]))
    bench.turn()
    bench.heard()
    bench.say(PrefillCancel([(1, 1), (2, 1), (4, 1)]))
    bench.turn()
    cancelled, second = bench.heard()
    assert cancelled == PrefillCancelled([(1, 1), (2, 1), (4, 1)])
    assert isinstance(second, PrefillDone) and [row.request_id for row in second.rows] == [3]
    (third,) = bench.settle()
    assert isinstance(third, PrefillDone) and (third.batch_id, third.rows) == (3, [])
    assert [batch_id for batch_id, _ in forwards] == [1, 2], "nothing runs for rows that nobody wants"
    queue = loop_of(bench).queue
    assert (queue.num_cancelled, queue.num_unknown_cancels) == (2, 1)


def test_an_empty_chunk_does_not_keep_the_rows_waiting(bench: Bench) -> None:
    forwards = watch(bench)
    bench.say(DecodeUpdate(joins=[decode_row(1)]))
    bench.say(PrefillBatch(1, [prefill_row(2)]))
    bench.say(PrefillCancel([(2, 1)]))
    bench.turn()
    assert forwards == [(None, [1])]
    assert [type(message) for message in bench.heard()] == [PrefillCancelled, StepReport, PrefillDone]


def test_a_forward_that_raises_fails_the_chunk_and_the_rows_that_stood() -> None:
    bench = Bench(Role.HYBRID, faults=("prefill:raise@token=13",))
    bench.say(DecodeUpdate(joins=[decode_row(1), decode_row(2, context_len=BLOCK_SIZE, num_blocks=1)]))
    bench.say(PrefillBatch(1, [prefill_row(3, token_ids=[1, 13])]))
    bench.say(PrefillBatch(2, [prefill_row(4)]))
    bench.turn()
    failed = [message for message in bench.heard() if isinstance(message, BatchFailed)]
    assert [(each.role, each.rows, each.batch_id) for each in failed] == [
        ("decode", [(1, 1)], -1),
        ("prefill", [(3, 1)], 1),
    ]
    assert loop_of(bench).batch.num_rows == 1, "the masked row was in no forward"
    done = [message for message in bench.settle() if isinstance(message, PrefillDone)]
    assert [each.batch_id for each in done] == [2]
    bench.close()


def test_rows_end_and_full_rows_are_masked_as_in_the_decode_loop(bench: Bench) -> None:
    bench.say(DecodeUpdate(joins=[decode_row(1, max_tokens=3), decode_row(2, context_len=6, num_blocks=2)]))
    messages = bench.settle()
    reports = [message for message in messages if isinstance(message, StepReport)]
    assert [row.finish for report in reports for row in report.rows if row.request_id == 1] == [
        None,
        FinishReason.LENGTH,
    ]
    assert [report.masked for report in reports if report.masked] == [[(2, 1)]]
    bench.say(DecodeUpdate(grows=[(2, 1, [50])]))
    bench.turn()
    assert [row.request_id for row in bench.heard()[0].rows] == [2]  # type: ignore[attr-defined]


def test_a_new_engine_finds_neither_rows_nor_chunks(bench: Bench) -> None:
    bench.say(DecodeUpdate(joins=[decode_row(1)]))
    bench.turn()
    bench.say(PrefillBatch(1, [prefill_row(2)]))
    bench.supervisor.send(EngineAt(2, "engine-2"))
    bench.turn()
    hello, *applied = bench.heard("engine-2")
    assert isinstance(hello, WorkerHello) and hello.epoch == 2
    assert [each.role for each in applied] == [Role.PREFILL, Role.DECODE]  # type: ignore[attr-defined]
    assert bench.turn() is Turn.WAITING
    assert bench.heard("engine-2") == []


def test_progress_is_due_while_working_and_not_while_idle(bench: Bench) -> None:
    bench.say(PrefillBatch(1, [prefill_row(1)]))
    bench.turn()
    assert bench.board.progress_of(Role.HYBRID).deadline_ns >= bench.clock.now_ns + 9_000_000_000
    bench.board.ring(Role.HYBRID)  # so that resting does not wait
    bench.loop.station.rest()
    assert bench.board.progress_of(Role.HYBRID).deadline_ns == 0


def test_leaves_on_shutdown(bench: Bench) -> None:
    bench.supervisor.send(Shutdown())
    assert bench.turn() is Turn.LEFT
