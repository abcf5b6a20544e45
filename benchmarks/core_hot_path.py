"""CPU time of the pure core at 256 running and 10,000 waiting requests, against the budget of the design.

    python benchmarks/core_hot_path.py [--out benchmarks/results/core_hot_path.json]

Budget: 100 microseconds for an O(1) event, 2 microseconds per row for a step report. The floor of a row is what Python
needs to build the one OutputItem that leaves for the frontend; it is measured in the same run. A second run with no one
waiting shows that nothing scans the queue. "plain" is first come first served under `elastic`; "full" has SLO classes,
the policy `slo` with its guards and `on-demand` as its shadow, `sjf-window`, and token throttling.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from machine import describe_machine

from colocate.config.profile import load_profile
from colocate.core.engine import Engine
from colocate.core.settings import EngineSettings
from colocate.messages.client import Abort, OutputItem, Submit
from colocate.messages.control import PlanApplied, Tick, WorkerHello
from colocate.messages.decode import StepReport, StepRow
from colocate.messages.prefill import PrefillDone, PrefillRowDone
from colocate.messages.sampling import SamplingParams
from colocate.messages.slo import SloClass
from colocate.types import Role

PROFILE = Path(__file__).parents[1] / "configs/profiles/emulated-h200-roofline.yaml"
NUM_RUNNING = 256
BUDGET_EVENT_US = 100.0
BUDGET_ROW_US = 2.0


class Bench:
    """An engine with its standing batch full and `num_waiting` requests behind it."""

    def __init__(self, num_waiting: int, features: dict[str, Any]) -> None:
        settings = EngineSettings(
            **features,
            num_blocks=40_000,
            block_size=16,
            max_num_seqs=NUM_RUNNING,
            max_num_batched_tokens=8192,
            max_queue=100_000,
            total_units=132,
            unit_granularity=8,
        )
        self.engine = Engine(settings)
        self.now_ns = 1
        self.next_id = 1
        for role in (Role.PREFILL, Role.DECODE):
            self.handle(WorkerHello(role, 1, 1, 1))
        for _ in range(NUM_RUNNING):
            self.submit()
        while len(self.engine.decode.rows) < NUM_RUNNING:
            self.prefill_done()
        for _ in range(num_waiting):
            self.submit()

    def handle(self, event: object) -> list:
        self.now_ns += 1000
        return self.engine.handle(event, self.now_ns)  # type: ignore[arg-type]

    def submit(self) -> None:
        params = SamplingParams(max_tokens=100_000)
        self.handle(Submit(self.next_id, list(range(64)), params, self.now_ns))
        self.next_id += 1

    def prefill_done(self) -> None:
        batch = self.engine.prefill.batches[0]
        rows = [PrefillRowDone(chunk.request.request_id, chunk.incarnation, 7) for chunk in batch.chunks]
        self.handle(PrefillDone(batch.batch_id, rows, 0, 0, 0))

    def step_report(self) -> StepReport:
        rows = [StepRow(request.request_id, request.incarnation, 7) for request in self.engine.decode.rows.values()]
        return StepReport(1, rows)


def timed_us(action: Callable[[], object], repetitions: int) -> list[float]:
    samples = []
    for _ in range(repetitions):
        started = time.perf_counter_ns()
        action()
        samples.append((time.perf_counter_ns() - started) / 1e3)
    return samples


def summary(samples: list[float]) -> dict[str, float]:
    ordered = sorted(samples)
    return {"median_us": statistics.median(ordered), "p99_us": ordered[int(len(ordered) * 0.99)]}


def measure(num_waiting: int, features: dict[str, Any], repetitions: int) -> dict[str, dict[str, float]]:
    bench = Bench(num_waiting, features)
    results = {"tick": summary(timed_us(lambda: bench.handle(Tick()), repetitions))}
    results["submit"] = summary(timed_us(bench.submit, repetitions))
    results["plan_applied"] = summary(timed_us(lambda: bench.handle(PlanApplied(Role.DECODE, 0, 1)), repetitions))

    def abort_waiting() -> None:
        bench.handle(Abort([bench.next_id - 1]))
        bench.next_id -= 1

    results["abort_waiting"] = summary(timed_us(abort_waiting, repetitions))
    report = bench.step_report()
    per_row = [sample / NUM_RUNNING for sample in timed_us(lambda: bench.handle(report), repetitions)]
    results["step_report_per_row"] = summary(per_row)
    return results


def floor_row_us(repetitions: int) -> float:
    """Building one OutputItem and appending one token: what a row costs at the least."""
    tokens: list[int] = []
    samples = []
    for _ in range(repetitions):
        started = time.perf_counter_ns()
        items = []
        for _ in range(NUM_RUNNING):
            tokens.append(7)
            items.append(OutputItem(1, [7], None, [], [], None))
        samples.append((time.perf_counter_ns() - started) / 1e3 / NUM_RUNNING)
    return statistics.median(samples)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=1000)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    full: dict[str, Any] = {
        "plan": "slo",
        "shadow": "on-demand",
        "discipline": "sjf-window",
        "admission": "throttle",
        "slo_classes": (SloClass("interactive", 0.5, 0.05, itl_s=0.1), SloClass("batch")),
        "latency": load_profile(PROFILE),
    }
    results: dict[str, Any] = {
        "machine": describe_machine(),
        "running": NUM_RUNNING,
        "floor_row_us": floor_row_us(options.repetitions),
    }
    for name, features in (("plain", {}), ("full", full)):
        crowded, empty = (measure(number, features, options.repetitions) for number in (10_000, 0))
        results[name] = {"waiting_10000": crowded, "waiting_0": empty}
        print(f"{name + ': event':22} {'median us':>10} {'p99 us':>8} {'events/s':>9} {'budget us':>9}")
        for event, values in crowded.items():
            budget = BUDGET_ROW_US if event == "step_report_per_row" else BUDGET_EVENT_US
            per_event_us = values["median_us"] * (NUM_RUNNING if event == "step_report_per_row" else 1)
            verdict = "ok" if values["median_us"] <= budget else "OVER"
            print(
                f"{event:22} {values['median_us']:10.2f} {values['p99_us']:8.2f} {1e6 / per_event_us:9,.0f} "
                f"{budget:9.0f}   {verdict}"
            )
        row, alone = crowded["step_report_per_row"]["median_us"], empty["step_report_per_row"]["median_us"]
        print(f"step report with 10,000 waiting / with none: {row / alone:.2f}x\n")
    print(f"floor of a row: {results['floor_row_us']:.2f} us")
    if options.out:
        options.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
