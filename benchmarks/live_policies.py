"""Policies live: real processes and HTTP, a steady, a bursty and a phase-shifting load, beside what the simulator says.

    python benchmarks/live_policies.py [--slow 1] [--native-seconds 10] [--seeds 2] [--quick]

On the emulated device of 132 units, in slow motion (live_study/slowed.py): the best static split that the simulator
finds for each load, `elastic`, `shared`, `chunked` (1,024), `slo` and `on-demand`, each at the same fixed rate, where
the arms differ. Then a small run on the CPU device with a 30M model, which shows that the same works there and says
nothing about controllers: two cores have one split.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
from live_study.compare import Comparison, compare, median_distances, orders
from live_study.cpu import cpu_settings, cpu_site, cpu_workload
from live_study.emulated import emulated_settings, emulated_site
from live_study.loads import live_loads
from live_study.pair import run_live, run_simulated
from live_study.slowed import slowed_workload
from live_study.tables import print_comparisons, print_distances, print_host, print_orders
from machine import describe_machine
from policy_study.arms import Arm, chunked, dynamic_arms, static_arms
from policy_study.loads import Load

from colocate.config.profile import DeviceProfile
from colocate.sim.run import simulate
from colocate.workload.rows import Workload

HERE = Path(__file__).parent
LOADS = ("steady", "bursty", "shifting")
OTHER_ARMS = (
    Arm("elastic", "elastic", {"plan": "elastic"}),
    Arm("shared", "shared", {"mode": "shared"}),
    Arm("chunked:1024", "chunked", chunked(1024)),
    *dynamic_arms(),
)
CPU_ARMS = (Arm("static:p1d1", "static", {"plan": "static:p1d1"}), Arm("slo", "dynamic", {"plan": "slo"}))
NOTE = "CPU device: two cores have one split, so this says nothing about controllers"


@dataclass(frozen=True, slots=True)
class Case:
    """One load as it is offered: in slow motion, one workload per seed."""

    load: Load
    workloads: Sequence[Workload]


def make_case(load: Load, options: argparse.Namespace) -> Case:
    return Case(load, [slowed_workload(load.make(1.0, seed), options.slow) for seed in range(options.seeds)])


def best_static(case: Case, profile: DeviceProfile, slow: float) -> tuple[Arm, dict[str, float]]:
    """The split with the highest mean attainment in the simulator; of equals the one in the middle. And all values."""
    settings = replace(emulated_settings(profile, case.load, slow), truth_error=0.0)
    values: dict[str, float] = {}
    arms = static_arms(profile)
    for arm in arms:
        runs = [simulate(workload, replace(settings, **arm.settings)) for workload in case.workloads]
        values[arm.name] = statistics.fmean(run.summary.attainment for run in runs)
    best = [arm for arm in arms if values[arm.name] == max(values.values())]
    return best[len(best) // 2], values


def run_emulated(options: argparse.Namespace, directory: Path) -> tuple[list[Comparison], dict[str, dict[str, float]]]:
    site, profile = emulated_site(directory, options.slow)
    found: list[Comparison] = []
    statics: dict[str, dict[str, float]] = {}
    for name in options.loads:
        case = make_case(live_loads(options.native_seconds)[name], options)
        best, statics[name] = best_static(case, profile, options.slow)
        for seed, workload in enumerate(case.workloads):
            for arm in (best, *OTHER_ARMS):
                if options.arms and arm.group not in options.arms:
                    continue
                settings = replace(emulated_settings(profile, case.load, options.slow, seed), **arm.settings)
                live = run_live(site, workload, settings)
                simulated = run_simulated(workload, replace(settings, kv_tokens=live.kv_tokens))
                found.append(compare(arm.name, name, seed, live, simulated))
                say(found[-1])
    return found, statics


def run_cpu(options: argparse.Namespace, directory: Path) -> list[Comparison]:
    """Live only against its own simulation, on a quickly measured profile."""
    site, profile = cpu_site(directory, options.cpu_budget)
    workload = cpu_workload(options.cpu_seconds)
    found: list[Comparison] = []
    for arm in CPU_ARMS:
        settings = replace(cpu_settings(profile), **arm.settings)
        live = run_live(site, workload, settings)
        simulated = run_simulated(workload, replace(settings, kv_tokens=live.kv_tokens))
        found.append(compare(arm.name, "cpu-30M", 0, live, simulated))
        say(found[-1])
    return found


def say(each: Comparison) -> None:
    print(
        f"{each.load} seed {each.seed} {each.arm}: {each.num_requests} requests, attainment {each.attainment:.3f} "
        f"live, {each.attainment_simulated:.3f} simulated; {each.live.num_switches} switches",
        flush=True,
    )


def print_attainment(comparisons: Sequence[Comparison]) -> None:
    """The answer: attainment and goodput of every arm on every load, averaged over seeds, live / simulated."""
    print(f"\n{'load':14}{'arm':18}{'attainment':>18}{'goodput /s':>18}{'of the best static, live':>28}")
    for load in dict.fromkeys(each.load for each in comparisons):
        mine = [each for each in comparisons if each.load == load]
        base = 0.0
        for arm in dict.fromkeys(each.arm for each in mine):
            runs = [each for each in mine if each.arm == arm]
            shares = [
                statistics.fmean(values)
                for values in zip(*((r.attainment, r.attainment_simulated) for r in runs), strict=True)
            ]
            rate = statistics.fmean(run.live.client.offered_rate for run in runs)
            base = base or shares[0] * rate
            goodput = f"{shares[0] * rate:.3f} / {shares[1] * rate:.3f}"
            ratio = f"{shares[0] * rate / base:.2f}" if base else "-"
            print(f"{load:14}{arm:18}{shares[0]:>9.3f} / {shares[1]:.3f} {goodput:>18}{ratio:>28}")


def main() -> None:
    options = parse_options()
    machine = describe_machine()
    with tempfile.TemporaryDirectory(prefix="colocate-bench-") as directory:
        comparisons, statics = run_emulated(options, Path(directory))
        on_cpu = [] if options.no_cpu else run_cpu(options, Path(directory))
    print_attainment(comparisons)
    print()
    print_comparisons(comparisons)
    print_distances(comparisons)
    found = {load: orders([each for each in comparisons if each.load == load]) for load in statics}
    for load, each in found.items():
        print_orders(load, each)
    print_host(comparisons)
    if on_cpu:
        print(f"\n{NOTE}")
        print_comparisons(on_cpu)
        print_host(on_cpu)
    out = options.out or (None if options.quick else HERE / "results/live_policies.json")
    if out:
        results = {
            "command": f"python benchmarks/live_policies.py {' '.join(sys.argv[1:])}",
            "machine": machine,
            "slow": options.slow,
            "loads": {name: load.about for name, load in live_loads(options.native_seconds).items()},
            "static_in_the_simulator": statics,
            "distances": median_distances(comparisons),
            "orders": msgspec.to_builtins(found),
            "runs": msgspec.to_builtins(comparisons),
            "cpu": {"note": NOTE, "runs": msgspec.to_builtins(on_cpu)},
        }
        out.write_text(json.dumps(results, indent=1) + "\n")


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slow", type=float, default=1.0)
    parser.add_argument("--native-seconds", type=float, default=10.0, help="of load per run, at the device's own speed")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--loads", nargs="*", default=list(LOADS), choices=list(LOADS))
    parser.add_argument("--arms", nargs="*", help="groups of arms: static elastic shared chunked dynamic")
    parser.add_argument("--cpu-seconds", type=float, default=30.0)
    parser.add_argument("--cpu-budget", default="1m")
    parser.add_argument("--no-cpu", action="store_true")
    parser.add_argument("--quick", action="store_true", help="two arms for a few seconds: that it works, not how well")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if options.quick:
        options.native_seconds, options.seeds, options.no_cpu = 4.0, 1, True
        options.arms = options.arms or ["static", "chunked"]
    return options


if __name__ == "__main__":
    main()
