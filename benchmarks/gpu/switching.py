"""A plan switch under load: what `apply` costs the host, and how long after the work already launched the first kernel
of the new share ends.

Both in one process, on the real partition and its lanes; what two workers and the board add is in the live sections'
switch times. The load is elementwise passes over a buffer, about a millisecond each, launched ahead as a worker does.
"""

from __future__ import annotations

import itertools
import time
from typing import Any

import torch

from colocate.types import Role
from gpu.setting import Setting
from gpu.sheet import Sheet
from gpu.stage import Device
from gpu.targets import target_rows
from gpu.timing import quantile

_LOAD_BYTES = 1 << 30
_SMALL = 4096


def run(setting: Setting, sheet: Sheet) -> None:
    shares = [share for share in setting.decode_shares if share][:8]
    shares = shares if len(shares) > 1 else [*shares, 0]
    device = Device(Role.DECODE, shares)
    sheet.put("shares", [device.num_sms(share) for share in shares])
    where = device.backend.torch_device
    load = torch.zeros((_LOAD_BYTES if not setting.is_smoke else 1 << 16) // 4, device=where)
    small = torch.zeros(_SMALL, device=where)
    device.backend.driver.synchronize()
    host_s, marks = switches(device, shares, load, small, setting.num_switches)
    host = {f"p{share}": quantile(host_s, share / 100) for share in (50, 90, 99)}
    sheet.put("host_s", host | {"num": len(host_s), "max": max(host_s)})
    found: dict[str, tuple[float, float | None]] = {"switch-host": (host["p99"], 0.0)}
    sheet.put("targets", target_rows(found))
    print(f"host {host['p50'] * 1e6:.1f} us p50, {host['p99'] * 1e6:.1f} us p99 over {len(host_s)} switches")
    if not marks:
        return
    # Times between events of two streams: kept apart, so that a driver that refuses them costs the host's figures none.
    device_s = [begin.elapsed_time(end) / 1e3 for begin, end in marks]
    alone_s = small_kernel_s(device, shares[0], small)
    gaps = {f"p{share}": quantile(device_s, share / 100) for share in (50, 90, 99)}
    sheet.put("device_s", gaps | {"num": len(device_s), "max": max(device_s), "kernel_alone": alone_s})
    sheet.put("targets", target_rows(found | {"switch-device": (gaps["p99"], alone_s)}))
    print(
        f"device {gaps['p50'] * 1e6:.1f} us p50, {gaps['p99'] * 1e6:.1f} us p99; that kernel alone {alone_s * 1e6:.1f}"
    )


def switches(
    device: Device, shares: list[int], load: torch.Tensor, small: torch.Tensor, num: int
) -> tuple[list[float], list[tuple[Any, Any]]]:
    """Seconds of every `apply`; and events at the end of the old share's work and of the new share's first kernel.

    There are no events on the fake device, whose work is over when it is launched.
    """
    host_s: list[float] = []
    marks: list[tuple[Any, Any]] = []
    partition, timed = device.partition, not device.backend.is_fake
    partition.apply(device.units(shares[-1]))
    for share in itertools.islice(itertools.cycle(shares), num):
        before = partition.lane
        assert before is not None
        with before.use():
            load.add_(1.0)
            load.add_(1.0)
            end_before = _mark() if timed else None
        units = device.units(share)
        started_ns = time.perf_counter_ns()
        partition.apply(units)
        host_s.append((time.perf_counter_ns() - started_ns) / 1e9)
        after = partition.lane
        assert after is not None
        with after.use():
            small.add_(1.0)
            if end_before is not None:
                marks.append((end_before, _mark()))
        if len(host_s) % 50 == 0:
            device.backend.driver.synchronize()  # a worker launches two pieces ahead, not a thousand
    device.backend.driver.synchronize()
    return host_s, marks


def small_kernel_s(device: Device, share: int, small: torch.Tensor) -> float:
    """The floor of the device figure: the same kernel between two events of one stream."""
    lane = device.lane(share)
    values = []
    with lane.use():
        for _ in range(100):
            begin = _mark()
            small.add_(1.0)
            values.append((begin, _mark()))
    device.backend.driver.synchronize()
    return quantile([begin.elapsed_time(end) / 1e3 for begin, end in values], 0.5)


def _mark() -> Any:
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def draw(figure: Any, data: dict[str, Any]) -> None:
    axes = figure.subplots(1, 1)
    names = [name for name in ("host_s", "device_s") if name in data]
    for offset, name in enumerate(names):
        values = [data[name][p] * 1e6 for p in ("p50", "p90", "p99", "max")]
        axes.bar([index + 0.4 * offset for index in range(4)], values, width=0.38, label=name.removesuffix("_s"))
    axes.set_xticks([0.2, 1.2, 2.2, 3.2], ["p50", "p90", "p99", "max"])
    axes.set(ylabel="us per switch", yscale="log")
    axes.legend()
