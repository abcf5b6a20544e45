"""Loops over executors of depth 2: a piece is launched before the one ahead of it is handled, and nobody can tell."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec import structs

from colocate.core.stop import finish_after
from colocate.device.emulated.tokens import TokenDraw, row_key
from colocate.messages.control import EngineAt, WorkerHello
from colocate.messages.decode import DecodeUpdate, StepReport
from colocate.messages.prefill import BatchFailed
from colocate.types import FinishReason, Role
from colocate.worker.executor import StandingRow, StepTokens
from colocate.worker.standing_batch import RowKey
from colocate.worker.station import Turn
from tests.worker_harness import BLOCK_SIZE, VOCAB_SIZE, Bench, decode_row


@dataclass
class DeviceRow:
    """What a device keeps of a row: it goes on by itself."""

    row: StandingRow
    context_len: int
    position: int
    token_id: int
    block_table: list[int]
    is_active: bool = True


@dataclass
class TwoAhead:
    """Implements `DecodeExecutor` with a device that truly lags: a step is computed when it is collected, from what the
    device knew and what the host said at the launch. It refuses whatever the seam forbids."""

    fails_at: int = 0  # the step whose collect raises, from 1
    depth: int = 2
    draw: TokenDraw = field(default_factory=lambda: TokenDraw(VOCAB_SIZE))
    on_device: dict[RowKey, DeviceRow] = field(default_factory=dict)
    under_way: deque[tuple[list[DeviceRow], list[list[int]]]] = field(default_factory=deque)
    version: int | None = None
    num_launched: int = 0
    num_collected: int = 0
    most_under_way: int = 0
    written: list[tuple[RowKey, int]] = field(default_factory=list)  # (row, block) of every write, in order
    host_rows: frozenset[int] = frozenset()  # requests whose tokens the host draws

    def may_run_ahead(self, rows: Sequence[StandingRow], version: int) -> bool:
        assert self.under_way, "not asked where nothing is under way"
        of_the_last = {each.row.request_id for each in self.under_way[-1][0]}
        return not self.host_rows & (of_the_last | {row.request_id for row in rows})

    def launch(self, rows: Sequence[StandingRow], version: int) -> None:
        assert rows and len(self.under_way) < self.depth
        keys = [(row.request_id, row.incarnation) for row in rows]
        tables = [list(row.block_table) for row in rows]
        if version == self.version:
            assert keys == list(self.on_device), "the version stands, so do the rows"
            assert tables == [each.block_table for each in self.on_device.values()]
        self.version = version
        before, self.on_device = self.on_device, {}
        for key, row, table in zip(keys, rows, tables, strict=True):
            known = before.get(key)
            if known is None:
                assert row.num_ahead == 0, "a row that joins is known to its last token"
                known = DeviceRow(row, row.context_len, row.position, row.last_token_id, table)
            known.block_table = table
            self.on_device[key] = known
            assert row.context_len + row.num_ahead < len(table) * BLOCK_SIZE, "a slot for the position of this step"
            assert row.position + row.num_ahead < row.sample.params.max_tokens
        self.under_way.append((list(self.on_device.values()), tables))
        self.num_launched += 1
        self.most_under_way = max(self.most_under_way, len(self.under_way))

    def collect(self) -> StepTokens:
        rows, tables = self.under_way.popleft()
        self.num_collected += 1
        tokens = [self._step(row, table) for row, table in zip(rows, tables, strict=True)]
        if self.num_collected == self.fails_at:
            raise RuntimeError("boom")
        return StepTokens(tokens)

    def _step(self, each: DeviceRow, table: list[int]) -> int:
        if not each.is_active:
            return -1
        row, params = each.row, each.row.sample.params
        self.written.append(((row.request_id, row.incarnation), table[each.context_len // BLOCK_SIZE]))
        token = self.draw.token(row_key(params.seed, params.choice), each.position, params.eos_token_ids)
        each.is_active = finish_after(params, each.position, token) is None
        each.token_id, each.context_len, each.position = token, each.context_len + 1, each.position + 1
        return token

    def abandon(self) -> None:
        while self.under_way:
            rows, tables = self.under_way.popleft()
            for row, table in zip(rows, tables, strict=True):
                self._step(row, table)
        self.on_device = {}

    def units_changed(self, num_units: int) -> None:
        pass


@pytest.fixture
def device() -> TwoAhead:
    return TwoAhead()


@pytest.fixture
def bench(device: TwoAhead) -> Iterator[Bench]:
    bench = Bench(Role.DECODE, decode=device)
    bench.settle()
    yield bench
    bench.close()


def reports(messages: Sequence[object]) -> list[StepReport]:
    return [message for message in messages if isinstance(message, StepReport)]


def tokens_of(messages: Sequence[object], request_id: int) -> list[int]:
    return [row.token_id for report in reports(messages) for row in report.rows if row.request_id == request_id]


def test_the_next_step_is_under_way_when_one_is_reported(bench: Bench, device: TwoAhead) -> None:
    bench.say(DecodeUpdate(joins=[decode_row(1), decode_row(2)]))
    bench.turn()
    assert (device.num_launched, reports(bench.heard())) == (1, [])
    bench.turn(3)
    found = reports(bench.heard())
    assert [report.step for report in found] == [1, 2, 3]
    assert device.num_launched == 4 and device.most_under_way == 2
    assert all(report.started_ns < report.finished_ns for report in found)
    assert all(a.finished_ns <= b.started_ns for a, b in pairwise(found)), "time of the device"


def test_a_row_ends_by_length_without_another_step_and_is_never_called_masked(bench: Bench, device: TwoAhead) -> None:
    bench.say(DecodeUpdate(joins=[decode_row(1, max_tokens=3, context_len=6, num_blocks=2)]))
    messages = bench.settle()
    rows = [row for report in reports(messages) for row in report.rows]
    assert [row.finish for row in rows] == [None, FinishReason.LENGTH]
    assert device.num_launched == 2 and not any(report.masked for report in reports(messages))


def test_an_end_seen_on_the_device_only_costs_one_empty_draw(bench: Bench, device: TwoAhead) -> None:
    bench.say(DecodeUpdate(joins=[decode_row(1, max_tokens=12)]))
    tokens = tokens_of(bench.settle(), 1)
    launched, written = device.num_launched, len(device.written)
    bench.say(DecodeUpdate(joins=[decode_row(1, incarnation=2, max_tokens=12, stop_token_ids=(tokens[4],))]))
    rows = [row for report in reports(bench.settle()) for row in report.rows]
    assert [row.token_id for row in rows] == tokens[:5] and rows[-1].finish is FinishReason.STOP
    assert device.num_launched - launched == 6 and len(device.written) - written == 5, "the sixth wrote nothing"


def test_a_leave_is_acknowledged_after_the_last_step_with_its_row(bench: Bench, device: TwoAhead) -> None:
    bench.say(DecodeUpdate(joins=[decode_row(1), decode_row(2)]))
    bench.turn(2)
    assert len(device.under_way) == 1
    bench.heard()
    bench.say(DecodeUpdate(leaves=[(1, 1)]))
    bench.turn()
    (report,) = reports(bench.heard())
    assert report.left == [(1, 1)] and [row.request_id for row in report.rows] == [2], "its last token counts no more"
    assert [[each.row.request_id for each in rows] for rows, _ in device.under_way] == [[2]]


def test_a_full_row_is_skipped_first_and_masked_once_its_last_slot_is_reported(bench: Bench, device: TwoAhead) -> None:
    bench.say(DecodeUpdate(joins=[decode_row(1, context_len=6, num_blocks=2), decode_row(2, max_tokens=20)]))
    messages = bench.settle()
    assert len(tokens_of(messages, 1)) == 2 and len(tokens_of(messages, 2)) == 19
    assert [masked for report in reports(messages) for masked in report.masked] == [(1, 1)]
    bench.say(DecodeUpdate(grows=[(1, 1, [77])]))
    assert len(tokens_of(bench.settle(), 1)) == BLOCK_SIZE
    assert [block for key, block in device.written if key == (1, 1)] == [1, 1, 77, 77, 77, 77]


def test_a_grow_in_time_is_never_reported_as_a_mask(bench: Bench) -> None:
    bench.say(DecodeUpdate(joins=[decode_row(1, context_len=6, num_blocks=2)]))
    bench.turn(3)
    bench.say(DecodeUpdate(grows=[(1, 1, [9])]))
    messages = bench.settle()
    assert [report.masked for report in reports(messages)] == [[]] * 6 + [[(1, 1)]]
    assert len(tokens_of(messages, 1)) == 6


def test_rows_drawn_on_the_host_are_never_run_ahead(bench: Bench, device: TwoAhead) -> None:
    device.host_rows = frozenset({2})
    bench.say(DecodeUpdate(joins=[decode_row(1, max_tokens=30), decode_row(2, max_tokens=6)]))
    bench.turn(2)
    assert device.most_under_way == 1
    messages = bench.settle()
    assert len(tokens_of(messages, 1)) == 29 and device.most_under_way == 2, "once that row has gone"


def test_a_failing_step_waits_for_the_next_one_and_drops_all_rows() -> None:
    device = TwoAhead(fails_at=2)
    bench = Bench(Role.DECODE, decode=device)
    bench.settle()
    bench.say(DecodeUpdate(joins=[decode_row(1), decode_row(2)]))
    messages = bench.settle()
    (failed,) = [message for message in messages if isinstance(message, BatchFailed)]
    assert failed.rows == [(1, 1), (2, 1)] and len(reports(messages)) == 1
    assert not device.under_way and not device.on_device
    bench.say(DecodeUpdate(joins=[decode_row(2, incarnation=2, max_tokens=5)]))
    assert len(tokens_of(bench.settle(), 2)) == 4
    bench.close()


def test_a_new_engine_is_greeted_only_when_nothing_is_under_way(bench: Bench, device: TwoAhead) -> None:
    bench.say(DecodeUpdate(joins=[decode_row(1)]))
    bench.turn(2)
    assert len(device.under_way) == 1
    bench.supervisor.send(EngineAt(2, "engine-2"))
    under_way_at_hello: list[int] = []
    opened = bench.link._open_channel

    def watch(address: str) -> object:
        under_way_at_hello.append(len(device.under_way))
        return opened(address)

    bench.link._open_channel = watch  # type: ignore[assignment]
    assert bench.turn() is Turn.WAITING
    assert under_way_at_hello == [0] and isinstance(bench.heard("engine-2")[0], WorkerHello)


def test_without_units_the_step_under_way_is_still_reported(bench: Bench, device: TwoAhead) -> None:
    bench.say(DecodeUpdate(joins=[decode_row(1)]))
    bench.turn(2)
    bench.set_plan("all-prefill")
    bench.heard()
    assert bench.turn() is Turn.WORKED
    assert len(reports(bench.heard())) == 1 and not device.under_way
    assert bench.turn() is Turn.WAITING


updates = st.lists(
    st.one_of(
        st.tuples(st.just("join"), st.integers(0, 9), st.integers(2, 14), st.integers(1, 4)),
        st.tuples(st.just("leave"), st.integers(0, 9)),
        st.tuples(st.just("grow"), st.integers(0, 9), st.integers(1, 2)),
        st.tuples(st.just("turn"), st.integers(1, 5)),
        st.tuples(st.just("plan"), st.sampled_from(["all-prefill", "p8d4", "p3d9"])),
    ),
    min_size=5,
    max_size=50,
)


class Session:
    """The engine's side: who holds which block, what was said, and when it was told that a block is free."""

    def __init__(self, device: TwoAhead) -> None:
        self.device = device
        self.bench = Bench(Role.DECODE, decode=device)
        self.bench.settle()
        self.keys: list[RowKey] = []
        self.seeds: dict[RowKey, int] = {}
        self.blocks: dict[RowKey, list[int]] = {}
        self.tokens: dict[RowKey, list[int]] = {}
        self.writes_when_over: dict[RowKey, int] = {}
        self.num_blocks = 0
        self.num_failed = 0
        self.masked: set[RowKey] = set()

    def take(self, key: RowKey, count: int) -> list[int]:
        blocks = list(range(self.num_blocks, self.num_blocks + count))
        self.num_blocks += count
        self.blocks.setdefault(key, []).extend(blocks)
        return blocks

    def join(self, seed: int, num_tokens: int, num_blocks: int) -> None:
        key = (len(self.keys), 1)
        self.keys.append(key)
        self.seeds[key], self.tokens[key] = seed, []
        stop = self.device.draw.token(row_key(seed, 0), 2 + seed % 7, ())  # some rows meet it, others end before
        row = decode_row(key[0], max_tokens=num_tokens, context_len=3, seed=seed, stop_token_ids=(stop,))
        table = self.take(key, num_blocks)
        self.bench.say(DecodeUpdate(joins=[structs.replace(row, block_table=table)]))

    def standing(self, index: int) -> RowKey | None:
        key = self.keys[index % len(self.keys)] if self.keys else None
        return None if key in self.writes_when_over else key

    def leave(self, index: int) -> None:
        if key := self.standing(index):
            self.bench.say(DecodeUpdate(leaves=[key]))

    def grow(self, index: int, count: int) -> None:
        if key := self.standing(index):
            self.bench.say(DecodeUpdate(grows=[(*key, self.take(key, count))]))

    def turn(self, times: int) -> Turn:
        for _ in range(times):
            turn = self.bench.turn()
            for message in self.bench.heard():
                self.hear(message)
        return turn

    def hear(self, message: object) -> None:
        over: list[RowKey] = []
        if isinstance(message, BatchFailed):
            self.num_failed += 1
            over = [(request_id, incarnation) for request_id, incarnation in message.rows]
        elif isinstance(message, StepReport):
            over = [(request_id, incarnation) for request_id, incarnation in message.left]
            self.masked |= {(request_id, incarnation) for request_id, incarnation in message.masked}
            for row in message.rows:
                key = (row.request_id, row.incarnation)
                assert key not in self.writes_when_over, "a row speaks after its end"
                self.tokens[key].append(row.token_id)
                if row.finish is not None:
                    over.append(key)
        for key in over:
            self.writes_when_over.setdefault(key, len(self.device.written))

    def check(self) -> None:
        assert not self.device.under_way
        assert self.num_failed == (0 < self.device.fails_at <= self.device.num_collected)
        for key in set(self.keys) - set(self.writes_when_over):
            assert key in self.masked and 3 + len(self.tokens[key]) == len(self.blocks[key]) * BLOCK_SIZE, (
                "fills its slots"
            )
        for key, tokens in self.tokens.items():
            noise = row_key(self.seeds[key], 0)
            assert tokens == [self.device.draw.token(noise, 1 + place, ()) for place in range(len(tokens))]
        for place, (key, block) in enumerate(self.device.written):
            assert block in self.blocks[key]
            assert place < self.writes_when_over.get(key, place + 1), "written after the report that freed it"


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(updates, st.frozensets(st.integers(0, 30), max_size=6), st.sampled_from([0, 0, 0, 5]))
def test_any_updates_at_any_time(sequence: list[tuple], host_rows: frozenset[int], fails_at: int) -> None:
    """Every row says its own tokens, none lost, doubled or changed up to its end, and writes to no block that the
    engine may have given to somebody else."""
    session = Session(TwoAhead(host_rows=host_rows, fails_at=fails_at))
    for name, *arguments in sequence:
        if name == "plan":
            session.bench.set_plan(arguments[0])
        else:
            getattr(session, name)(*arguments)
    session.bench.set_plan("p8d4")
    for _ in range(10_000):
        if session.turn(1) is not Turn.WORKED:
            break
    session.bench.close()
    session.check()
