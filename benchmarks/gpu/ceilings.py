"""What the device can do at all: bytes per second of a large copy, FLOPs per second of a large bf16 product.

Two copies: the driver's, and an elementwise kernel of torch, which runs on the SMs of its lane. Random data: a product
of zeros draws less power and so runs at a higher clock.
"""

from __future__ import annotations

from typing import Any

import torch

from colocate.device.cuda.lane import Lane
from colocate.model.llama import TORCH_DTYPES
from colocate.types import Role
from gpu.floors import H200_BYTES_PER_S, H200_FLOPS_PER_S, Ceilings, gemm_flops
from gpu.setting import Setting
from gpu.sheet import Sheet
from gpu.stage import Device
from gpu.timing import median_s


def run(setting: Setting, sheet: Sheet) -> None:
    device = Device(Role.DECODE, setting.decode_shares)
    ceilings = measure(device, setting)
    sheet.put("whole", {"bytes_per_s": ceilings.bytes_per_s, "flops_per_s": ceilings.flops_per_s})
    of_sheet = (ceilings.bytes_per_s / H200_BYTES_PER_S, ceilings.flops_per_s / H200_FLOPS_PER_S)
    sheet.put("of_datasheet", {"bytes_per_s": of_sheet[0], "flops_per_s": of_sheet[1]})
    print(f"copy {ceilings.bytes_per_s / 1e12:.3f} TB/s ({of_sheet[0]:.0%} of an H200's datasheet), ", end="")
    print(f"bf16 product {ceilings.flops_per_s / 1e12:.1f} TFLOP/s ({of_sheet[1]:.0%})")
    for share in setting.decode_shares:
        row = {
            "share": device.num_sms(share),
            "copy_bytes_per_s": copy_bytes_per_s(device, device.lane(share), setting),
            "kernel_bytes_per_s": kernel_bytes_per_s(device, device.lane(share), setting),
            "flops_per_s": flops_per_s(device, device.lane(share), setting),
        }
        sheet.add("shares", row)
        print(f"{row['share']:4} SMs: copy {row['copy_bytes_per_s'] / 1e9:8.1f} GB/s, kernel ", end="")
        print(f"{row['kernel_bytes_per_s'] / 1e9:8.1f} GB/s, product {row['flops_per_s'] / 1e12:7.1f} TFLOP/s")


def measure(device: Device, setting: Setting) -> Ceilings:
    """Of the whole device: the better of the two copies."""
    lane = device.lane(0)
    copies = (copy_bytes_per_s(device, lane, setting), kernel_bytes_per_s(device, lane, setting))
    return Ceilings(max(copies), flops_per_s(device, lane, setting))


def copy_bytes_per_s(device: Device, lane: Lane, setting: Setting) -> float:
    """Reads and writes together, of a device-to-device copy."""
    source = torch.ones(setting.copy_bytes, dtype=torch.uint8, device=device.backend.torch_device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / median_s(device.backend, lane, lambda: target.copy_(source), setting.repeats)


def kernel_bytes_per_s(device: Device, lane: Lane, setting: Setting) -> float:
    source = torch.ones(setting.copy_bytes // 4, dtype=torch.float32, device=device.backend.torch_device)
    target = torch.empty_like(source)
    work = median_s(device.backend, lane, lambda: torch.mul(source, 2.0, out=target), setting.repeats)
    return 2 * source.nbytes / work


def flops_per_s(device: Device, lane: Lane, setting: Setting) -> float:
    size, where = setting.gemm_size, device.backend.torch_device
    left, right = (torch.randn(size, size, device=where).to(TORCH_DTYPES[setting.dtype]) for _ in range(2))
    out = torch.empty_like(left)
    seconds = median_s(device.backend, lane, lambda: torch.mm(left, right, out=out), setting.repeats)
    return gemm_flops(size, size, size) / seconds


def draw(figure: Any, data: dict[str, Any]) -> None:
    rows = sorted(data["shares"], key=lambda row: row["share"])
    shares = [row["share"] for row in rows]
    left, right = figure.subplots(1, 2)
    left.plot(shares, [row["copy_bytes_per_s"] / 1e12 for row in rows], "o-", label="copy")
    left.plot(shares, [row["kernel_bytes_per_s"] / 1e12 for row in rows], "s-", label="elementwise kernel")
    left.set(xlabel="SMs", ylabel="TB/s, read + written", ylim=0)
    left.legend()
    right.plot(shares, [row["flops_per_s"] / 1e12 for row in rows], "o-")
    right.set(xlabel="SMs", ylabel="TFLOP/s, bf16 product", ylim=0)
