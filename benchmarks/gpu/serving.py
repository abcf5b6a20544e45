"""End to end over HTTP, random weights of a published shape: every way of sharing the device, on the same loads.

Arms: the dynamic policies, `shared`, `chunked` by chunk size, and every armed split, pinned in turn in one daemon. What
matters most runs first; what the time does not reach is missing from the table and not guessed. Prefix caches hold
nothing of these prompts: each arm draws its own.
"""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from server import Server

from gpu.live import LOADS, drive, make_load, pin, serving, show_row, split_names
from gpu.setting import Setting
from gpu.sheet import Sheet


@dataclass(frozen=True, slots=True)
class Arm:
    """A daemon's flags. `sweeps_splits`: after its own policy, each of its splits is pinned and measured, too."""

    name: str
    flags: tuple[str, ...]
    sweeps_splits: bool = False


def arms(setting: Setting) -> list[Arm]:
    profile = ("--latency-profile", str(setting.profile)) if setting.profile else ()
    chunked = [
        Arm(f"chunked:{size}", ("--mode", "chunked", "--max-num-batched-tokens", str(size)))
        for size in setting.chunk_sizes
    ]
    first, rest = chunked[:2], chunked[2:]
    return [
        Arm("elastic", ("--plan", "elastic", *profile), sweeps_splits=True),
        *first,
        Arm("slo", ("--plan", "slo", *profile)),
        Arm("shared", ("--mode", "shared")),
        Arm("on-demand", ("--plan", "on-demand", *profile)),
        *rest,
    ]


def run(setting: Setting, sheet: Sheet, shape: str) -> None:
    model = setting.models / setting.names[int(shape)]
    sheet.put("model", setting.names[int(shape)])
    sheet.put("profile", str(setting.profile) if setting.profile else "roofline prior: no verdict on slo and on-demand")
    for arm in arms(setting):
        try:
            run_arm(setting, sheet, model, arm)
        except (RuntimeError, OSError) as error:  # a daemon that does not start costs its own arm
            sheet.add("failed", {"arm": arm.name, "error": str(error)[-3000:]})
            print(f"{arm.name} failed: {str(error)[-800:]}", flush=True)
    if not sheet.data.get("runs"):
        raise RuntimeError("no arm could be run")
    print()
    print("\n".join(attainment_lines(sheet.data["runs"])))


def run_arm(setting: Setting, sheet: Sheet, model: Path, arm: Arm) -> None:
    with serving(setting, model, *slo_flags(setting), *arm.flags) as server:
        measure(setting, sheet, server, arm.name)
        if not arm.sweeps_splits:
            return
        names = split_names(server.state())
        for name in names[:1] if setting.is_smoke else names:
            pin(server, name)
            measure(setting, sheet, server, f"static:{name}")


def slo_flags(setting: Setting) -> list[str]:
    """Classes of the loads: the policies and the queue see what will be judged."""
    slos = {LOADS[name].name: LOADS[name] for name in setting.loads}
    from live_study.pair import slo_text

    return list(itertools.chain.from_iterable(("--slo-class", slo_text(slo)) for slo in slos.values()))


def measure(setting: Setting, sheet: Sheet, server: Server, arm: str) -> None:
    for load, rate in cases(setting):
        workload = make_load(load, setting, rate)
        before = server.state()["switches"]["count"]
        _, row = drive(workload, server.port, setting, LOADS[load], seed=zlib.crc32(arm.encode()) % 100_000)
        state = server.state()
        about = {"arm": arm, "load": load, "rate": rate, "switches": state["switches"]["count"] - before}
        sheet.add("runs", about | row | {"switch_ms": state["switches"]["latency_ms"], "residency": state["residency"]})
        show_row(f"{load}@{rate:g}", arm, row)


def cases(setting: Setting) -> Iterator[tuple[str, float]]:
    return itertools.product(setting.loads, setting.rates)


def attainment_lines(runs: list[dict[str, Any]]) -> list[str]:
    """Per load: arms by attainment, then goodput, and each one's goodput over that of the best split."""
    lines = []
    for load, rate in dict.fromkeys((row["load"], row["rate"]) for row in runs):
        mine = [row for row in runs if (row["load"], row["rate"]) == (load, rate)]
        statics = [row["goodput"] for row in mine if row["arm"].startswith("static:")]
        lines.append(f"{load} at {rate:g} requests/s, SLO {mine[0]['slo']['name']}")
        for row in sorted(mine, key=lambda row: (-row["attainment"], -row["goodput"])):
            ratio = f"  {row['goodput'] / max(statics):.2f}x of the best split" if statics and max(statics) else ""
            lines.append(f"  {row['arm']:18} {row['attainment']:6.1%}  {row['goodput']:6.2f} good/s{ratio}")
    return lines


def draw(figure: Any, data: dict[str, Any]) -> None:
    runs = data.get("runs", [])
    cases_found = list(dict.fromkeys((row["load"], row["rate"]) for row in runs))
    panels = figure.subplots(1, len(cases_found), squeeze=False)[0]
    for axes, (load, rate) in zip(panels, cases_found, strict=True):
        mine = [row for row in runs if (row["load"], row["rate"]) == (load, rate)]
        axes.barh([row["arm"] for row in mine], [row["attainment"] for row in mine])
        axes.set(xlabel="SLO attainment", xlim=(0, 1.02), title=f"{load} at {rate:g}/s")
        axes.invert_yaxis()
