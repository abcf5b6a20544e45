"""Both phases at once on every pair of shares: `colocate profile`, whole, and what it says of contention.

The same keeper, workers and plan switches as in `serve`. The profile is written beside the results: `--profile` gives
it to the end-to-end sections, whose policies predict from it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from typing import Any

import msgspec

from colocate.config.profile import DeviceProfile, load_profile
from colocate.runtime.profiling.run import journal_of
from gpu.setting import Setting
from gpu.sheet import Sheet

_OUTPUT_BYTES = 4000


def run(setting: Setting, sheet: Sheet) -> None:
    out = setting.out / f"profile-{setting.names[0]}.json"
    sizes = (
        "--max-num-seqs",
        str(setting.max_num_seqs),
        "--max-num-batched-tokens",
        str(setting.max_num_batched_tokens),
    )
    memory = ("--kv-memory", "16MiB") if setting.is_smoke else ("--max-model-len", str(setting.max_model_len))
    common = ("--device", "cuda", "--load-format", "dummy", "--dtype", setting.dtype, "--log-level", "warning")
    asked = ("--budget", setting.profile_budget, "--out", str(out), "--no-resume")
    command = [sys.executable, "-m", "colocate", "profile", str(setting.model), *common, *sizes, *memory, *asked]
    sheet.put("command", command)
    # Every split has three setups of many states each: one is enough to see that it works.
    environment = {**os.environ, **({"COLOCATE_ARM": "p84d48"} if setting.is_smoke else {})}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    sheet.put("output", (done.stdout + done.stderr)[-_OUTPUT_BYTES:])
    if find_spec("scipy") is None:
        print(f"scipy is not installed: the measurements stay in {setting.out}, and are not fitted")
    journal = journal_of(out)
    if journal.exists():  # it is gone once a profile is written
        num_visits = len(journal.read_text().splitlines()) - 1
        sheet.put("visits_without_fit", num_visits)
        if setting.is_smoke and num_visits > 0:
            print(f"{num_visits} visits; the interpreter is too slow for as many as a fit needs")
            return
    if done.returncode != 0:
        raise RuntimeError(f"colocate profile ended with {done.returncode}:\n{(done.stdout + done.stderr)[-2000:]}")
    profile = load_profile(out)
    sheet.put("profile", str(out))
    sheet.put("contention", msgspec.to_builtins(profile.contention))
    sheet.put("errors", msgspec.to_builtins(profile.errors))
    sheet.put("slowdown", slowdowns(profile))
    print(f"{'prefill':>8} {'decode':>7} {'prefill slower by':>18} {'decode slower by':>17}")
    for each in profile.contention:
        print(f"{each.prefill_units:8} {each.decode_units:7} {each.prefill:17.2f}x {each.decode:16.2f}x")
    for error in profile.errors:
        print(
            f"fit of {error.phase}{' contended' if error.contended else ''}: p50 {error.p50:.1%}, p95 {error.p95:.1%}"
        )


def slowdowns(profile: DeviceProfile) -> list[dict[str, Any]]:
    """Of each measured state: seconds together over seconds alone of the same state and share, where both exist."""
    alone = {
        (each.phase, each.units, each.linear, each.pairs): each.seconds
        for each in profile.samples
        if not each.peer_units
    }
    rows = []
    for each in profile.samples:
        base = alone.get((each.phase, each.units, each.linear, each.pairs))
        if each.peer_units and base:
            row = {
                "phase": each.phase,
                "units": each.units,
                "peer_units": each.peer_units,
                "slower": each.seconds / base,
            }
            rows.append(row | {"linear": each.linear, "pairs": each.pairs})
    return rows


def draw(figure: Any, data: dict[str, Any]) -> None:
    found = data.get("contention")
    if not found:
        return
    axes = figure.subplots(1, 1)
    pairs = sorted(found, key=lambda each: (each["decode_units"], each["prefill_units"]))
    places = range(len(pairs))
    axes.bar([place - 0.2 for place in places], [each.get("prefill", 1.0) for each in pairs], 0.4, label="prefill")
    axes.bar([place + 0.2 for place in places], [each.get("decode", 1.0) for each in pairs], 0.4, label="decode")
    axes.set_xticks(list(places), [f"p{each['prefill_units']}\nd{each['decode_units']}" for each in pairs])
    axes.set(ylabel="seconds together / alone", ylim=0)
    axes.axhline(1.0, color="grey", linewidth=0.8)
    axes.legend()
