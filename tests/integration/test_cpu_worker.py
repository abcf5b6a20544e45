"""Workers of the CPU device over a real keeper: every thread follows the plan, and a restart leaves live KV alone."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from colocate.messages.control import PlanApplied, WorkerHello
from colocate.messages.decode import DecodeUpdate, StepReport
from colocate.messages.prefill import PrefillBatch, PrefillDone
from colocate.messages.spec import RuntimeFacts
from colocate.types import Role
from tests.checkpoints import make_checkpoint
from tests.worker_harness import decode_row, prefill_row
from tests.worker_process import WorkerUnderTest, worker_process

CORES = tuple(sorted(os.sched_getaffinity(0)))[:2]
BLOCK_SIZE = 16

pytestmark = pytest.mark.skipif(len(CORES) < 2, reason="one core has no split")


@pytest.fixture(scope="module")
def facts(tmp_path_factory: pytest.TempPathFactory) -> RuntimeFacts:
    model_dir = tmp_path_factory.mktemp("model")
    make_checkpoint(model_dir)
    return RuntimeFacts(
        device_kind="cpu",
        device_name="cpu",
        total_units=2,
        unit_granularity=1,
        unit_ids=CORES,
        model_name="random",
        model_dir=str(model_dir),
        dtype="float32",
        vocab_size=259,
        max_model_len=512,
        num_blocks=64,
        block_size=BLOCK_SIZE,
    )


@pytest.fixture
def keeper_address(facts: RuntimeFacts) -> Iterator[str]:
    address = f"colocate-test-{secrets.token_hex(6)}"
    with worker_process(Role.KEEPER, plan=None, facts=facts, keeper_address=address) as keeper:
        keeper.until_ready()
        yield address


def masks_of(pid: int) -> set[tuple[int, ...]]:
    threads = [int(path.name) for path in Path(f"/proc/{pid}/task").iterdir()]
    return {tuple(sorted(os.sched_getaffinity(thread))) for thread in threads}


def switch(worker: WorkerUnderTest, name: str) -> None:
    seq = worker.set_plan(name)
    worker.until(lambda message: isinstance(message, PlanApplied) and message.seq == seq)


def greedy(worker: WorkerUnderTest, request_id: int, blocks: list[int], first_token: int) -> list[int]:
    row = decode_row(
        request_id, temperature=0.0, context_len=20, last_token_id=first_token, max_tokens=12, num_blocks=0
    )
    row = type(row)(row.request_id, row.incarnation, row.last_token_id, row.context_len, blocks, row.sample)
    worker.heard.clear()
    worker.send(DecodeUpdate(joins=[row]))
    worker.until(lambda message: isinstance(message, StepReport) and message.rows[0].finish is not None)
    return [message.rows[0].token_id for message in worker.heard if isinstance(message, StepReport)]


def prefill(worker: WorkerUnderTest, batch_id: int, request_id: int, blocks: list[int]) -> int:
    worker.send(PrefillBatch(batch_id, [prefill_row(request_id, 20, block_table=blocks)]))
    done = worker.until(lambda message: isinstance(message, PrefillDone) and message.batch_id == batch_id)
    assert isinstance(done, PrefillDone) and done.rows[0].token_id is not None
    return done.rows[0].token_id


def test_threads_follow_the_plan_and_a_restart_touches_no_live_block(facts: RuntimeFacts, keeper_address: str) -> None:
    with worker_process(Role.PREFILL, plan="p1d1", facts=facts, keeper_address=keeper_address) as worker:
        worker.until_ready()
        worker.until(lambda message: isinstance(message, PlanApplied))
        first_token = prefill(worker, 1, 1, [3, 0])
        assert masks_of(worker.process.pid) == {(CORES[1],)}, "prefill takes cores from the high end"
        switch(worker, "all-prefill")
        prefill(worker, 2, 2, [8, 9])
        assert masks_of(worker.process.pid) == {CORES}
        switch(worker, "p1d1")
        assert masks_of(worker.process.pid) == {(CORES[1],)}

    with worker_process(Role.DECODE, plan="p1d1", facts=facts, keeper_address=keeper_address) as worker:
        worker.until_ready()
        worker.until(lambda message: isinstance(message, WorkerHello))
        undisturbed = greedy(worker, 1, [3, 0], first_token)
        assert masks_of(worker.process.pid) == {(CORES[0],)}
        worker.process.kill()
        worker.process.wait()

    # Warm-up runs the largest shapes; had it used the pool, the first blocks would hold its keys now.
    with worker_process(
        Role.DECODE, plan="p1d1", facts=facts, keeper_address=keeper_address, incarnation=2
    ) as successor:
        successor.until_ready()
        successor.until(lambda message: isinstance(message, WorkerHello))
        assert greedy(successor, 1, [3, 0], first_token) == undisturbed


def test_a_worker_without_the_passive_wait_policy_does_not_start() -> None:
    code = "from colocate.worker.cpu_device import require_passive_openmp as check; check()"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "OMP_WAIT_POLICY": "active"},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode != 0 and "ConfigError: OMP_WAIT_POLICY: is 'active'" in done.stderr
