"""The standing batch on the device: any joins, leaves and grows arrive as they are, and nothing else is touched."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from colocate.device.cuda.backend import FakeBackend
from colocate.device.cuda.driver import ILLEGAL_ADDRESS, OUT_OF_MEMORY, CudaError, cuda_error
from colocate.device.cuda.fake import FakeDriver
from colocate.device.cuda.lane import InlineLane
from colocate.errors import InvariantError
from colocate.messages.sampling import SampleState, SamplingParams
from colocate.model.cuda.sampling import TABLE_ROW, table_row
from colocate.model.cuda.state import DecodeState, SamplingTable
from colocate.worker.cuda.deltas import Deltas, Seats, StateArena, table_width
from colocate.worker.cuda.graphs import DecodeGraphs, buckets_for
from colocate.worker.executor import StandingRow

MAX_ROWS, WIDTH, BLOCK_SIZE, VOCAB = 6, 5, 4, 500


def row(request_id: int, num_blocks: int, **params: object) -> StandingRow:
    sample = SampleState(SamplingParams(max_tokens=50 + request_id, seed=request_id, **params), 1)  # type: ignore[arg-type]
    blocks = [100 * request_id + block for block in range(num_blocks)]
    return StandingRow(request_id, 1, request_id + 7, request_id, blocks, sample, 1 + request_id)


class Bench:
    def __init__(self) -> None:
        self.arena = StateArena(MAX_ROWS, WIDTH, "cpu")
        self.backend = FakeBackend(FakeDriver())
        self.seats = Seats(self.backend, self.arena, BLOCK_SIZE, VOCAB)

    def step(self, rows: list[StandingRow]) -> list[int]:
        bucket = next(size for size in buckets_for(MAX_ROWS) if size >= len(rows))
        self.seats.seat(rows, bucket)
        self.seats.send(InlineLane())
        return self.arena.index[:bucket].tolist()

    def check(self, rows: list[StandingRow], index: list[int]) -> None:
        state = self.arena.state
        assert index[len(rows) :] == [MAX_ROWS] * (len(index) - len(rows)) and len(set(index[: len(rows)])) == len(rows)
        assert sorted(index[: len(rows)]) == state.active.nonzero().flatten().tolist()
        for each, slot in zip(rows, index, strict=False):
            assert state.token[slot] == each.last_token_id and state.context_len[slot] == each.context_len
            assert state.granted_len[slot] == len(each.block_table) * BLOCK_SIZE
            assert state.block_table[slot, : len(each.block_table)].tolist() == each.block_table
            expected = table_row(SampleState(each.sample.params, each.position), VOCAB)
            for name in TABLE_ROW.names or ():
                assert (getattr(state.sampling, name)[slot].numpy() == expected[name]).all(), name


def test_an_empty_arena_is_an_empty_state() -> None:
    arena, empty = StateArena(MAX_ROWS, WIDTH, "cpu"), DecodeState.allocate(MAX_ROWS, WIDTH, "cpu")
    for name in ("token", "context_len", "active", "granted_len", "block_table"):
        ours, theirs = getattr(arena.state, name), getattr(empty, name)
        assert ours.dtype == theirs.dtype and torch.equal(ours, theirs) and ours.is_contiguous()
        assert ours.data_ptr() % 16 == arena.words.data_ptr() % 16
    for name in SamplingTable.__dataclass_fields__:
        ours, theirs = getattr(arena.state.sampling, name), getattr(empty.sampling, name)
        assert ours.dtype == theirs.dtype and torch.equal(ours, theirs)
    assert arena.index.tolist() == [MAX_ROWS] * MAX_ROWS


changes = st.lists(
    st.one_of(
        st.tuples(st.just("join"), st.integers(1, WIDTH)),
        st.tuples(st.just("leave"), st.integers(0, 9)),
        st.tuples(st.just("grow"), st.integers(0, 9)),
        st.tuples(st.just("step"), st.just(0)),
    ),
    min_size=1,
    max_size=40,
)


@settings(max_examples=150, deadline=None)
@given(changes)
def test_any_changes_between_steps_arrive(sequence: list[tuple[str, int]]) -> None:
    bench, rows, next_id = Bench(), [], 1
    for name, number in sequence:
        if name == "join" and len(rows) < MAX_ROWS:
            rows.append(row(next_id, number, temperature=0.5, top_p=0.9, stop_token_ids=(next_id, 3), min_tokens=2))
            next_id += 1
        elif name == "leave" and rows:
            rows.pop(number % len(rows))
        elif name == "grow" and rows:
            grown = rows[number % len(rows)]
            if len(grown.block_table) < WIDTH:
                grown.block_table.append(9000 + len(grown.block_table))
        elif name == "step" and rows:
            bench.check(rows, bench.step(rows))
    if rows:
        bench.check(rows, bench.step(rows))


def test_what_the_device_advanced_is_not_overwritten_by_a_grow_and_is_by_a_restatement() -> None:
    bench, standing = Bench(), row(1, 2)
    (slot,) = bench.step([standing])
    bench.arena.state.token[slot], bench.arena.state.context_len[slot] = 321, 5
    standing.block_table.append(77)
    bench.step([standing])
    assert (bench.arena.state.token[slot], bench.arena.state.context_len[slot]) == (321, 5)
    standing.last_token_id, standing.context_len = 400, 6
    bench.arena.state.active[slot] = 0
    bench.seats.restate([standing])
    bench.step([standing])
    state = bench.arena.state
    assert (state.token[slot], state.context_len[slot], state.active[slot]) == (400, 6, 1)


def test_a_slot_is_given_away_in_the_same_delta() -> None:
    bench = Bench()
    full = [row(index, 1) for index in range(MAX_ROWS)]
    bench.step(full)
    others = [row(10 + index, 2) for index in range(MAX_ROWS)]
    bench.check(others, bench.step(others))
    with pytest.raises(InvariantError, match="0 free"):
        bench.seats.seat([*others, row(99, 1)], MAX_ROWS)


def test_a_row_that_joins_must_be_known_to_its_last_token() -> None:
    late = row(1, 1)
    late.num_ahead = 1
    with pytest.raises(InvariantError, match="1 steps ahead"):
        Bench().step([late])


def test_a_large_difference_goes_out_in_pieces() -> None:
    width = 3 * (1 << 15) + 5
    arena = StateArena(2, width, "cpu")
    deltas = Deltas(FakeBackend(FakeDriver()), arena)
    blocks = np.arange(width, dtype=np.int32) * 3
    deltas.put("block_table", 1, blocks)
    deltas.put("block_table", 1, (8,), 2)
    deltas.send(InlineLane())
    blocks[2] = 8
    assert (arena.state.block_table[1].numpy() == blocks).all() and not arena.state.block_table[0].any()


def test_buckets_hold_every_batch() -> None:
    assert buckets_for(1) == (1,) and buckets_for(6) == (1, 2, 4, 6)
    assert buckets_for(32) == (1, 2, 4, 8, 16, 24, 32) and buckets_for(33)[-2:] == (32, 33)
    assert table_width(33, 16) == 3


class Steps:
    """Counts what runs eagerly and what a graph holds, and what each takes of the device."""

    def __init__(self, limit_bytes: int, max_rows: int = 8) -> None:
        self.ran: list[int] = []
        self.used_bytes = 1000
        self.graphs = DecodeGraphs(self.step, max_rows, limit_bytes, self.used)
        self.lane = CountingLane(self)

    def step(self, bucket: int, num_sms: int) -> None:
        self.ran.append(bucket)

    def used(self) -> int:
        return self.used_bytes


class CountingLane(InlineLane):
    def __init__(self, steps: Steps) -> None:
        super().__init__()
        self.steps = steps
        self.captured = 0
        self.taken_by_others = 0
        self.fails_with = 0
        self.fails_at = 0

    def capture(self, work):  # type: ignore[no-untyped-def]
        self.captured += 1
        self.steps.used_bytes += self.taken_by_others
        if self.captured == self.fails_at:
            raise cuda_error("cudaGraphInstantiate", self.fails_with)
        self.steps.used_bytes += 100
        return super().capture(work)


def test_graphs_are_captured_largest_first_until_the_bound() -> None:
    steps, heard = Steps(limit_bytes=150), []
    steps.graphs.capture_all([steps.lane], heard.append)
    assert (steps.graphs.num_graphs, steps.graphs.num_bytes) == (2, 200)
    assert heard == ["1/4", "2/4", "2/4, the rest runs eagerly"]
    steps.graphs.run(steps.lane, 8)
    steps.graphs.run(steps.lane, 1)
    assert steps.ran == [8, 1] and steps.lane.captured == 2


def test_without_memory_for_graphs_everything_is_eager() -> None:
    steps = Steps(limit_bytes=0)
    steps.graphs.capture_all([steps.lane], lambda detail: None)
    steps.graphs.capture_while_serving()
    for _ in range(100):
        steps.graphs.run(steps.lane, 4)
    assert steps.graphs.num_graphs == 0 and len(steps.ran) == 100


def test_a_restarted_worker_captures_what_it_needs_now_and_then() -> None:
    steps = Steps(limit_bytes=1000)
    steps.graphs.capture_while_serving()
    for _ in range(15):
        steps.graphs.run(steps.lane, 4)
    assert steps.graphs.num_graphs == 0
    steps.graphs.run(steps.lane, 8)
    assert steps.graphs.num_graphs == 1
    for _ in range(16):
        steps.graphs.run(steps.lane, 8)
        steps.graphs.run(steps.lane, 2)
    assert steps.graphs.num_graphs == 2


def test_what_another_process_takes_meanwhile_leaves_no_step_eager() -> None:
    steps = Steps(limit_bytes=2 << 30)
    steps.lane.taken_by_others = 1 << 30
    steps.graphs.capture_all([steps.lane], lambda detail: None)
    assert steps.graphs.num_graphs == 4


def test_a_capture_that_is_refused_leaves_the_rest_eager() -> None:
    steps, heard = Steps(limit_bytes=1000), []
    steps.lane.fails_at, steps.lane.fails_with = 3, OUT_OF_MEMORY
    steps.graphs.capture_all([steps.lane], heard.append)
    assert heard == ["1/4", "2/4", "2/4, a capture failed, the rest runs eagerly"]
    for bucket in (8, 4, 2, 1):
        steps.graphs.run(steps.lane, bucket)
    assert steps.graphs.num_graphs == 2 and steps.lane.captured == 3 and steps.ran == [8, 4, 2, 1]


def test_a_capture_refused_while_serving_fails_no_step_and_is_not_tried_again() -> None:
    steps = Steps(limit_bytes=1000)
    steps.lane.fails_at, steps.lane.fails_with = 1, OUT_OF_MEMORY
    steps.graphs.capture_while_serving()
    for _ in range(40):
        steps.graphs.run(steps.lane, 4)
    assert (steps.lane.captured, steps.graphs.num_graphs, len(steps.ran)) == (1, 0, 40)


def test_a_fault_in_a_capture_is_not_taken_for_a_refusal() -> None:
    steps = Steps(limit_bytes=1000)
    steps.lane.fails_at, steps.lane.fails_with = 1, ILLEGAL_ADDRESS
    with pytest.raises(CudaError):
        steps.graphs.capture_all([steps.lane], lambda detail: None)


def test_what_was_sent_before_everybody_left_is_sent_again() -> None:
    """A send that raised may have arrived in part; the index is stated with the next step whatever it was."""
    bench, standing = Bench(), row(1, 2)
    bench.step([standing])
    bench.seats.clear()
    bench.arena.index.fill_(MAX_ROWS)
    bench.check([standing], bench.step([standing]))


def test_a_row_of_the_host_is_known_before_and_after_it_joins() -> None:
    bench, own, asked = Bench(), row(1, 1), row(2, 1, logprobs=3)
    assert not bench.seats.any_for_host([own]) and bench.seats.any_for_host([own, asked])
    bench.step([own, asked])
    assert bench.seats.any_for_host([own, asked]) and not bench.seats.any_for_host([own])
