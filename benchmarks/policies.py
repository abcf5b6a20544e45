"""Every policy against every static plan, `elastic`, `shared` and swept `chunked`, on frozen loads, in the simulator.

    python benchmarks/policies.py [--seeds 5] [--jobs 2] [--loads chat-steady,...] [--out FILE]

All arms run on seed 0; the dynamic policies, the bound, and of every family of baselines the best few run on the other
seeds. Goodput is searched per arm, load and seed (policy_study/search.py). An interrupted study goes on where it stood.
Writes the points as JSON and the report beside it as Markdown.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path

import msgspec
from machine import describe_machine
from policy_study.arms import BOUND, Arm, ablation_arms, baseline_arms, dynamic_arms, sensitivity_arms
from policy_study.loads import LOADS, Load
from policy_study.report import BASELINES, markdown
from policy_study.search import Point, Task, find_goodput

from colocate.config.profile import load_profile

HERE = Path(__file__).parent
PROFILE = HERE.parent / "configs/profiles/emulated-h200-roofline.yaml"
# Of every family, how many arms go on to the other seeds: the winner of one seed may not be the winner of all.
NUM_FINALISTS = {"static": 3, "elastic": 2, "shared": 1, "chunked": 2}
ABLATION_LOADS = ("shift-slow", "chat-bursty")
ABLATION_SEEDS = 3
SENSITIVITY_ARMS = ("slo", "on-demand", "static:p100d32", "elastic:p108d24", "shared", "chunked:1024", "chunked:2048")
SENSITIVITY_LOADS = ("shift-slow", "chat-strict")


def show_slo(load: Load) -> str:
    slo = load.slo
    targets = (
        ("TTFT", slo.ttft_s, " ms"),
        ("TTFT", slo.ttft_per_token_s, " ms/prompt token"),
        ("TPOT", slo.tpot_s, " ms"),
        ("ITL p99", slo.itl_s, " ms"),
    )
    return ", ".join(f"{name} {target_s * 1e3:g}{unit}" for name, target_s, unit in targets if target_s is not None)


class Study:
    """Runs tasks in a pool and keeps every point in a journal, so that nothing is run twice."""

    def __init__(self, journal: Path, jobs: int, profile: Path, base: dict[str, object]) -> None:
        self._journal = journal
        self._jobs = jobs
        self._profile = profile
        self._base = base
        self.points: dict[tuple[str, str, int], Point] = {}
        if journal.exists():
            for line in journal.read_text().splitlines():
                point = Point(**json.loads(line))
                self.points[(point.load, point.arm, point.seed)] = point

    def run(self, wanted: Sequence[tuple[Load, Arm, int]], about: str) -> None:
        tasks = [
            Task(load.name, arm, seed, self._guess(load, arm), self._profile, self._base)
            for load, arm, seed in wanted
            if (load.name, arm.name, seed) not in self.points
        ]
        started_s = time.monotonic()
        with ProcessPoolExecutor(self._jobs) as pool, self._journal.open("a") as journal:
            for done, point in enumerate(pool.map(find_goodput, tasks), 1):
                self.points[(point.load, point.arm, point.seed)] = point
                journal.write(json.dumps(asdict(point)) + "\n")
                journal.flush()
                elapsed_s = time.monotonic() - started_s
                left_s = elapsed_s / done * (len(tasks) - done)
                print(
                    f"{about} {done}/{len(tasks)}, {left_s:.0f} s left: {point.load} {point.arm} seed {point.seed} "
                    f"{point.rate:.2f}/s ({point.num_runs} runs)",
                    flush=True,
                )

    def _guess(self, load: Load, arm: Arm) -> int:
        """Where to begin: what this arm reached on another seed, or what anybody reached on this load."""
        own = [point.level for point in self.points.values() if (point.load, point.arm) == (load.name, arm.name)]
        whole = arm.name.partition(",")[0].partition(" @")[0]
        alike = [point.level for point in self.points.values() if (point.load, point.arm) == (load.name, whole)]
        return (own or alike or [0])[0]


def finalists(study: Study, load: Load, arms: Sequence[Arm]) -> list[Arm]:
    """The best few of every family on seed 0, by goodput."""
    chosen: list[Arm] = []
    for group in BASELINES:
        members = [arm for arm in arms if arm.group == group]
        members.sort(key=lambda arm: study.points[(load.name, arm.name, 0)].rate, reverse=True)
        chosen += members[: NUM_FINALISTS[group]]
    return chosen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--loads", default=",".join(load.name for load in LOADS))
    parser.add_argument("--profile", type=Path, default=PROFILE)
    parser.add_argument("--discipline", default="fcfs", help="of every arm but those of the ablation")
    parser.add_argument("--no-ablation", action="store_true")
    parser.add_argument("--out", type=Path, default=HERE / "results/policies.json")
    options = parser.parse_args()
    loads = [load for load in LOADS if load.name in options.loads.split(",")]
    profile = load_profile(options.profile)
    baselines, dynamic = baseline_arms(profile), [*dynamic_arms(), BOUND]
    ablation = [] if options.no_ablation else ablation_arms()
    study = Study(
        options.out.with_suffix(".journal.jsonl"), options.jobs, options.profile, {"discipline": options.discipline}
    )
    study.run([(load, arm, 0) for load in loads for arm in (*dynamic, *baselines)], "seed 0")
    study.run(
        [
            (load, arm, seed)
            for load in loads
            for arm in (*dynamic, *finalists(study, load, baselines))
            for seed in range(1, options.seeds)
        ],
        "finalists",
    )
    study.run(
        [
            (load, arm, seed)
            for load in loads
            if load.name in ABLATION_LOADS
            for arm in (*ablation, *(arm for arm in baselines if arm.name in ("chunked:1024", "shared")))
            for seed in range(min(ABLATION_SEEDS, options.seeds))
        ],
        "ablation",
    )
    few = [arm for arm in (*dynamic_arms(), *baselines) if arm.name in SENSITIVITY_ARMS]
    sensitivity = [] if options.no_ablation else sensitivity_arms(few)
    study.run(
        [
            (load, arm, seed)
            for load in loads
            if load.name in SENSITIVITY_LOADS
            for arm in sensitivity
            for seed in range(min(ABLATION_SEEDS, options.seeds))
        ],
        "sensitivity",
    )
    results = {
        "machine": describe_machine(),
        "profile": profile.name,
        "kind": profile.kind,
        "source": profile.source,
        "seeds": options.seeds,
        "discipline": options.discipline,
        "loads": [
            {"name": load.name, "kind": load.kind, "slo": show_slo(load), "rate": load.rate, "about": load.about}
            for load in loads
        ],
        "arms": [
            {"name": arm.name, "group": arm.group, "settings": msgspec.to_builtins(arm.settings)}
            for arm in (*baselines, *dynamic, *ablation, *sensitivity)
        ],
        "points": [asdict(point) for point in study.points.values() if point.load in {load.name for load in loads}],
    }
    options.out.write_text(json.dumps(results, indent=1) + "\n")
    report = markdown(results)
    options.out.with_suffix(".md").write_text(report)
    print(report)


if __name__ == "__main__":
    main()
