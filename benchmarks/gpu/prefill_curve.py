"""A prefill forward by share and length: seconds of all its layers and the logits, beside its floor."""

from __future__ import annotations

from typing import Any

from colocate.model.config import load_model_config
from colocate.types import Role
from gpu import ceilings
from gpu.floors import Ceilings, Chunk, prefill_floor_s, prefill_flops
from gpu.setting import Setting
from gpu.sheet import Sheet
from gpu.stage import Device, Pool
from gpu.steps import Steps
from gpu.targets import target_rows
from gpu.timing import median_s

TARGET_TOKENS = (2048, 4096, 8192)


def run(setting: Setting, sheet: Sheet) -> None:
    device = Device(Role.PREFILL, setting.prefill_shares)
    limits = ceilings.measure(device, setting)
    sheet.put("ceilings", {"bytes_per_s": limits.bytes_per_s, "flops_per_s": limits.flops_per_s})
    longest = max(setting.prefill_points)
    pool = Pool(device, load_model_config(setting.model), setting.dtype, longest)
    steps = Steps(pool, max_rows=1, max_tokens=longest)
    print(f"{'SMs':>4} {'tokens':>7} {'ms':>9} {'floor ms':>9} {'TFLOP/s':>8} {'of product':>10}")
    for number, share in enumerate(setting.prefill_shares):
        for num_tokens in setting.prefill_points[: None if number < 2 else 3]:
            measure(steps, share, num_tokens, limits, setting, sheet)
    judge(sheet, setting)


def measure(steps: Steps, share: int, num_tokens: int, limits: Ceilings, setting: Setting, sheet: Sheet) -> None:
    pool, device, chunks = steps.pool, steps.pool.device, [Chunk(num_tokens)]
    row: dict[str, Any] = {"share": device.num_sms(share), "tokens": num_tokens}
    try:
        lane = device.lane(share)
        work = steps.prefill(*pool.prompt(num_tokens), lane.num_sms)
        row["seconds"] = median_s(device.backend, lane, work, max(2, setting.repeats // 2), 1)
    except (RuntimeError, ValueError) as error:
        sheet.add("points", row | {"error": str(error)[:500]})
        print(f"{row['share']:4} {num_tokens:7} failed: {str(error)[:100]}")
        return
    flops = prefill_flops(pool.config, chunks)
    row |= {
        "floor_s": prefill_floor_s(pool.config, pool.dtype, chunks, limits),
        "flops_per_s": flops / row["seconds"],
        "of_ceiling": flops / row["seconds"] / limits.flops_per_s,
        "is_whole": not share,
    }
    sheet.add("points", row)
    print(
        f"{row['share']:4} {num_tokens:7} {row['seconds'] * 1e3:9.3f} {row['floor_s'] * 1e3:9.3f} "
        f"{row['flops_per_s'] / 1e12:8.1f} {row['of_ceiling']:10.1%}",
        flush=True,
    )


def judge(sheet: Sheet, setting: Setting) -> None:
    """The worst of the lengths that the target names, on the whole device."""
    wanted = setting.prefill_points if setting.is_smoke else TARGET_TOKENS
    found = [
        row["of_ceiling"] for row in sheet.data.get("points", []) if row.get("is_whole") and row["tokens"] in wanted
    ]
    if found:
        sheet.put("targets", target_rows({"prefill-flops": (min(found), 1.0)}))


def draw(figure: Any, data: dict[str, Any]) -> None:
    points = [row for row in data["points"] if "seconds" in row]
    left, right = figure.subplots(1, 2)
    for share in sorted({row["share"] for row in points}, reverse=True):
        rows = sorted((row for row in points if row["share"] == share), key=lambda row: row["tokens"])
        left.loglog([row["tokens"] for row in rows], [row["seconds"] * 1e3 for row in rows], "o-", label=f"{share} SMs")
        right.semilogx([row["tokens"] for row in rows], [row["of_ceiling"] for row in rows], "o-", label=f"{share} SMs")
    left.set(xlabel="prompt tokens", ylabel="ms")
    right.set(xlabel="prompt tokens", ylabel="FLOPs / time, of the product's", ylim=(0, 1.05))
    right.axhline(0.65, color="grey", linewidth=0.8)
    left.legend(fontsize="x-small")
