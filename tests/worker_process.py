"""Real worker processes of the emulated device, with this test in the place of engine and supervisor."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import msgspec
from msgspec import Struct

from colocate.config.roles import ANY_WORKER
from colocate.config.serve import DeviceSection, SchedulerSection, ServeConfig
from colocate.core.plan import PlanTable, build_plan_table
from colocate.messages.control import ChildReady, EngineAt
from colocate.messages.spec import ProcessSpec, RuntimeFacts
from colocate.transport.board import Board
from colocate.transport.channel import worker_address
from colocate.transport.control import ControlChannel
from colocate.transport.waiting import wait
from colocate.transport.zmq_channel import ZmqChannel, bind_for_worker
from colocate.types import Role
from tests.limits import LIMIT_S

TOTAL_UNITS = 12


def emulated_facts(total_units: int = TOTAL_UNITS) -> RuntimeFacts:
    return RuntimeFacts(
        device_kind="emulated",
        device_name="emulated",
        total_units=total_units,
        unit_granularity=1,
        unit_ids=tuple(range(total_units)),
        model_name="emulated",
        model_dir="",
        dtype="float32",
        vocab_size=4096,
        max_model_len=4096,
        num_blocks=4096,
        block_size=16,
    )


@dataclass
class WorkerUnderTest:
    """One worker process and the far ends of its lines. Messages read are kept in `heard`."""

    process: subprocess.Popen[bytes]
    spec: ProcessSpec
    control: ControlChannel
    board: Board
    channel: ZmqChannel
    table: PlanTable
    heard: list[Struct] = field(default_factory=list)

    def until(self, found: Callable[[Struct], bool], timeout_s: float = LIMIT_S) -> Struct:
        """The first message from the worker that fits; everything on the way is kept too."""
        deadline_s = time.monotonic() + timeout_s
        while time.monotonic() < deadline_s:
            while (message := self.channel.recv()) is not None:
                self.heard.append(message)
                if found(message):
                    return message
            wait([self.channel], 0.05)
        raise AssertionError(f"nothing fitting arrived; heard {self.heard[-5:]}, exit code {self.process.poll()}")

    def until_ready(self, timeout_s: float = LIMIT_S) -> ChildReady:
        deadline_s = time.monotonic() + timeout_s
        while time.monotonic() < deadline_s:
            wait([self.control], 0.05)
            message = self.control.recv()
            if isinstance(message, ChildReady):
                return message
        raise AssertionError("never ready")

    def send(self, message: Struct) -> None:
        deadline_s = time.monotonic() + LIMIT_S
        while not self.channel.send(message):
            assert time.monotonic() < deadline_s, "the worker takes no messages"
            time.sleep(0.001)

    def set_plan(self, name: str) -> int:
        seq = self.board.plan().seq + 1
        self.board.set_plan(seq, self.table.index_of(name))
        for role in ANY_WORKER:
            self.board.ring(role)
        return seq

    def new_engine(self, epoch: int) -> None:
        """As after the loss of an engine: another address, another channel."""
        address = worker_address(self.spec.run_id, epoch, self.spec.role, self.spec.incarnation)
        self.channel.close()
        self.channel = bind_for_worker(address, self.spec.role)
        self.heard.clear()
        self.control.send(EngineAt(epoch, address))


@contextmanager
def worker_process(
    role: Role,
    *,
    board: Board | None = None,
    plan: str | None = "p8d4",
    incarnation: int = 1,
    facts: RuntimeFacts | None = None,
    keeper_address: str = "",
    max_slice_ms: float = 20.0,
    **device: object,
) -> Iterator[WorkerUnderTest]:
    """`device`: fields of the configuration's device section (`profile`, `faults`). With `max_slice_ms` 0 every slice
    is one layer."""
    own_board = board is None
    board = board or Board.create()
    facts = facts or emulated_facts()
    table = build_plan_table(facts.total_units)
    if plan is not None:
        board.set_plan(board.plan().seq + 1, table.index_of(plan))
    parent, child = ControlChannel.pair()
    run_id = secrets.token_hex(6)
    address = worker_address(run_id, 1, role, incarnation)
    config = ServeConfig(
        device=DeviceSection(device=facts.device_kind, **device),  # type: ignore[arg-type]
        scheduler=SchedulerSection(max_slice_ms=max_slice_ms),
    )
    spec = ProcessSpec(
        role=role,
        incarnation=incarnation,
        epoch=1,
        run_id=run_id,
        config=config,
        facts=facts,
        control_fd=child.fileno(),
        board_fd=board.fd,
        bell_fds=board.bell_fds,
        engine_address=address,
        keeper_address=keeper_address,
    )
    channel = bind_for_worker(address, role if role in ANY_WORKER else Role.DECODE)  # a keeper leaves it alone
    process = subprocess.Popen(
        [sys.executable, "-m", "colocate.launch", role.value, str(os.getpid())],
        stdin=subprocess.PIPE,
        pass_fds=[child.fileno(), board.fd, *board.bell_fds],
        env={**os.environ, "OMP_WAIT_POLICY": "passive"},
    )
    assert process.stdin is not None
    process.stdin.write(msgspec.msgpack.encode(spec))
    process.stdin.close()
    child.close()
    worker = WorkerUnderTest(process, spec, parent, board, channel, table)
    try:
        yield worker
    finally:
        process.kill()
        process.wait()
        worker.channel.close()
        parent.close()
        if own_board:
            board.close()
