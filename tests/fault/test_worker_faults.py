"""Saboteurs inside a worker: what each injected fault looks like from outside."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from colocate.messages.control import PlanApplied, WorkerHello
from colocate.messages.decode import DecodeUpdate, StepReport
from colocate.messages.prefill import BatchFailed, PrefillBatch, PrefillDone
from colocate.types import Role
from tests.daemon import eventually
from tests.limits import LIMIT_S
from tests.worker_harness import decode_row, prefill_row
from tests.worker_process import WorkerUnderTest, worker_process


def step(number: int) -> Callable[[object], bool]:
    return lambda message: isinstance(message, StepReport) and message.step == number


def start_decoding(worker: WorkerUnderTest, **fields: object) -> None:
    worker.until(lambda message: isinstance(message, WorkerHello))
    worker.send(DecodeUpdate(joins=[decode_row(1, max_tokens=10**6, num_blocks=100_000, **fields)]))  # type: ignore[arg-type]


def is_stopped(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "T"


def test_exit_before_a_step_leaves_an_unbroken_run_of_reports() -> None:
    """The last ones may have died with their sender: what is not confirmed is drawn again, equal."""
    with worker_process(Role.DECODE, faults=("decode:exit@step=300",)) as worker:
        start_decoding(worker)
        worker.until(step(1))
        assert worker.process.wait(LIMIT_S) == -signal.SIGKILL
        time.sleep(0.05)
        while (message := worker.channel.recv()) is not None:
            worker.heard.append(message)
        steps = [message.step for message in worker.heard if isinstance(message, StepReport)]
        assert steps == list(range(1, len(steps) + 1))
        assert 1 <= len(steps) <= 299


def test_a_restart_is_healthy_where_the_fault_names_the_incarnation() -> None:
    faults = ("decode:exit@step=5,incarnation=1",)
    with worker_process(Role.DECODE, faults=faults, incarnation=2) as worker:
        start_decoding(worker)
        worker.until(step(50))


def test_exit_in_the_middle_of_a_switch_leaves_the_claim_on_the_board() -> None:
    with worker_process(Role.DECODE, faults=("exit@switch",)) as worker:
        worker.until(lambda message: isinstance(message, PlanApplied))
        worker.set_plan("p6d6")
        assert worker.process.wait(LIMIT_S) == -signal.SIGKILL
        assert worker.board.held(Role.DECODE) == 6, "claimed: nobody may take them before it is reaped"
        assert worker.board.applied(Role.DECODE).seq == 1, "but never in force"


def _hangs(worker: WorkerUnderTest) -> bool:
    """Past the four slices of the first batch, and with a deadline: not in the idle moment between the batches."""
    progress = worker.board.progress_of(Role.PREFILL)
    return progress.counter > 4 and progress.deadline_ns != 0


def test_hang_keeps_beating_and_misses_its_deadline() -> None:
    with worker_process(Role.PREFILL, faults=("prefill:hang@batch=2",), max_slice_ms=0.0) as worker:
        worker.until(lambda message: isinstance(message, WorkerHello))
        worker.send(PrefillBatch(1, [prefill_row(1)]))
        worker.send(PrefillBatch(2, [prefill_row(2)]))
        worker.until(lambda message: isinstance(message, PrefillDone))
        eventually(lambda: _hangs(worker))
        progress, beat = worker.board.progress_of(Role.PREFILL), worker.board.beat_of(Role.PREFILL)
        time.sleep(0.3)
        eventually(lambda: worker.board.beat_of(Role.PREFILL) > beat, what="it is alive")
        assert worker.board.progress_of(Role.PREFILL) == progress, "and gets nowhere"
        assert progress.deadline_ns - time.monotonic_ns() < 11e9, "the floor of ten seconds"


def test_freeze_falls_silent() -> None:
    with worker_process(Role.DECODE, faults=("freeze@step=5",)) as worker:
        start_decoding(worker)
        eventually(lambda: is_stopped(worker.process.pid))
        beat = worker.board.beat_of(Role.DECODE)
        time.sleep(0.3)
        assert worker.board.beat_of(Role.DECODE) == beat


def test_sigstop_at_any_moment_loses_nothing_once_it_continues() -> None:
    with worker_process(Role.DECODE) as worker:
        start_decoding(worker)
        for pause in range(5):
            worker.until(step(10 + 40 * pause))
            os.kill(worker.process.pid, signal.SIGSTOP)
            time.sleep(0.02)
            os.kill(worker.process.pid, signal.SIGCONT)
        worker.until(step(300))
        steps = [message.step for message in worker.heard if isinstance(message, StepReport)]
        assert steps == list(range(1, 301))


def test_garbage_is_dropped_and_the_steps_go_on() -> None:
    with worker_process(Role.DECODE, faults=("decode:garbage@step=10",)) as worker:
        start_decoding(worker)
        worker.until(step(40))
        counts = worker.channel.statistics()
        assert counts["dropped_truncated"] + counts["dropped_junk"] == 4


def test_slow_is_slow_once() -> None:
    with worker_process(Role.DECODE, faults=("decode:slow@step=20,ms=250",)) as worker:
        start_decoding(worker)
        worker.until(step(40))
        reports = [message for message in worker.heard if isinstance(message, StepReport)]
        durations_ms = [(report.finished_ns - report.started_ns) / 1e6 for report in reports]
        assert durations_ms[19] >= 250
        assert sorted(durations_ms)[20] < 250, "the others take some 0.1 ms"


def test_raise_fails_the_batch_and_not_the_worker() -> None:
    with worker_process(Role.PREFILL, faults=("prefill:raise@token=13",)) as worker:
        worker.until(lambda message: isinstance(message, WorkerHello))
        worker.send(PrefillBatch(1, [prefill_row(1, token_ids=[4, 13])]))
        worker.send(PrefillBatch(2, [prefill_row(2)]))
        failed = worker.until(lambda message: isinstance(message, BatchFailed))
        assert isinstance(failed, BatchFailed) and failed.rows == [(1, 1)]
        worker.until(lambda message: isinstance(message, PrefillDone))


@pytest.mark.parametrize("incarnation", [1, 2, 3])
def test_a_poison_request_kills_every_decode_worker_that_steps_it(incarnation: int) -> None:
    faults = ("decode:exit@token=77",)
    with worker_process(Role.PREFILL, faults=faults) as worker:
        worker.until(lambda message: isinstance(message, WorkerHello))
        worker.send(PrefillBatch(1, [prefill_row(1, token_ids=[5, 77, 6], sample=None)]))  # an earlier chunk
        worker.send(PrefillBatch(2, [prefill_row(1), prefill_row(2)]))
        done = worker.until(lambda message: isinstance(message, PrefillDone) and message.batch_id == 2)
        assert isinstance(done, PrefillDone)
        poison, healthy = (row.token_id for row in done.rows)
    with worker_process(Role.DECODE, faults=faults, incarnation=incarnation) as worker:
        start_decoding(worker, last_token_id=healthy)
        worker.until(step(30))
        worker.send(DecodeUpdate(joins=[decode_row(9, last_token_id=poison)]))
        assert worker.process.wait(LIMIT_S) == -signal.SIGKILL


def test_exit_at_start_never_gets_ready() -> None:
    with worker_process(Role.DECODE, faults=("exit@start",)) as worker:
        assert worker.process.wait(LIMIT_S) == -signal.SIGKILL


def test_a_wake_for_a_plan_that_is_already_in_force_is_harmless() -> None:
    with worker_process(Role.DECODE) as worker:
        worker.until(lambda message: isinstance(message, PlanApplied))
        for _ in range(20):
            worker.board.ring(Role.DECODE)
        worker.send(DecodeUpdate(joins=[decode_row(1, max_tokens=4)]))
        worker.until(step(3))
        assert sum(isinstance(message, PlanApplied) for message in worker.heard) == 1
