"""A device whose truth is known, in virtual time: two workers that answer the profiler's messages as real ones do.

What a forward or step takes comes from a profile, as on the emulated device, but no time passes: results are exact and
the same on a busy machine.
"""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path

from msgspec import Struct

from colocate.config.profile import Coefficients, ContentionProfile, DeviceProfile, NoiseProfile, ShareProfile
from colocate.config.serve import SchedulerSection, ServeConfig
from colocate.core.latency import LatencyModel
from colocate.core.plan import build_plan_table
from colocate.messages.decode import DecodeRow, DecodeUpdate, StepReport, StepRow
from colocate.messages.prefill import PrefillBatch, PrefillDone
from colocate.messages.spec import ProcessSpec, ProfilingJob, RuntimeFacts
from colocate.types import Role

QUIET = NoiseProfile()
TRUTH = DeviceProfile(
    name="known device",
    source="chosen by hand",
    units=4,
    granularity=2,
    num_layers=2,
    shares=[
        ShareProfile(2, Coefficients(2e-4, 2e-7, 0.012), Coefficients(4e-6, 3e-4, 0.006)),
        ShareProfile(4, Coefficients(1e-4, 1e-7, 0.008), Coefficients(2e-6, 2e-4, 0.005)),
    ],
    contention=[ContentionProfile(2, 2, 1.2, 1.5), ContentionProfile(4, 4, 1.4, 2.0)],
)
FACTS = RuntimeFacts(
    device_kind="emulated",
    device_name=TRUTH.name,
    total_units=TRUTH.units,
    unit_granularity=TRUTH.granularity,
    unit_ids=tuple(range(TRUTH.units)),
    model_name="demo",
    model_dir="",
    dtype="float32",
    vocab_size=512,
    max_model_len=2048,
    num_blocks=4096,
    block_size=16,
)
CONFIG = ServeConfig(scheduler=SchedulerSection(max_num_seqs=16, max_num_batched_tokens=256))


def job(journal: Path, **changes: object) -> ProfilingJob:
    values = {"journal": str(journal), "budget_s": 60.0, "num_states": 12, "visit_s": 0.1, **changes}
    return ProfilingJob(**values)  # type: ignore[arg-type]


def spec_of(job: ProfilingJob) -> ProcessSpec:
    return ProcessSpec(
        role=Role.ENGINE,
        incarnation=1,
        epoch=0,
        run_id="test",
        config=CONFIG,
        facts=FACTS,
        control_fd=-1,
        board_fd=-1,
        bell_fds=(),
        profiling=job,
    )


@dataclass(slots=True)
class _Work:
    started_ns: int
    finished_ns: int


@dataclass
class VirtualWorkers:
    """Implements `WorkerLine`. One forward and one step run at a time; time jumps to whichever ends first."""

    noise: NoiseProfile = QUIET
    dies_after: int = 1 << 60  # messages heard
    now_ns: int = 0
    worker_pids: dict[Role, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._model = LatencyModel(TRUTH)
        self._random = random.Random(self.noise.seed)
        self._table = build_plan_table(TRUTH.units, TRUTH.granularity)
        self._plan = self._table.plans[0]
        self._batches: deque[PrefillBatch] = deque()
        self._prefill: _Work | None = None
        self._updates: deque[DecodeUpdate] = deque()
        self._rows: dict[tuple[int, int], DecodeRow] = {}
        self._contexts: dict[tuple[int, int], int] = {}
        self._left: list[tuple[int, int]] = []
        self._step: _Work | None = None
        self._reports: deque[Struct] = deque()
        self.plans_set: list[str] = []

    def clock_ns(self) -> int:
        return self.now_ns

    def set_plan(self, plan_index: int) -> None:
        assert self._prefill is None and not self._rows, "a plan was set while a worker was at work"
        self._plan = self._table.plans[plan_index]
        self.plans_set.append(self._plan.name)

    def send(self, role: Role, message: Struct) -> None:
        if isinstance(message, PrefillBatch):
            assert role is Role.PREFILL and self._plan.prefill_units
            self._batches.append(message)
        elif isinstance(message, DecodeUpdate):
            assert role is Role.DECODE and self._plan.decode_units
            self._updates.append(message)

    def hear(self, deadline_ns: int) -> Struct | None:
        if self.dies_after <= 0:
            raise InterruptedError("killed here")
        while not self._reports:
            self._begin()
            ends = [work.finished_ns for work in (self._prefill, self._step) if work is not None]
            if not ends or min(ends) > deadline_ns:
                if self._reports:
                    break
                self.now_ns = deadline_ns
                return None
            self.now_ns = max(self.now_ns, min(ends))
            self._finish()
        self.dies_after -= 1
        return self._reports.popleft()

    def _begin(self) -> None:
        while self._step is None and self._updates:
            self._apply(self._updates.popleft())
        both = bool(self._batches) and bool(self._rows)
        plan, now_ns = self._plan, self.now_ns
        if self._prefill is None and self._batches:
            rows = [(len(row.token_ids), row.start) for row in self._batches[0].rows]
            linear, pairs = sum(n for n, _ in rows), sum(n * (r + n / 2) for n, r in rows)
            seconds = self._model.prefill_s(plan.prefill_units, linear, pairs, plan.decode_units if both else 0)
            self._prefill = _Work(now_ns, now_ns + int(seconds * self._factor() * 1e9))
        if self._step is None and self._rows:
            total = sum(self._contexts.values())
            seconds = self._model.decode_s(plan.decode_units, total, len(self._rows), plan.prefill_units if both else 0)
            self._step = _Work(now_ns, now_ns + int(seconds * self._factor() * 1e9))

    def _finish(self) -> None:
        if self._prefill is not None and self._prefill.finished_ns <= self.now_ns:
            batch = self._batches.popleft()
            self._reports.append(
                PrefillDone(batch.batch_id, [], self._prefill.started_ns, self._prefill.finished_ns, 1)
            )
            self._prefill = None
        if self._step is not None and self._step.finished_ns <= self.now_ns:
            rows = [StepRow(request_id, incarnation, 1) for request_id, incarnation in self._rows]
            left, self._left = self._left, []
            self._reports.append(StepReport(1, rows, left, [], self._step.started_ns, self._step.finished_ns, 1))
            for key, row in self._rows.items():
                self._contexts[key] += 1
                assert self._contexts[key] <= len(row.block_table) * FACTS.block_size, "a row outgrew its blocks"
            self._step = None

    def _apply(self, update: DecodeUpdate) -> None:
        for key in update.leaves:
            del self._rows[key], self._contexts[key]
        self._left += update.leaves
        for row in update.joins:
            self._rows[row.request_id, row.incarnation] = row
            self._contexts[row.request_id, row.incarnation] = row.context_len
        if not self._rows:
            self._reports.append(StepReport(1, [], self._left))
            self._left = []

    def _factor(self) -> float:
        noise = self.noise
        if not noise.sigma:
            return 1.0
        factor = self._random.lognormvariate(0.0, noise.sigma)
        return factor * (noise.tail_factor if self._random.random() < noise.tail_probability else 1.0)
