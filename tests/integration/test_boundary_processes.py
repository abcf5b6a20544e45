"""Claims between two real processes: each marks what it takes in shared memory and looks for the other's mark."""

from __future__ import annotations

import mmap
import os
import random
import subprocess
import sys
import time

from colocate.core.plan import SHARED, build_plan_table
from colocate.transport.board import Board
from colocate.types import WORKER_ROLES, Role
from tests.limits import LIMIT_S

TOTAL_UNITS = 12

_WORKER = """
import mmap, sys, time
from colocate.core.plan import build_plan_table
from colocate.transport.board import Board
from colocate.types import Role
from colocate.worker.boundary import Boundary

role, total = Role(sys.argv[1]), int(sys.argv[2])
board = Board.attach(int(sys.argv[3]))
marks = mmap.mmap(int(sys.argv[4]), 4096)
own, other = (0, 64) if role is Role.PREFILL else (64, 0)

class MarkingPartition:
    total_units = total
    overlaps = 0
    held = frozenset()
    busy = frozenset()  # what work of earlier shares still runs on; it is done after a few looks
    looks = 0

    def apply(self, units):
        self.busy |= self.held
        fresh = set(units) - self.busy
        self.held = frozenset(units)
        self.looks = 0
        self.mark(self.held | self.busy)
        # Units taken now: the other must have let go of them. What was held before is the other's business.
        self.overlaps += any(marks[other + unit] for unit in fresh)

    def mark(self, units):
        for unit in range(total):
            marks[own + unit] = unit in units
        board._fence()

    def settled(self):
        self.looks += 1
        if self.looks < 3:
            return False
        self.busy = frozenset()
        self.mark(self.held)
        return True

    def realised(self):
        return tuple(sorted(self.held))

partition = MarkingPartition()
boundary = Boundary(role, build_plan_table(total), board, partition, lambda count: None, time.monotonic_ns)
print("ready", flush=True)
applied = 0
while marks[200] == 0:
    if boundary.check() is not None:
        applied += 1
        marks[own + 32 : own + 40] = applied.to_bytes(8, "little")
print(applied, partition.overlaps, flush=True)
"""


def _fewest(marks: mmap.mmap) -> int:
    """How many plans the slower of the two has applied."""
    return min(int.from_bytes(marks[own + 32 : own + 40], "little") for own in (0, 64))


def test_two_processes_never_take_the_same_unit() -> None:
    table = build_plan_table(TOTAL_UNITS)
    splits = [index for index, plan in enumerate(table.plans) if plan.name != SHARED]
    chance = random.Random(5)
    board = Board.create()
    marks_fd = os.memfd_create("marks")
    os.ftruncate(marks_fd, 4096)
    marks = mmap.mmap(marks_fd, 4096)
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", _WORKER, role.value, str(TOTAL_UNITS), str(board.fd), str(marks_fd)],
            pass_fds=[board.fd, marks_fd],
            stdout=subprocess.PIPE,
            text=True,
        )
        for role in WORKER_ROLES
    ]
    try:
        for worker in workers:
            assert worker.stdout is not None and worker.stdout.readline() == "ready\n"
        seq = 0
        started = time.monotonic()
        # Where the processes must take turns for a core, few plans come into force in two seconds: then go on.
        while time.monotonic() < started + 2.0 or (_fewest(marks) <= 200 and time.monotonic() < started + LIMIT_S):
            seq += 1
            board.set_plan(seq, chance.choice(splits))
            if chance.random() < 0.5:
                time.sleep(chance.random() * 2e-4)
        deadline = time.monotonic() + LIMIT_S
        while any(board.applied(role).seq != seq for role in WORKER_ROLES):
            assert time.monotonic() < deadline, "the last plan is in force in both"
        plan = table.plans[board.plan().plan_index]
        assert (board.held(Role.PREFILL), board.held(Role.DECODE)) == (plan.prefill_units, plan.decode_units)
        marks[200] = 1
        for worker in workers:
            assert worker.stdout is not None
            applied, overlaps = map(int, worker.stdout.readline().split())
            assert applied > 200
            assert overlaps == 0
    finally:
        for worker in workers:
            worker.kill()
            worker.communicate()
        marks.close()
        os.close(marks_fd)
        board.close()
