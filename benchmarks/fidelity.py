"""How far the simulator is from the real thing: the same workload, live over HTTP and simulated, arm by arm.

    python benchmarks/fidelity.py emulated [--slow 4] [--seconds 50] [--quick]   132 emulated units, real processes
    python benchmarks/fidelity.py cpu [--budget 2m] [--seconds 45] [--quick]     30M random model on two cores

`emulated`: the device is its profile, so what differs is the runtime's own: processes, messages, HTTP. It runs in slow
motion (live_study/slowed.py), so that two cores are not the bottleneck. `cpu`: the profile is measured first, in the
same session, so its error is in the difference as well, and so is the host's work, which takes the same two cores.
The target is 10% on medians; what is printed and written is what came out.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import msgspec
from live_study.compare import Comparison, compare, median_distances, orders
from live_study.cpu import cpu_settings, cpu_site, cpu_workload, profile_about
from live_study.emulated import emulated_settings, emulated_site
from live_study.loads import live_loads
from live_study.pair import Site, run_live, run_simulated
from live_study.slowed import slowed_workload
from live_study.tables import print_comparisons, print_distances, print_host, print_orders
from machine import describe_machine

from colocate.sim.settings import SimSettings
from colocate.workload.rows import Workload

HERE = Path(__file__).parent
Arms = Sequence[tuple[str, dict[str, object]]]

EMULATED_ARMS: Arms = (
    ("static:p84d48", {"plan": "static:p84d48"}),
    ("elastic", {"plan": "elastic"}),
    ("slo", {"plan": "slo"}),
    ("on-demand", {"plan": "on-demand"}),
    ("shared", {"mode": "shared"}),
    ("chunked:1024", {"mode": "chunked", "max_num_batched_tokens": 1024}),
)
CPU_ARMS: Arms = (
    ("static:p1d1", {"plan": "static:p1d1"}),
    ("elastic", {"plan": "elastic"}),
    ("shared", {"mode": "shared"}),
    ("chunked:64", {"mode": "chunked", "max_num_batched_tokens": 64}),
    ("chunked:256", {"mode": "chunked", "max_num_batched_tokens": 256}),
)


# What the simulator is told of the runtime: one way between processes, and between two pieces of a worker's work. The
# first is its default, the others show how much hangs on it.
OVERHEADS_S = ((2e-4, 1e-4), (0.0, 0.0), (1e-3, 5e-4))


@dataclass
class Runs:
    """`by_overhead` holds the same live runs beside simulations that were told other overheads."""

    comparisons: list[Comparison] = field(default_factory=list)
    by_overhead: dict[str, list[Comparison]] = field(default_factory=dict)

    def overheads(self) -> dict[str, dict[str, dict[str, float]]]:
        return {told: median_distances(found) for told, found in self.by_overhead.items()}


def run_arms(load: str, site: Site, workload: Workload, settings: SimSettings, arms: Arms) -> Runs:
    runs = Runs()
    for name, changes in arms:
        arm = replace(settings, **changes)
        live = run_live(site, workload, arm)
        for message_s, turn_s in OVERHEADS_S:
            told = replace(arm, kv_tokens=live.kv_tokens, message_s=message_s, turn_s=turn_s)
            found = compare(name, load, settings.seed, live, run_simulated(workload, told))
            label = f"message {message_s * 1e3:g} ms, turn {turn_s * 1e3:g} ms"
            runs.by_overhead.setdefault(label, []).append(found)
        runs.comparisons.append(next(iter(runs.by_overhead.values()))[-1])
        done = runs.comparisons[-1]
        print(f"{load} {name}: attainment {done.attainment:.3f} / {done.attainment_simulated:.3f}", flush=True)
    return runs


def print_overheads(runs: Runs) -> None:
    print("\nmean |distance| where the simulator is told other overheads (the first are its own)")
    for told, found in runs.overheads().items():
        print(f"    {told:30}" + "   ".join(f"{name} {figure['mean']:.1%}" for name, figure in found.items()))


def emulated(options: argparse.Namespace, directory: Path) -> tuple[Runs, dict[str, object]]:
    slow, seconds = options.slow, options.seconds or (10.0 if options.quick else 50.0)
    load = live_loads(seconds / slow)["steady"]
    workload = slowed_workload(load.make(1.0, 0), slow)
    site, profile = emulated_site(directory, slow)
    arms = EMULATED_ARMS[2::3] if options.quick else EMULATED_ARMS
    found = run_arms(load.name, site, workload, emulated_settings(profile, load, slow), arms)
    about = {"profile": profile.name, "kind": profile.kind, "source": profile.source, "slow": slow}
    return found, about | {"rate": workload.rate, "seconds": seconds}


def cpu(options: argparse.Namespace, directory: Path) -> tuple[Runs, dict[str, object]]:
    budget = options.budget or ("30s" if options.quick else "2m")
    seconds = options.seconds or (8.0 if options.quick else 45.0)
    site, profile = cpu_site(directory, budget)
    workload = cpu_workload(seconds)
    arms = CPU_ARMS[::3] if options.quick else CPU_ARMS
    found = run_arms(workload.name, site, workload, cpu_settings(profile), arms)
    about = {"model": "30M random weights", "profile_budget": budget, "rate": workload.rate, "seconds": seconds}
    return found, about | profile_about(profile)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["emulated", "cpu"])
    parser.add_argument("--slow", type=float, default=4.0)
    parser.add_argument("--seconds", type=float, help="of load, per arm")
    parser.add_argument("--budget", help="of the profile of part cpu")
    parser.add_argument("--quick", action="store_true", help="two arms for a few seconds: that it works, not how well")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    machine = describe_machine()
    with tempfile.TemporaryDirectory(prefix="colocate-bench-") as directory:
        part = emulated if options.part == "emulated" else cpu
        runs, about = part(options, Path(directory))
    comparisons = runs.comparisons
    print()
    print_comparisons(comparisons)
    print_distances(comparisons)
    print_overheads(runs)
    found = orders(comparisons)
    print_orders(comparisons[0].load, found)
    print_host(comparisons)
    out = options.out or (None if options.quick else HERE / f"results/fidelity_{options.part}.json")
    if out:
        results = {
            "command": f"python benchmarks/fidelity.py {' '.join(sys.argv[1:])}",
            "machine": machine,
            "about": about,
            "distances": median_distances(comparisons),
            "distances_by_overhead": runs.overheads(),
            "orders": msgspec.to_builtins(found),
            "runs": msgspec.to_builtins(comparisons),
        }
        out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
