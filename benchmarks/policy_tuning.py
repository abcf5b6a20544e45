"""Where margins and guards of the dynamic policies were tuned: loads that `policies.py` never sees.

    python benchmarks/policy_tuning.py [--constant guards.MIN_GAIN=0.1 --constant guards.CALM=0.8]

Share of good requests per load, mean over two rates and two seeds. `--constant` overrides a constant of
`colocate/core/policy/<module>.py` for this run, so a setting can be compared with the shipped one.
"""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from colocate.config.profile import load_profile
from colocate.config.slo import SloClass
from colocate.sim.run import simulate
from colocate.sim.settings import SimSettings
from colocate.workload.lengths import LognormalLengths
from colocate.workload.rows import Workload
from colocate.workload.segments import Segment, phase_shifting, synthetic

PROFILE = Path(__file__).parents[1] / "configs/profiles/emulated-h200-roofline.yaml"
CLOSE = SloClass("close", ttft_s=0.4, tpot_s=0.04, itl_s=0.08)
FAR = SloClass("far", ttft_s=0.8, tpot_s=0.05, itl_s=0.1)


def _segments(duration_s: float, rate: float, lengths: LognormalLengths) -> Callable[[float], list[Segment]]:
    return lambda scale: [Segment(duration_s, rate * scale, lengths)]


def _shifting(scale: float) -> list[Segment]:
    lengths = (LognormalLengths(2500, 0.4, 48, 0.5), LognormalLengths(400, 0.6, 400, 0.5))
    return phase_shifting((7 * scale, 12 * scale), lengths, 24, 48)


LOADS: dict[str, tuple[SloClass, str, Callable[[float], list[Segment]]]] = {
    "steady": (CLOSE, "poisson", _segments(40, 9, LognormalLengths(1000, 0.9, 250, 0.7))),
    "long": (FAR, "poisson", _segments(40, 3, LognormalLengths(5000, 0.5, 150, 0.6))),
    "bursty": (FAR, "gamma:2", _segments(60, 4, LognormalLengths(1200, 0.8, 200, 0.7))),
    "shifting": (FAR, "poisson", _shifting),
}
SCALES, SEEDS = (1.0, 1.25), (1, 2)
ARMS: dict[str, dict[str, Any]] = {
    "slo": {"plan": "slo"},
    "slo, no guards": {"plan": "slo", "guards": ()},
    "slo, no hysteresis": {"plan": "slo", "guards": ("dwell", "decode-first", "fallback")},
    "on-demand": {"plan": "on-demand"},
    "elastic:p108d24": {"plan": "elastic:p108d24"},
    "static:p100d32": {"plan": "static:p100d32"},
    "static:p108d24": {"plan": "static:p108d24"},
}


def override(constants: list[str]) -> None:
    for constant in constants:
        name, _, value = constant.partition("=")
        module, _, attribute = name.partition(".")
        target = importlib.import_module(f"colocate.core.policy.{module}")
        setattr(target, attribute, type(getattr(target, attribute))(float(value)))


def attainment(task: tuple[str, str, float, int, list[str]]) -> float:
    arm, name, scale, seed, constants = task
    override(constants)
    slo, arrivals, segments = LOADS[name]
    workload: Workload = synthetic(name, segments(scale), seed=seed, arrivals=arrivals)
    settings = SimSettings(
        profile=load_profile(PROFILE), kv_tokens=800_000, max_num_seqs=512, slo_classes=(slo,), drain_s=20, seed=seed,
        **ARMS[arm],
    )  # fmt: skip
    return simulate(workload, settings).summary.attainment


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--constant", action="append", default=[], metavar="MODULE.NAME=VALUE")
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args()
    print("a roofline prior, no verdict" + "".join(f"; {constant}" for constant in options.constant))
    print(f"{'arm':20}" + "".join(f"{name:>10}" for name in LOADS) + f"{'mean':>10}")
    with ProcessPoolExecutor(options.jobs) as pool:
        for arm in ARMS:
            tasks = [(arm, name, scale, seed, options.constant) for name in LOADS for scale in SCALES for seed in SEEDS]
            shares = list(pool.map(attainment, tasks))
            per_load = len(SCALES) * len(SEEDS)
            means = [sum(shares[at : at + per_load]) / per_load for at in range(0, len(shares), per_load)]
            print(f"{arm:20}" + "".join(f"{mean:10.3f}" for mean in means) + f"{sum(means) / len(means):10.4f}")


if __name__ == "__main__":
    main()
