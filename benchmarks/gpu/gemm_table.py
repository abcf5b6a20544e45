"""The matrix products of one layer and the vocabulary's, by rows and share: cuBLAS against its floor."""

from __future__ import annotations

from typing import Any

import torch

from colocate.model.config import ModelConfig, load_model_config
from colocate.model.cuda.linear import CublasLinear
from colocate.model.llama import TORCH_DTYPES
from colocate.types import Role
from gpu import ceilings
from gpu.floors import floor_s, gemm_bytes, gemm_flops
from gpu.setting import Setting
from gpu.sheet import Sheet
from gpu.stage import Device
from gpu.timing import median_s

_ROWS = (64, 2048, 1, 256, 8192)


def run(setting: Setting, sheet: Sheet) -> None:
    config = load_model_config(setting.model)
    device = Device(Role.DECODE, setting.decode_shares)
    linear = CublasLinear(torch.device(device.backend.torch_device))
    limits = ceilings.measure(device, setting)
    sheet.put("ceilings", {"bytes_per_s": limits.bytes_per_s, "flops_per_s": limits.flops_per_s})
    for number, share in enumerate(setting.decode_shares[: 2 if setting.is_smoke else 4]):
        for name, (n, k) in products(config).items():
            for m in (2,) if setting.is_smoke else _ROWS[: None if number == 0 else 2]:
                seconds = product_s(device, linear, share, setting, (m, n, k))
                floor = floor_s(gemm_bytes(m, n, k), gemm_flops(m, n, k), limits)
                row = {"share": device.num_sms(share), "name": name, "m": m, "n": n, "k": k, "seconds": seconds}
                sheet.add("products", row | {"floor_s": floor, "flops_per_s": gemm_flops(m, n, k) / seconds})
                print(f"{row['share']:4} SMs {name:8} {m:5} x {n:6} x {k:6}: {seconds * 1e6:9.1f} us, "
                      f"{floor / seconds:6.1%} of the floor's speed", flush=True)  # fmt: skip


def products(config: ModelConfig) -> dict[str, tuple[int, int]]:
    """Name -> (out, in) of the products of a layer, and of the logits."""
    return {
        "qkv": (config.q_size + 2 * config.kv_size, config.hidden_size),
        "o": (config.hidden_size, config.q_size),
        "gate_up": (2 * config.intermediate_size, config.hidden_size),
        "down": (config.hidden_size, config.intermediate_size),
        "lm_head": (config.vocab_size, config.hidden_size),
    }


def product_s(device: Device, linear: CublasLinear, share: int, setting: Setting, sizes: tuple[int, int, int]) -> float:
    """As the model runs it, with other weights every time, as in a forward: none is read from the L2 cache."""
    m, n, k = sizes
    dtype, where = TORCH_DTYPES[setting.dtype], device.backend.torch_device
    copies = max(1, min(8, (256 << 20) // max(1, n * k * dtype.itemsize)))
    weights = [torch.randn(n, k, device=where).to(dtype) for _ in range(copies)]
    rows, out = torch.randn(m, k, device=where).to(dtype), torch.empty(m, n, dtype=dtype, device=where)
    lane, turn = device.lane(share), iter(range(1 << 30))

    def product() -> None:
        linear.use(lane.num_sms)
        linear.project(rows, weights[next(turn) % copies], out)

    return median_s(device.backend, lane, product, setting.repeats)


def draw(figure: Any, data: dict[str, Any]) -> None:
    axes = figure.subplots(1, 1)
    rows = data["products"]
    whole = max(row["share"] for row in rows)
    for name in dict.fromkeys(row["name"] for row in rows):
        found = sorted(
            (row["m"], row["floor_s"] / row["seconds"]) for row in rows if row["name"] == name and row["share"] == whole
        )
        axes.semilogx([m for m, _ in found], [share for _, share in found], "o-", label=name)
    axes.set(xlabel="rows", ylabel="floor / time", ylim=(0, 1.1), title=f"{whole} SMs")
    axes.legend()
