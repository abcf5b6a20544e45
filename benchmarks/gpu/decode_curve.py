"""A decode step by share, batch and context: seconds from replays of its captured graph, beside its floor."""

from __future__ import annotations

from typing import Any

from colocate.model.config import load_model_config
from colocate.types import Role
from gpu import ceilings
from gpu.floors import Ceilings, decode_bytes, decode_floor_s
from gpu.setting import Setting
from gpu.sheet import Sheet
from gpu.stage import Device, Pool
from gpu.steps import Steps
from gpu.targets import target_rows
from gpu.timing import median_s

TARGET_POINT = (64, 2048)
_SWEEP_SHARES = 2  # shares that every point is measured on; the others take the first points only
_FEW_POINTS = 3


def run(setting: Setting, sheet: Sheet) -> None:
    device = Device(Role.DECODE, setting.decode_shares)
    limits = ceilings.measure(device, setting)
    sheet.put("ceilings", {"bytes_per_s": limits.bytes_per_s, "flops_per_s": limits.flops_per_s})
    kv_tokens = max(batch * (context + 128) for batch, context in setting.decode_points)
    pool = Pool(device, load_model_config(setting.model), setting.dtype, kv_tokens)
    steps = Steps(pool, max_rows=max(batch for batch, _ in setting.decode_points), max_tokens=1)
    print(f"{'SMs':>4} {'batch':>6} {'context':>8} {'step ms':>9} {'floor ms':>9} {'TB/s':>7} {'of copy':>8}")
    for number, share in enumerate(setting.decode_shares):
        for batch, context in setting.decode_points[: None if number < _SWEEP_SHARES else _FEW_POINTS]:
            measure(steps, share, (batch, context), limits, setting, sheet)
    judge(sheet, setting)


def measure(steps: Steps, share: int, point: tuple[int, int], limits: Ceilings, setting: Setting, sheet: Sheet) -> None:
    """One point, graph and eager. A point that fails is a row that says why."""
    batch, context = point
    pool, device, config = steps.pool, steps.pool.device, steps.pool.config
    row: dict[str, Any] = {"share": device.num_sms(share), "batch": batch, "context": context}
    try:
        state = pool.decode_state(batch, context)
        lane = device.lane(share)
        replay = steps.graph(lane, state, batch, lane.num_sms)
        row["seconds"] = median_s(device.backend, lane, replay, setting.repeats)
        state.context_len[:batch] = context
        eager = steps.eager(state, batch, lane.num_sms)
        row["eager_s"] = median_s(device.backend, lane, eager, min(3, setting.repeats), 1)
    except (RuntimeError, ValueError) as error:  # out of memory, or a pool that is too small
        sheet.add("points", row | {"error": str(error)[:500]})
        print(f"{row['share']:4} {batch:6} {context:8} failed: {str(error)[:100]}")
        return
    num_bytes = decode_bytes(config, pool.dtype, batch, context)
    row |= {
        "floor_s": decode_floor_s(config, pool.dtype, batch, context, limits),
        "bytes": num_bytes,
        "bytes_per_s": num_bytes / row["seconds"],
        "of_ceiling": num_bytes / row["seconds"] / limits.bytes_per_s,
        "is_whole": not share,
    }
    sheet.add("points", row)
    print(
        f"{row['share']:4} {batch:6} {context:8} {row['seconds'] * 1e3:9.3f} {row['floor_s'] * 1e3:9.3f} "
        f"{row['bytes_per_s'] / 1e12:7.3f} {row['of_ceiling']:8.1%}  eager {row['eager_s'] * 1e3:.3f} ms",
        flush=True,
    )


def judge(sheet: Sheet, setting: Setting) -> None:
    """The target is the step on the whole device; its floor is what the same bytes take at the ceiling."""
    point = setting.decode_points[0] if setting.is_smoke else TARGET_POINT
    for row in sheet.data.get("points", []):
        if row.get("is_whole") and (row["batch"], row["context"]) == point:
            sheet.put("targets", target_rows({"decode-bandwidth": (row["of_ceiling"], 1.0)}))


def draw(figure: Any, data: dict[str, Any]) -> None:
    points = [row for row in data["points"] if "seconds" in row]
    left, right = figure.subplots(1, 2)
    for batch, context in dict.fromkeys((row["batch"], row["context"]) for row in points):
        rows = sorted(
            (row for row in points if (row["batch"], row["context"]) == (batch, context)), key=lambda row: row["share"]
        )
        label = f"batch {batch}, context {context}"
        left.plot([row["share"] for row in rows], [row["seconds"] * 1e3 for row in rows], "o-", label=label)
        right.plot([row["share"] for row in rows], [row["of_ceiling"] for row in rows], "o-", label=label)
    left.set(xlabel="SMs", ylabel="ms per step", ylim=0)
    right.set(xlabel="SMs", ylabel="bytes / time, of the copy's", ylim=(0, 1.05))
    right.axhline(0.8, color="grey", linewidth=0.8)
    left.legend(fontsize="x-small")
