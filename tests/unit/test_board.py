"""The board: what one process writes, another reads whole, whatever instant the writer is stopped at."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from colocate.config.roles import ANY_WORKER
from colocate.errors import ConfigError, InvariantError
from colocate.transport.board import Applied, Board, PlanWord, Progress
from colocate.types import Role


@pytest.fixture
def board() -> Iterator[Board]:
    board = Board.create()
    yield board
    board.close()


def test_every_field_has_its_own_place(board: Board) -> None:
    board.set_plan((1 << 47) - 1, 65535)
    for number, role in enumerate(Role, start=1):
        board.beat(role, number)
    for number, role in enumerate(ANY_WORKER, start=1):
        board.set_applied(role, 100 + number, number, 10**18 + number)
        board.set_held(role, 70 + number)
        board.set_progress(role, 40 + number, 10**18 - number)
    peer = Board.attach(board.fd)
    assert peer.plan() == PlanWord((1 << 47) - 1, 65535)
    assert [peer.beat_of(role) for role in Role] == list(range(1, len(Role) + 1))
    for number, role in enumerate(ANY_WORKER, start=1):
        assert peer.applied(role) == Applied(100 + number, number, 10**18 + number)
        assert peer.held(role) == 70 + number
        assert peer.progress_of(role) == Progress(40 + number, 10**18 - number)
    peer.close()


def test_clear_forgets_one_process_only(board: Board) -> None:
    for role in ANY_WORKER:
        board.beat(role, 5)
        board.set_held(role, 3)
        board.set_applied(role, 2, 1, 9)
        board.set_progress(role, 7, 8)
    board.clear(Role.PREFILL)
    assert (board.beat_of(Role.PREFILL), board.held(Role.PREFILL)) == (0, 0)
    assert board.applied(Role.PREFILL) == Applied(0, 0, 0)
    assert board.progress_of(Role.PREFILL) == Progress(0, 0)
    assert (board.beat_of(Role.DECODE), board.held(Role.DECODE)) == (5, 3)
    assert board.applied(Role.DECODE) == Applied(2, 1, 9)


def test_a_foreign_descriptor_is_refused() -> None:
    fd = os.memfd_create("not-a-board")
    try:
        with pytest.raises(ConfigError, match="is not a board"):
            Board.attach(fd)
        os.ftruncate(fd, 4096)
        with pytest.raises(ConfigError, match="holds no board"):
            Board.attach(fd)
    finally:
        os.close(fd)


def test_a_plan_index_must_fit_the_word(board: Board) -> None:
    with pytest.raises(InvariantError):
        board.set_plan(1, 65536)


_WRITER = """
import sys
from colocate.transport.board import Board
from colocate.types import Role
board = Board.attach(int(sys.argv[1]))
number = 0
print("writing", flush=True)
while True:
    number += 1
    low = number & 0xFF
    board.set_plan(number, low)
    board.set_applied(Role.DECODE, number, low, number * 3)
    board.set_progress(Role.DECODE, number, number * 5)
"""


def _start_writer(board: Board) -> subprocess.Popen[str]:
    writer = subprocess.Popen(
        [sys.executable, "-c", _WRITER, str(board.fd)], pass_fds=[board.fd], stdout=subprocess.PIPE, text=True
    )
    assert writer.stdout is not None and writer.stdout.readline() == "writing\n"
    return writer


def test_records_are_never_torn_while_another_process_hammers(board: Board) -> None:
    writer = _start_writer(board)
    try:
        seen = set()
        started = time.monotonic()
        last = 0
        # On a busy machine the two take turns: go on until they have truly met.
        while time.monotonic() < started + 1.5 or (len(seen) <= 100 and time.monotonic() < started + 60):
            seq, plan_index = board.plan()
            assert seq & 0xFF == plan_index
            assert seq >= last, "the plan went backwards"
            last = seq
            applied = board.applied(Role.DECODE)
            assert applied.since_ns == applied.seq * 3 and applied.plan_index == applied.seq & 0xFF
            progress = board.progress_of(Role.DECODE)
            assert progress.deadline_ns == progress.counter * 5
            seen.add(applied.seq)
        assert len(seen) > 100, "the writer did not run beside the reader"
    finally:
        writer.kill()
        writer.communicate()


def test_a_writer_stopped_or_killed_anywhere_leaves_whole_records(board: Board) -> None:
    for round_number in range(6):
        writer = _start_writer(board)
        try:
            time.sleep(0.003 * round_number)
            writer.send_signal(signal.SIGSTOP)
            _assert_whole(board)
        finally:
            writer.kill()
            writer.communicate()
        _assert_whole(board)
        board.set_progress(Role.DECODE, 7, 35)  # a successor writes on over whatever was left
        assert board.progress_of(Role.DECODE) == Progress(7, 35)


def _assert_whole(board: Board) -> None:
    applied, progress = board.applied(Role.DECODE), board.progress_of(Role.DECODE)
    assert applied.since_ns == applied.seq * 3
    assert progress.deadline_ns == progress.counter * 5


class _List:
    """The least that a method can do: what polling is measured by, on whatever machine."""

    def __init__(self) -> None:
        self._words = [0]

    def plan_word(self) -> int:
        return self._words[0]


def test_polling_the_plan_costs_little_more_than_a_method_call(board: Board) -> None:
    """Tenths of a microsecond. A system call or a record built at every look would cost many times that."""

    def processor_seconds(words: Board | _List) -> float:
        started = time.thread_time()
        for _ in range(20_000):
            words.plan_word()
        return time.thread_time() - started

    plain = _List()
    rounds = [(processor_seconds(board), processor_seconds(plain)) for _ in range(10)]
    assert min(polled for polled, _ in rounds) < 4 * min(called for _, called in rounds)
