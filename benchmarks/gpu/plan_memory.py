"""Device memory, as NVML counts it for everybody: of a daemon with one split, of one with eight, and what must be.

Weights and KV exist once however many processes map them: what is used is compared with one copy of each.
"""

from __future__ import annotations

from typing import Any

from server import Server

from colocate.model.config import load_model_config
from colocate.model.layout import KVLayout, WeightLayout
from gpu.live import serving, split_names, used_bytes
from gpu.setting import Setting
from gpu.sheet import Sheet
from gpu.targets import target_rows


def run(setting: Setting, sheet: Sheet) -> None:
    before = used_bytes()
    sheet.put("used_before", before)
    kv = () if setting.is_smoke else ("--kv-memory", "20GiB")
    with serving(setting, setting.model, *kv) as server:
        eight = read(server, setting, before)
        sheet.put("eight", eight)
        names = split_names(server.state())
    with serving(setting, setting.model, *kv, "--arm", names[len(names) // 2]) as server:
        one = read(server, setting, before)
        sheet.put("one", one)
    print(f"armed: {', '.join(names)}")
    if eight["used"] is None or one["used"] is None:
        print("NVML does not answer here: memory is not measured")
        return
    total = total_bytes()
    added = eight["used"] - one["used"]
    sheet.put("added_by_plans", {"bytes": added, "of_device": added / total, "num_plans": len(names)})
    sheet.put("targets", target_rows({"plans-memory": (added / total, 0.0)}))
    print(f"eight plans take {added / 2**20:.0f} MiB more than one ({added / total:.2%} of the device)")
    copy = one["weights"] + one["kv"]
    print(f"used {one['used'] / 2**30:.2f} GiB; one copy of weights and KV is {copy / 2**30:.2f} GiB, two would be "
          f"{2 * copy / 2**30:.2f} GiB")  # fmt: skip


def read(server: Server, setting: Setting, before: int | None) -> dict[str, Any]:
    """`used`: beyond what was in use before the daemon. Weights and KV by the layouts, not by a reading."""
    state = server.state()
    config = load_model_config(setting.model)
    used = used_bytes()
    kv = KVLayout(config, setting.dtype, state["kv"]["blocks_total"], state["kv"]["block_size"]).nbytes
    return {
        "used": None if used is None else used - (before or 0),
        "weights": WeightLayout.of(config, setting.dtype).nbytes,
        "kv": kv,
        "plans": [plan["name"] for plan in state["plans"]],
    }


def total_bytes() -> int:
    import pynvml

    pynvml.nvmlInit()
    try:
        return int(pynvml.nvmlDeviceGetMemoryInfo(pynvml.nvmlDeviceGetHandleByIndex(0)).total)
    finally:
        pynvml.nvmlShutdown()


def draw(figure: Any, data: dict[str, Any]) -> None:
    found = [(name, data[name]) for name in ("one", "eight") if data.get(name, {}).get("used") is not None]
    if not found:
        return
    axes = figure.subplots(1, 1)
    for place, (_, row) in enumerate(found):
        rest = row["used"] - row["weights"] - row["kv"]
        bottom = 0
        for part, value in (("weights", row["weights"]), ("KV", row["kv"]), ("everything else", rest)):
            axes.bar(place, value / 2**30, bottom=bottom / 2**30, label=part if place == 0 else None,
                     color={"weights": "C0", "KV": "C1"}.get(part, "C2"))  # fmt: skip
            bottom += value
    axes.set_xticks(range(len(found)), [f"{name} armed" for name, _ in found])
    axes.set(ylabel="GiB used")
    axes.legend()
