"""Time of one decision of the controller, as a ratio to the budget of the design (20 microseconds).

    python benchmarks/policy_decision.py [--out benchmarks/results/policy_decision.json]

`full` judges every candidate and asks every guard; `again` is the early answer for a load that has not moved, which
is what most events get.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

from machine import describe_machine
from msgspec.structs import replace

from colocate.config.profile import load_profile
from colocate.core.latency import LatencyModel
from colocate.core.policy import Controller, LoadView
from colocate.core.settings import EngineSettings

BUDGET_US = 20.0
PROFILE = Path(__file__).parents[1] / "configs/profiles/emulated-h200-roofline.yaml"


def controller(word: str, shadow: str | None) -> Controller:
    settings = EngineSettings(
        num_blocks=40_000,
        block_size=16,
        max_num_seqs=256,
        max_num_batched_tokens=8192,
        max_queue=100,
        total_units=132,
        unit_granularity=8,
        plan=word,
        shadow=shadow,
    )
    return Controller(settings, settings.plan_table(), LatencyModel(load_profile(PROFILE)))


def views(held: Controller, gap_ns: int, repetitions: int) -> list[LoadView]:
    """Loads that swing between light and heavy when `gap_ns` asks for full decisions, the same load otherwise."""
    light = LoadView(
        now_ns=0,
        current=held.first,
        current_since_ns=0,
        prefill_busy=True,
        decode_busy=True,
        num_rows=64,
        sum_context=64_000,
        prefill_tokens=4000,
        prefill_pairs=8e6,
        ttft_slack_s=0.5,
        tpot_target_s=0.05,
        tpot_slack_s=0.02,
    )
    heavy = replace(light, num_rows=192, sum_context=300_000, prefill_tokens=40_000, prefill_pairs=8e7)
    swings = gap_ns > 1_000_000
    return [
        replace(heavy if swings and index // 8 % 2 else light, now_ns=10**9 + index * gap_ns)
        for index in range(repetitions)
    ]


def measure(word: str, shadow: str | None, gap_ns: int, repetitions: int) -> dict[str, float]:
    held = controller(word, shadow)
    samples = []
    for view in views(held, gap_ns, repetitions):
        started = time.perf_counter_ns()
        held.decide(view)
        samples.append((time.perf_counter_ns() - started) / 1e3)
    ordered = sorted(samples)
    median_us, p99_us = statistics.median(ordered), ordered[int(len(ordered) * 0.99)]
    return {"median_us": median_us, "p99_us": p99_us, "median_of_budget": median_us / BUDGET_US}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--repetitions", type=int, default=20_000)
    arguments = parser.parse_args()
    results = {}
    for word, shadow in (("elastic", None), ("slo", None), ("on-demand", None), ("slo", "on-demand")):
        for kind, gap_ns in (("full", 5_000_000), ("again", 10)):
            name = f"{word}{f' with shadow {shadow}' if shadow else ''}, {kind}"
            results[name] = measure(word, shadow, gap_ns, arguments.repetitions)
            print(f"{name:36s}", "  ".join(f"{key} {value:6.2f}" for key, value in results[name].items()))
    num_candidates = len(controller("slo", None).candidates)
    report = {
        "machine": describe_machine(),
        "budget_us": BUDGET_US,
        "num_candidates": num_candidates,
        "results": results,
    }
    if arguments.out is not None:
        arguments.out.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
