"""The prefill loop, turn by turn: order, boundaries between slices, cancellation, failures, engines that change."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from colocate.messages.control import EngineAt, PlanApplied, Shutdown, WorkerHello
from colocate.messages.prefill import (
    BatchFailed,
    PrefillBatch,
    PrefillCancel,
    PrefillCancelled,
    PrefillDone,
    PrefillRowDone,
)
from colocate.types import Role
from colocate.worker.prefill_loop import PrefillLoop
from colocate.worker.station import Turn
from tests.worker_harness import Bench, prefill_row


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench(Role.PREFILL)
    yield bench
    bench.close()


def counts(bench: Bench) -> dict[str, int]:
    assert isinstance(bench.loop, PrefillLoop)
    loop_counts, queue = bench.loop.counts, bench.loop.queue
    found = {name: getattr(loop_counts, name) for name in loop_counts.__slots__}
    return found | {"cancelled": queue.num_cancelled, "unknown_cancels": queue.num_unknown_cancels}


def test_greets_then_acknowledges_the_plan_then_works_in_order(bench: Bench) -> None:
    bench.say(PrefillBatch(1, [prefill_row(1), prefill_row(2, 30)]))
    bench.say(PrefillBatch(2, [prefill_row(3)]))
    for _ in range(20):
        bench.turn()
    hello, applied, first, second = bench.heard()
    assert isinstance(hello, WorkerHello) and (hello.role, hello.epoch) == (Role.PREFILL, 1)
    assert isinstance(applied, PlanApplied) and applied.seq == 1
    assert isinstance(first, PrefillDone) and isinstance(second, PrefillDone)
    assert [row.request_id for row in first.rows] == [1, 2]
    assert [row.request_id for row in second.rows] == [3]
    assert first.started_ns < first.finished_ns < second.started_ns
    assert first.plan_seq == 1


def test_tokens_depend_on_the_request_alone(bench: Bench) -> None:
    bench.say(PrefillBatch(1, [prefill_row(1), prefill_row(2)]))
    bench.say(PrefillBatch(2, [prefill_row(2, 17)]))
    first, second = (message for message in bench.settle() if isinstance(message, PrefillDone))
    assert first.rows[1].token_id == second.rows[0].token_id != first.rows[0].token_id


def test_a_chunk_that_is_not_the_last_samples_nothing(bench: Bench) -> None:
    bench.say(PrefillBatch(1, [prefill_row(1, 8, sample=None, prompt_logprobs=0, next_token_id=9)]))
    done = bench.settle()[-1]
    assert isinstance(done, PrefillDone)
    assert done.rows[0].token_id is None and len(done.rows[0].prompt_logprobs) == 8


def test_cancel_between_slices_drops_rows_everywhere_and_is_answered_at_once(bench: Bench) -> None:
    bench.say(PrefillBatch(1, [prefill_row(1), prefill_row(2)]))
    bench.say(PrefillBatch(2, [prefill_row(2, 3, incarnation=1), prefill_row(3)]))
    bench.turn(2)  # two of four slices
    bench.heard()
    bench.say(PrefillCancel([(2, 1)]))
    bench.turn()
    assert bench.heard() == [PrefillCancelled([(2, 1)])]
    done = bench.settle()
    assert [[row.request_id for row in each.rows] for each in done if isinstance(each, PrefillDone)] == [[1], [3]]
    assert counts(bench)["cancelled"] == 1


def test_cancelling_a_whole_batch_still_answers_for_it_in_order(bench: Bench) -> None:
    bench.turn()
    bench.say(PrefillBatch(1, [prefill_row(1)]))
    bench.turn()
    bench.say(PrefillBatch(2, [prefill_row(2)]))
    bench.say(PrefillCancel([(1, 1), (2, 1)]))
    done = [message for message in bench.settle() if isinstance(message, PrefillDone)]
    assert [(each.batch_id, each.rows) for each in done] == [(1, []), (2, [])]
    assert counts(bench)["slices"] == 1, "nothing runs for rows that nobody wants"


def test_an_urgent_batch_goes_between_two_slices_and_the_other_resumes_at_its_layer(bench: Bench) -> None:
    bench.say(PrefillBatch(1, [prefill_row(1, 30)]))
    bench.say(PrefillBatch(2, [prefill_row(2, 30)]))
    bench.turn(3)  # three of four layers
    bench.say(PrefillBatch(3, [prefill_row(3)], urgent=True))
    bench.say(PrefillBatch(4, [prefill_row(4)], urgent=True))
    done = [message for message in bench.settle() if isinstance(message, PrefillDone)]
    assert [each.batch_id for each in done] == [3, 4, 1, 2]
    assert counts(bench)["slices"] == 4 * 4, "no layer ran twice"
    assert counts(bench)["set_aside"] == 1, "the second urgent batch found it aside already"
    long = next(each for each in done if each.batch_id == 1)
    assert long.started_ns < done[0].started_ns and long.finished_ns > done[1].finished_ns


def test_an_urgent_batch_goes_before_those_that_wait_and_sets_nothing_aside(bench: Bench) -> None:
    bench.say(PrefillBatch(1, [prefill_row(1)]))
    bench.say(PrefillBatch(2, [prefill_row(2)], urgent=True))
    done = [message.batch_id for message in bench.settle() if isinstance(message, PrefillDone)]
    assert done == [2, 1]
    assert counts(bench)["set_aside"] == 0


def test_each_urgent_batch_that_finds_a_forward_under_way_sets_it_aside(bench: Bench) -> None:
    bench.say(PrefillBatch(1, [prefill_row(1)]))
    bench.turn()
    for batch_id in (2, 3):
        bench.say(PrefillBatch(batch_id, [prefill_row(batch_id)], urgent=True))
        bench.turn(4 + 1)  # all of it, and a layer of the other
    done = [message.batch_id for message in bench.settle() if isinstance(message, PrefillDone)]
    assert done == [2, 3, 1]
    assert counts(bench)["set_aside"] == 2


def test_rows_of_the_forward_set_aside_are_cancelled_like_any(bench: Bench) -> None:
    bench.say(PrefillBatch(1, [prefill_row(1), prefill_row(2)]))
    bench.turn(2)
    bench.say(PrefillBatch(2, [prefill_row(3)], urgent=True))
    bench.turn()
    bench.heard()
    bench.say(PrefillCancel([(2, 1)]))
    bench.turn()
    assert bench.heard() == [PrefillCancelled([(2, 1)])], "at once, though its forward is not the one under way"
    done = [message for message in bench.settle() if isinstance(message, PrefillDone)]
    assert [[row.request_id for row in each.rows] for each in done] == [[3], [1]]


def test_cancelling_all_of_the_forward_set_aside_ends_it_without_another_slice(bench: Bench) -> None:
    bench.say(PrefillBatch(1, [prefill_row(1)]))
    bench.turn(2)
    bench.say(PrefillBatch(2, [prefill_row(3)], urgent=True))
    bench.say(PrefillCancel([(1, 1)]))
    done = [message for message in bench.settle() if isinstance(message, PrefillDone)]
    assert [(each.batch_id, len(each.rows)) for each in done] == [(2, 1), (1, 0)]
    assert counts(bench)["slices"] == 2 + 4


def test_an_urgent_batch_that_fails_leaves_the_one_set_aside_whole() -> None:
    bench = Bench(Role.PREFILL, faults=("prefill:raise@token=13",))
    bench.say(PrefillBatch(1, [prefill_row(1)]))
    bench.turn(2)
    bench.say(PrefillBatch(2, [prefill_row(2, token_ids=[1, 13])], urgent=True))
    messages = bench.settle()
    assert [message.batch_id for message in messages if isinstance(message, BatchFailed)] == [2]
    assert [message.batch_id for message in messages if isinstance(message, PrefillDone)] == [1]
    bench.close()


def test_a_new_engine_gets_nothing_of_the_forward_set_aside(bench: Bench) -> None:
    bench.say(PrefillBatch(1, [prefill_row(1)]))
    bench.turn(2)
    bench.say(PrefillBatch(2, [prefill_row(2)], urgent=True))
    bench.turn()
    bench.supervisor.send(EngineAt(2, "engine-2"))
    bench.turn()
    assert [type(message) for message in bench.settle("engine-2")] == [PlanApplied]


def test_the_plan_changes_while_a_forward_is_set_aside(bench: Bench) -> None:
    bench.say(PrefillBatch(1, [prefill_row(1)]))
    bench.turn(2)
    bench.say(PrefillBatch(2, [prefill_row(2)], urgent=True))
    bench.turn()
    bench.set_plan("all-decode")
    assert bench.turn(3) is Turn.WAITING
    bench.set_plan("p3d9")
    done = [message for message in bench.settle() if isinstance(message, PrefillDone)]
    assert [(each.batch_id, each.plan_seq) for each in done] == [(2, 3), (1, 3)]


class ScriptedForward:
    """A forward whose layers take what the script says, on the bench's clock."""

    def __init__(self, bench: Bench, layer_ns: int, num_layers: int, calls: list[int]) -> None:
        self._bench, self._layer_ns, self._layers_left, self._calls = bench, layer_ns, num_layers, calls

    def run_slice(self, max_layers: int = 1) -> bool:
        num_layers = min(max_layers, self._layers_left)
        self._calls.append(num_layers)
        self._bench.clock.now_ns += num_layers * self._layer_ns
        self._layers_left -= num_layers
        return self._layers_left == 0

    def wait_slice(self) -> None:
        pass

    def drop_rows(self, rows: set[tuple[int, int]]) -> None:
        pass

    def abandon(self) -> None:
        pass

    def results(self) -> list[PrefillRowDone]:
        return []


class ScriptedExecutor:
    """Layers of so many milliseconds per thousand tokens; `calls` holds the layers of every slice."""

    num_layers = 24
    depth = 1

    def __init__(self, ms_per_layer: float) -> None:
        self.ms_per_layer = ms_per_layer
        self.calls: list[int] = []
        self.bench: Bench | None = None

    def begin(self, batch: PrefillBatch) -> ScriptedForward:
        assert self.bench is not None
        num_tokens = sum(len(row.token_ids) for row in batch.rows)
        layer_ns = int(self.ms_per_layer * 1e6 * num_tokens / 1000)
        return ScriptedForward(self.bench, layer_ns, self.num_layers, self.calls)

    def units_changed(self, num_units: int) -> None:
        pass


def test_slices_grow_to_what_the_bound_allows_and_a_short_prompt_is_one() -> None:
    executor = ScriptedExecutor(ms_per_layer=30.0)
    # the bench's clock adds 10 ms to every slice: 40 ms per layer of the first, and 6 layers fill 250 ms
    bench = executor.bench = Bench(Role.PREFILL, prefill=executor, max_slice_s=0.25)
    bench.say(PrefillBatch(1, [prefill_row(1, 1000)]))
    bench.settle()
    assert executor.calls[0] == 1, "nothing was measured yet"
    assert set(executor.calls[1:-1]) <= {6, 7} and sum(executor.calls) == 24
    executor.calls.clear()
    bench.say(PrefillBatch(2, [prefill_row(2, 10)]))
    bench.say(PrefillBatch(3, [prefill_row(3, 10)]))
    bench.settle()
    assert executor.calls[0] == 1 and executor.calls[1] == 23, "10.3 ms a layer measured: 23 left, all in one"
    assert executor.calls[2:] == [24]
    bench.close()


def test_an_urgent_prompt_waits_for_one_slice_of_the_bound_at_most() -> None:
    executor = ScriptedExecutor(ms_per_layer=30.0)
    bench = executor.bench = Bench(Role.PREFILL, prefill=executor, max_slice_s=0.1)
    bench.say(PrefillBatch(1, [prefill_row(1, 1000)]))
    bench.turn(4)
    before_ns = bench.clock.now_ns
    bench.turn()
    assert bench.clock.now_ns - before_ns <= 130_000_000, "a slice of at most 100 ms, and looks at the clock"
    bench.say(PrefillBatch(2, [prefill_row(2, 10)], urgent=True))
    done = [message.batch_id for message in bench.settle() if isinstance(message, PrefillDone)]
    assert done == [2, 1]
    bench.close()


def test_a_cancel_of_an_unknown_row_is_acknowledged_and_counted(bench: Bench) -> None:
    bench.say(PrefillCancel([(9, 9)]))
    assert PrefillCancelled([(9, 9)]) in bench.settle()
    assert counts(bench)["unknown_cancels"] == 1


def test_a_failing_forward_names_its_remaining_rows_and_the_loop_lives_on() -> None:
    bench = Bench(Role.PREFILL, faults=("prefill:raise@token=13",))
    bench.say(PrefillBatch(1, [prefill_row(1, token_ids=[1, 13]), prefill_row(2), prefill_row(3)]))
    bench.say(PrefillCancel([(3, 1)]))
    bench.say(PrefillBatch(2, [prefill_row(4)]))
    messages = bench.settle()
    failed = [message for message in messages if isinstance(message, BatchFailed)]
    assert [(each.role, each.rows, each.batch_id) for each in failed] == [("prefill", [(1, 1), (2, 1)], 1)]
    assert "InjectedFault" in failed[0].error
    assert isinstance(messages[-1], PrefillDone) and messages[-1].batch_id == 2
    bench.close()


def test_without_units_nothing_runs_until_they_are_back(bench: Bench) -> None:
    bench.set_plan("all-decode")
    bench.say(PrefillBatch(1, [prefill_row(1)]))
    assert bench.turn(5) is Turn.WAITING
    assert not any(isinstance(message, PrefillDone) for message in bench.heard())
    bench.set_plan("p8d4")
    applied, done = bench.settle()
    assert isinstance(applied, PlanApplied) and applied.seq == 3
    assert isinstance(done, PrefillDone) and done.plan_seq == 3


def test_the_plan_changes_between_slices(bench: Bench) -> None:
    bench.say(PrefillBatch(1, [prefill_row(1)]))
    bench.turn(2)
    assert bench.partition.realised() == tuple(range(4, 12))
    bench.heard()
    bench.set_plan("p3d9")
    bench.turn()
    assert bench.partition.realised() == (9, 10, 11)
    (applied,) = bench.heard()
    assert isinstance(applied, PlanApplied) and applied.seq == 2
    assert bench.settle()[-1].plan_seq == 2  # type: ignore[attr-defined]


def test_progress_is_due_while_working_and_not_while_idle(bench: Bench) -> None:
    bench.say(PrefillBatch(1, [prefill_row(1)]))
    bench.turn()
    first = bench.board.progress_of(Role.PREFILL)
    assert first.deadline_ns >= bench.clock.now_ns + 9_000_000_000, "the floor of ten seconds"
    bench.turn()
    assert bench.board.progress_of(Role.PREFILL).counter > first.counter
    bench.settle()
    bench.board.ring(Role.PREFILL)  # so that resting does not wait
    bench.loop.station.rest()
    assert bench.board.progress_of(Role.PREFILL).deadline_ns == 0


def test_a_new_engine_gets_a_greeting_and_the_plan_and_none_of_the_old_work(bench: Bench) -> None:
    bench.say(PrefillBatch(1, [prefill_row(1)]))
    bench.turn()
    bench.supervisor.send(EngineAt(2, "engine-2"))
    bench.turn()
    assert [type(message) for message in bench.settle("engine-2")] == [PlanApplied], "nothing of the old batch"
    bench.say(PrefillBatch(1, [prefill_row(5)]), "engine-2")
    bench.turn(10)
    (done,) = (message for message in bench.heard("engine-2") if isinstance(message, PrefillDone))
    assert [row.request_id for row in done.rows] == [5]


def test_greeting_of_a_new_engine_comes_first(bench: Bench) -> None:
    bench.settle()
    bench.supervisor.send(EngineAt(2, "engine-2"))
    bench.turn()
    hello, applied = bench.heard("engine-2")
    assert isinstance(hello, WorkerHello) and hello.epoch == 2
    assert isinstance(applied, PlanApplied) and applied.seq == 1


def test_the_same_engine_announced_again_changes_nothing(bench: Bench) -> None:
    bench.say(PrefillBatch(1, [prefill_row(1)]))
    bench.turn()
    bench.supervisor.send(EngineAt(1, "engine-1"))
    assert isinstance(bench.settle()[-1], PrefillDone)


def test_leaves_on_shutdown_and_when_the_supervisor_is_gone(bench: Bench) -> None:
    bench.supervisor.send(Shutdown())
    assert bench.turn() is Turn.LEFT
    other = Bench(Role.PREFILL)
    other.supervisor.close()
    assert other.turn() is Turn.LEFT
    other.close()


def test_answers_wait_for_an_engine_that_is_behind_and_none_is_lost() -> None:
    bench = Bench(Role.PREFILL, high_water=3)
    seen: list[int] = []
    for batch_id in range(3):
        bench.say(PrefillBatch(batch_id, [prefill_row(batch_id)]))
    for _ in range(60):
        bench.turn()  # the channel fills with the greeting, the plan and one answer
    for _ in range(60):
        seen += [message.batch_id for message in bench.heard() if isinstance(message, PrefillDone)]
        bench.turn()
    assert seen == [0, 1, 2]
    bench.close()
