"""A small closed loop for policies: two phases on one device, whose truth may differ from what the policy predicts.

Time advances in ticks of a millisecond. Prompts arrive, are admitted while rows are free, prefilled one after another,
and join a standing batch that steps all of its rows together. A switch stalls both phases for `switch_s`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from colocate.config.profile import load_profile
from colocate.core.latency import LatencyModel
from colocate.core.plan import Plan, PlanTable, build_plan_table
from colocate.core.policy.view import LoadView, Policy
from colocate.core.settings import EngineSettings

PROFILE = load_profile(Path(__file__).parents[2] / "configs/profiles/emulated-h200-roofline.yaml")
TICK_NS = 1_000_000
TICK_S = TICK_NS / 1e9


def h200_settings(**changes: Any) -> EngineSettings:
    fixed = {"num_blocks": 40_000, "block_size": 16, "max_num_seqs": 256, "max_num_batched_tokens": 8192}
    return EngineSettings(**{**fixed, "max_queue": 100, "total_units": 132, "unit_granularity": 8, **changes})


def h200_table() -> PlanTable:
    return build_plan_table(132, 8)


@dataclass(slots=True)
class Job:
    arrival_ns: int
    num_prompt_tokens: int
    num_output_tokens: int
    prefill_left: float = 0.0
    num_tokens: int = 0
    first_ns: int = 0
    last_ns: int = 0

    @property
    def ttft_s(self) -> float:
        return (self.first_ns - self.arrival_ns) / 1e9

    @property
    def tpot_s(self) -> float:
        return (self.last_ns - self.first_ns) / 1e9 / max(self.num_tokens - 1, 1)


@dataclass(slots=True)
class Plant:
    """`jobs` ascend by arrival. Biases are true seconds over the formula's."""

    jobs: Iterable[Job]
    max_rows: int = 256
    ttft_s: float | None = 1.0
    tpot_s: float = 0.05
    switch_s: float = 0.0
    prefill_bias: float = 1.0
    decode_bias: Callable[[Plan], float] = lambda plan: 1.0
    learns: LatencyModel | None = None  # sees every true step

    table: PlanTable = field(default_factory=h200_table)
    truth: LatencyModel = field(default_factory=lambda: LatencyModel(PROFILE))
    done: list[Job] = field(default_factory=list)
    borders: list[tuple[int, Plan]] = field(default_factory=list)  # moves between plans that serve both phases
    num_switches: int = 0
    prefilling: Job | None = None
    rows: list[Job] = field(default_factory=list)
    waiting: deque[Job] = field(default_factory=deque)
    step_left: float = 1.0
    stall_s: float = 0.0

    def run(self, policy: Policy[Any], seconds: float) -> Plant:
        arrivals = deque(self.jobs)
        plan, state = policy.first, policy.start()
        for now_ns in range(0, int(seconds * 1e9), TICK_NS):
            while arrivals and arrivals[0].arrival_ns <= now_ns:
                self.waiting.append(arrivals.popleft())
            if self.prefilling is None and self.waiting and len(self.rows) < self.max_rows:
                self.prefilling = self.waiting.popleft()
                self.prefilling.prefill_left = 1.0
            wish, state = policy.decide(state, self._view(now_ns, plan))
            if wish is not plan:
                self._switched(now_ns, wish)
                plan = wish
            self._advance(now_ns, plan)
        return self

    def _view(self, now_ns: int, plan: Plan) -> LoadView:
        pending = list(self.waiting)
        tokens = float(sum(job.num_prompt_tokens for job in pending))
        if self.prefilling is not None:
            pending.append(self.prefilling)
            tokens += self.prefilling.num_prompt_tokens * self.prefilling.prefill_left
        slack_s = None
        if pending and self.ttft_s is not None:
            slack_s = self.ttft_s - (now_ns - min(job.arrival_ns for job in pending)) / 1e9
        row_slack_s = min(
            ((job.first_ns - now_ns) / 1e9 + job.num_tokens * self.tpot_s for job in self.rows), default=None
        )
        return LoadView(
            now_ns=now_ns,
            current=plan,
            current_since_ns=0,
            prefill_busy=self.prefilling is not None,
            decode_busy=bool(self.rows),
            num_rows=len(self.rows),
            sum_context=sum(job.num_prompt_tokens + job.num_tokens for job in self.rows),
            num_waiting=len(self.waiting),
            prefill_tokens=int(tokens),
            prefill_pairs=tokens * tokens / 2 / max(len(pending), 1),
            ttft_slack_s=slack_s,
            tpot_target_s=self.tpot_s if self.rows else None,
            tpot_slack_s=row_slack_s,
            admission_blocked=bool(self.waiting) and len(self.rows) >= self.max_rows,
            prediction_error=max(self.learns.mean_error.values()) if self.learns else 0.0,
        )

    def _switched(self, now_ns: int, plan: Plan) -> None:
        self.num_switches += 1
        self.stall_s = self.switch_s
        if plan.prefill_units and plan.decode_units and (not self.borders or self.borders[-1][1] is not plan):
            self.borders.append((now_ns, plan))

    def _advance(self, now_ns: int, plan: Plan) -> None:
        if self.stall_s > 0.0:
            self.stall_s -= TICK_S
            return
        both = self.prefilling is not None and bool(self.rows)
        job = self.prefilling
        if job is not None and plan.prefill_units:
            n = job.num_prompt_tokens
            peer = plan.decode_units if both else 0
            seconds = self.truth.prefill_s(plan.prefill_units, n, n * n / 2, peer) * self.prefill_bias
            job.prefill_left -= TICK_S / seconds
            if job.prefill_left <= 0.0:
                job.first_ns = job.last_ns = now_ns
                job.num_tokens = 1
                self.rows.append(job)
                self.prefilling = None
        if self.rows and plan.decode_units:
            self._decode(now_ns, plan, plan.prefill_units if both else 0)

    def _decode(self, now_ns: int, plan: Plan, peer: int) -> None:
        context = sum(row.num_prompt_tokens + row.num_tokens for row in self.rows)
        seconds = self.truth.decode_s(plan.decode_units, context, len(self.rows), peer) * self.decode_bias(plan)
        self.step_left -= TICK_S / seconds
        if self.step_left > 0.0:
            return
        self.step_left += 1.0
        if self.learns is not None:
            predicted_s = self.learns.decode_s(plan.decode_units, context, len(self.rows), peer)
            self.learns.observe("decode", predicted_s, seconds)
        for row in self.rows:
            row.num_tokens += 1
            row.last_ns = now_ns
        self.done += [row for row in self.rows if row.num_tokens >= row.num_output_tokens]
        self.rows = [row for row in self.rows if row.num_tokens < row.num_output_tokens]

    @property
    def num_good(self) -> int:
        """Jobs that met both targets."""
        ttft_s = float("inf") if self.ttft_s is None else self.ttft_s
        return sum(job.ttft_s <= ttft_s and job.tpot_s <= self.tpot_s for job in self.done)


def jobs_every(gap_s: float, seconds: float, num_prompt_tokens: int, num_output_tokens: int) -> list[Job]:
    return [
        Job(int(index * gap_s * 1e9), num_prompt_tokens, num_output_tokens) for index in range(int(seconds / gap_s))
    ]
