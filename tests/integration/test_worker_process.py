"""Prefill and decode workers as real processes over real sockets and a real board."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from colocate.config.roles import ANY_WORKER
from colocate.messages.control import PlanApplied, Shutdown, WorkerHello
from colocate.messages.decode import DecodeUpdate, StepReport
from colocate.messages.prefill import PrefillBatch, PrefillDone
from colocate.transport.board import Board
from colocate.transport.waiting import wait
from colocate.types import Role
from tests.daemon import eventually
from tests.limits import LIMIT_S
from tests.worker_harness import decode_row, prefill_row
from tests.worker_process import WorkerUnderTest, worker_process


def is_hello(message: object) -> bool:
    return isinstance(message, WorkerHello)


def is_applied(seq: int) -> object:
    return lambda message: isinstance(message, PlanApplied) and message.seq == seq


@pytest.mark.parametrize("role", ANY_WORKER)
def test_starts_without_torch_and_leaves_when_told(role: Role) -> None:
    with worker_process(role) as worker:
        ready = worker.until_ready()
        assert ready.role is role and ready.pid == worker.process.pid
        hello = worker.until(is_hello)
        assert hello == WorkerHello(role, 1, 1, worker.process.pid)
        worker.until(lambda message: isinstance(message, PlanApplied))
        maps = Path(f"/proc/{worker.process.pid}/maps").read_text()
        assert "libtorch" not in maps, "a worker of the emulated device starts in 0.2 s: torch alone takes seconds"
        worker.control.send(Shutdown())
        assert worker.process.wait(LIMIT_S) == 0


@pytest.mark.parametrize("role", ANY_WORKER)
def test_leaves_when_the_supervisor_is_gone(role: Role) -> None:
    with worker_process(role) as worker:
        worker.until_ready()
        worker.control.close()
        assert worker.process.wait(LIMIT_S) == 0


def test_prefill_then_decode_through_real_sockets() -> None:
    with worker_process(Role.PREFILL) as worker:
        worker.until(is_hello)
        worker.send(PrefillBatch(1, [prefill_row(5, 30)]))
        done = worker.until(lambda message: isinstance(message, PrefillDone))
        assert isinstance(done, PrefillDone)
        first = done.rows[0].token_id
    with worker_process(Role.DECODE) as worker:
        worker.until(is_hello)
        worker.send(DecodeUpdate(joins=[decode_row(5, last_token_id=first, max_tokens=50)]))
        worker.until(lambda message: isinstance(message, StepReport) and message.rows[0].finish is not None)
        steps = [message.step for message in worker.heard if isinstance(message, StepReport)]
        assert steps == list(range(1, 50))


def test_an_idle_worker_applies_a_plan_at_once_and_keeps_beating() -> None:
    with worker_process(Role.DECODE) as worker:
        worker.until_ready()
        worker.until(is_applied(1))
        latencies_ms = []
        for name in ["p9d3", "p8d4"] * 20:
            began_ns = time.monotonic_ns()
            seq = worker.set_plan(name)
            applied = worker.until(is_applied(seq))
            assert isinstance(applied, PlanApplied)
            latencies_ms.append((applied.applied_ns - began_ns) / 1e6)
        # some 0.1 ms; without the bell each would wait for the end of the worker's rest of a second
        assert sorted(latencies_ms)[20] < 500
        beat = worker.board.beat_of(Role.DECODE)
        eventually(lambda: worker.board.beat_of(Role.DECODE) > beat, what="another beat")
        assert worker.board.progress_of(Role.DECODE).deadline_ns == 0


def test_idle_costs_no_processor_time() -> None:
    with worker_process(Role.PREFILL) as worker:
        worker.until_ready()
        worker.until(is_applied(1))
        assert worker.channel is not None

        def ticks() -> int:
            fields = Path(f"/proc/{worker.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
            return int(fields[11]) + int(fields[12])

        shares = []
        while not shares or (min(shares) >= 0.06 and len(shares) < 20):  # what is left of the start is no idling
            before, started_s = ticks(), time.monotonic()
            time.sleep(1.0)
            shares.append((ticks() - before) / os.sysconf("SC_CLK_TCK") / (time.monotonic() - started_s))
        assert min(shares) < 0.06, shares


def test_a_new_engine_finds_an_empty_worker_that_greets_it() -> None:
    with worker_process(Role.DECODE) as worker:
        worker.until(is_hello)
        worker.send(DecodeUpdate(joins=[decode_row(1, max_tokens=100_000, num_blocks=4000)]))
        worker.until(lambda message: isinstance(message, StepReport) and message.step == 20)
        worker.new_engine(2)
        hello = worker.until(is_hello)
        assert isinstance(hello, WorkerHello) and hello.epoch == 2
        worker.until(is_applied(1))
        assert not any(isinstance(message, StepReport) for message in worker.heard)
        worker.send(DecodeUpdate(joins=[decode_row(1, max_tokens=3)]))
        worker.until(lambda message: isinstance(message, StepReport) and message.rows[0].finish is not None)


def test_two_workers_hand_units_over_under_load() -> None:
    board = Board.create()
    with (
        worker_process(Role.PREFILL, board=board, plan=None) as prefill,
        worker_process(Role.DECODE, board=board, plan=None) as decode,
    ):
        both: list[WorkerUnderTest] = [prefill, decode]
        for worker in both:
            worker.until(is_hello)
        decode.send(DecodeUpdate(joins=[decode_row(1, max_tokens=10**6, num_blocks=100_000)]))
        for batch_id in range(40):
            prefill.send(PrefillBatch(batch_id, [prefill_row(batch_id, 50)]))
        names = ["p8d4", "p2d10", "all-prefill", "p6d6", "all-decode", "shared", "p1d11"]
        for turn in range(80):
            seq = prefill.set_plan(names[turn % len(names)])
            if turn % 3 == 0:
                continue  # the next plan comes before this one is in force
            for worker in both:
                worker.until(is_applied(seq))
            plan = prefill.table.plans[board.plan().plan_index]
            assert (board.held(Role.PREFILL), board.held(Role.DECODE)) == (plan.prefill_units, plan.decode_units)
    board.close()


def test_killed_holding_units_its_successor_takes_over() -> None:
    board = Board.create()
    with worker_process(Role.DECODE, board=board) as worker:
        worker.until(is_applied(1))
        worker.send(DecodeUpdate(joins=[decode_row(1, max_tokens=10**6, num_blocks=100_000)]))
        worker.until(lambda message: isinstance(message, StepReport))
        worker.process.send_signal(signal.SIGKILL)
        worker.process.wait()
        assert board.held(Role.DECODE) == 4, "nobody else takes them before the supervisor has reaped it"
    with worker_process(Role.DECODE, board=board, plan=None, incarnation=2) as successor:
        hello = successor.until(is_hello)
        assert isinstance(hello, WorkerHello) and hello.incarnation == 2
        successor.until(is_applied(1))
        assert board.held(Role.DECODE) == 4
        assert board.progress_of(Role.DECODE).deadline_ns == 0, "the old deadline does not condemn it"
    board.close()


def test_a_bad_fault_ends_the_start_with_the_operators_code() -> None:
    with worker_process(Role.DECODE, faults=("decode:explode@step=1",)) as worker:
        assert worker.process.wait(LIMIT_S) == 2
        messages = []
        while wait([worker.control], LIMIT_S) and (message := worker.control.recv()) is not None:
            messages.append(message)
            if type(message).__name__ == "ChildFailed":
                break
        assert "explode" in str(messages[-1])
