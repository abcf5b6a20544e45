"""How much faster than real time the simulator runs: ShareGPT-like lengths at 20 requests/s on an H200-sized device.

    python benchmarks/simulator_speed.py [--seconds 60] [--repeats 3] [--out benchmarks/results/simulator_speed.json]

Target: 100 times. One process, one core; CPU time is what counts, because the machine is shared. The engine's share is
measured in a run of its own, by CPU time around every event. Two loads: the device is overloaded by the lengths of the
trace (37,000 prompt tokens/s is all that the profile gives), so the same with a quarter of the prompt is there as well.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

from machine import describe_machine

from colocate.config.profile import load_profile
from colocate.config.slo import parse_slo_classes
from colocate.core.engine import Engine
from colocate.sim.run import simulate
from colocate.sim.settings import SimSettings
from colocate.workload.lengths import TraceLengths
from colocate.workload.read import read_lengths
from colocate.workload.rows import Workload
from colocate.workload.segments import Segment, synthetic

HERE = Path(__file__).parent
PROFILE = HERE.parent / "configs" / "profiles" / "emulated-h200-roofline.yaml"
RATE = 20.0
TARGET = 100.0
ARMS = {
    "slo": {"plan": "slo"},
    "elastic": {"plan": "elastic"},
    "static": {"plan": "static:p92d40"},
    "chunked": {"mode": "chunked"},
}


def loads(seconds: float) -> dict[str, Workload]:
    pairs = read_lengths(HERE / "traces" / "sharegpt_8k_lengths.csv")
    lighter = [(max(prompt // 4, 1), output) for prompt, output in pairs]
    return {
        name: synthetic(name, [Segment(seconds, RATE, TraceLengths(lengths))], seed=0)
        for name, lengths in (("sharegpt", pairs), ("sharegpt, prompts / 4", lighter))
    }


def measure(workload: Workload, settings: SimSettings, repeats: int) -> dict[str, float]:
    best_s = float("inf")
    for _ in range(repeats):
        started_s = time.process_time()
        result = simulate(workload, settings)
        best_s = min(best_s, time.process_time() - started_s)
    num_tokens = sum(record.output_tokens for record in result.records)
    return {
        "simulated_s": result.simulated_s,
        "cpu_s": best_s,
        "times_real_time": result.simulated_s / best_s,
        "output_tokens_per_simulated_s": num_tokens / result.simulated_s,
        "us_per_output_token": best_s / num_tokens * 1e6,
        "engine_share": engine_share(workload, settings),
    }


def engine_share(workload: Workload, settings: SimSettings) -> float:
    """Share of the CPU time that is the core's: `Engine.handle`, timed event by event."""
    handle, spent_ns = Engine.handle, 0

    def timed(engine: Engine, event: object, now_ns: int) -> list:
        nonlocal spent_ns
        started_ns = time.process_time_ns()
        commands = handle(engine, event, now_ns)  # type: ignore[arg-type]
        spent_ns += time.process_time_ns() - started_ns
        return commands

    Engine.handle = timed  # type: ignore[method-assign,assignment]
    try:
        started_ns = time.process_time_ns()
        simulate(workload, settings)
        return spent_ns / (time.process_time_ns() - started_ns)
    finally:
        Engine.handle = handle  # type: ignore[method-assign]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    classes = parse_slo_classes(["chat: ttft 1 s, tpot 50 ms"], "slo")
    base = {"profile": load_profile(PROFILE), "slo_classes": classes, "max_num_seqs": 256}
    figures: dict[str, dict[str, dict[str, float]]] = {}
    print(f"{'load':24} {'arm':8} {'times real time':>15} {'us/token':>9} {'tokens/s':>9} {'engine':>7}")
    for name, workload in loads(options.seconds).items():
        for arm, changes in ARMS.items():
            found = measure(workload, SimSettings(**base, **changes), options.repeats)  # type: ignore[arg-type]
            figures.setdefault(name, {})[arm] = found
            print(
                f"{name:24} {arm:8} {found['times_real_time']:15.0f} {found['us_per_output_token']:9.2f} "
                f"{found['output_tokens_per_simulated_s']:9.0f} {found['engine_share']:7.0%}"
            )
    if options.out:
        document = {"machine": describe_machine(), "rate": RATE, "target": TARGET, "figures": figures}
        options.out.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
