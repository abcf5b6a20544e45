"""A model of 30M random weights on two cores as both scripts serve it, and the profile that is measured first."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import msgspec
from random_model import SHAPES, write_random_model

from colocate.config.profile import DeviceProfile, load_profile
from colocate.config.slo import SloClass
from colocate.sim.settings import SimSettings
from colocate.workload.lengths import LognormalLengths
from colocate.workload.rows import Workload
from colocate.workload.segments import Segment, synthetic
from live_study.pair import Site

# Light: engine, frontend and client take the same two cores, and prefill on one of them is busy half the time.
RATE = 1.8
LENGTHS = LognormalLengths(256, 0.5, 40, 0.4, max_tokens=1024)
SLO = SloClass("small", ttft_s=0.6, tpot_s=0.03, itl_s=0.1)
MAX_NUM_SEQS = 16
MAX_BATCHED_TOKENS = 512
_FLAGS = ("--device", "cpu", "--units", "2", "--dtype", "float32", "--kv-memory", "1GiB")


def cpu_site(directory: Path, budget: str) -> tuple[Site, DeviceProfile]:
    """Write the model, measure it for `budget` as `colocate profile` does, and name what serves it."""
    model = write_random_model(directory / "30M", SHAPES["30M"], max_model_len=2048)
    path = directory / "cpu.json"
    profile = _measure(model, path, budget)
    return Site(model, (*_FLAGS, "--profile", str(path))), profile


def cpu_settings(profile: DeviceProfile) -> SimSettings:
    return SimSettings(
        profile=profile, slo_classes=(SLO,), max_num_seqs=MAX_NUM_SEQS, max_num_batched_tokens=MAX_BATCHED_TOKENS
    )


def cpu_workload(seconds: float, seed: int = 0) -> Workload:
    return synthetic("cpu-30M", [Segment(seconds, RATE, LENGTHS)], seed=seed)


def _measure(model: Path, out: Path, budget: str) -> DeviceProfile:
    sizes = ("--max-num-seqs", str(MAX_NUM_SEQS), "--max-num-batched-tokens", str(MAX_BATCHED_TOKENS))
    flags = (*_FLAGS, *sizes, "--budget", budget, "--out", str(out), "--log-level", "warning")
    command = [sys.executable, "-m", "colocate", "profile", str(model), *flags]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"colocate profile failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    print(done.stdout)
    return load_profile(out)


def profile_about(profile: DeviceProfile) -> dict[str, object]:
    """What the profile says of its own quality."""
    return {
        "errors": msgspec.to_builtins(profile.errors),
        "noise": msgspec.to_builtins(profile.noise),
        "contention": msgspec.to_builtins(profile.contention),
    }
