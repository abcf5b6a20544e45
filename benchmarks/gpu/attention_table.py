"""Seconds of attention by phase, shape and share: our kernels, FlashInfer's where installed, torch's.

One layer of the model's heads over a pool of random numbers. torch's (`sdpa`) sees keys and values gathered into one
contiguous tensor beforehand: it is a measure, not a contender. The table is written as the product reads it
(`attention-table.json`), and how far ours is from torch's stands beside every shape.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from colocate.errors import ConfigError
from colocate.model.config import load_model_config
from colocate.model.cuda.attention import CudaAttention, attention_for
from colocate.model.cuda.flashinfer import why_not_flashinfer
from colocate.model.cuda.kernel_table import AttentionShape, KernelTable, KernelTiming
from colocate.types import Role
from gpu.floors import Chunk, attention_flops
from gpu.setting import Setting
from gpu.sheet import Sheet
from gpu.stage import BLOCK_SIZE, Device, Pool, one_layer
from gpu.timing import median_s

TABLE = "attention-table.json"


def run(setting: Setting, sheet: Sheet) -> None:
    timings: list[KernelTiming] = []
    for rows in (decode_rows(setting, sheet), prefill_rows(setting, sheet)):
        for timing, extra in rows:
            timings.append(timing)
            row = {"phase": timing.shape.phase, "rows": timing.shape.rows, "new": timing.shape.new}
            row |= {"context": timing.shape.context, "sms": timing.shape.sms, "seconds": timing.seconds}
            sheet.add("timings", row | extra)
            cells = "  ".join(f"{name} {seconds * 1e6:9.1f} us" for name, seconds in timing.seconds.items())
            print(f"{timing.shape.phase:8} {timing.shape.sms:4} SMs {timing.shape.rows:4} rows "
                  f"{timing.shape.context:6} context: {cells}", flush=True)  # fmt: skip
            write_table(setting, sheet, timings)


def write_table(setting: Setting, sheet: Sheet, timings: list[KernelTiming]) -> None:
    """Anew after every shape: a killed run leaves a table that can be used."""
    config = load_model_config(setting.model)
    device = sheet.data["device"]
    table = KernelTable(device, config.head_dim, config.num_heads, config.num_kv_heads, setting.dtype, tuple(timings))
    table.dump(setting.out / TABLE)


def decode_rows(setting: Setting, sheet: Sheet) -> Iterator[tuple[KernelTiming, dict[str, Any]]]:
    config = one_layer(load_model_config(setting.model))
    device = Device(Role.DECODE, setting.decode_shares)
    sheet.put("device", device.facts.name)
    pool = Pool(device, config, setting.dtype, max(batch * (context + 128) for batch, context in setting.decode_points))
    ours = attention_for(config, pool.kv, max_rows=setting.max_num_seqs, max_tokens=1, backend="triton")
    for number, share in enumerate(setting.decode_shares):
        for batch, context in setting.decode_points[: None if number == 0 else 2]:
            state = pool.decode_state(batch, context)
            index = torch.arange(batch, dtype=torch.int32, device=pool.kv.device)
            q = torch.randn(batch, config.num_heads, config.head_dim, device=pool.kv.device).to(pool.kv.dtype)
            out = torch.empty(batch, config.q_size, dtype=q.dtype, device=q.device)
            device.backend.driver.synchronize()
            lane, num_sms = device.lane(share), device.num_sms(share)

            def step(
                q: Tensor = q, state: Any = state, index: Tensor = index, out: Tensor = out, n: int = num_sms
            ) -> None:
                ours.decode(0, q, state, index, out, n)

            seconds = {"triton": median_s(device.backend, lane, step, setting.repeats)}
            extra: dict[str, Any] = {}
            if number == 0:
                keys, values = gather(pool.kv[0], state.block_table[:batch], context + 1)
                seconds["sdpa"], other = sdpa(setting, device, lane, q.unsqueeze(2), keys, values, causal=False)
                extra["max_difference"] = difference(out, other)
                del keys, values
            num_bytes = 2 * batch * (context + 1) * config.kv_size * pool.kv.element_size()
            extra["bytes_per_s"] = num_bytes / seconds["triton"]
            yield KernelTiming(AttentionShape("decode", batch, batch, context + 1, num_sms), seconds), extra


def prefill_rows(setting: Setting, sheet: Sheet) -> Iterator[tuple[KernelTiming, dict[str, Any]]]:
    config = one_layer(load_model_config(setting.model))
    device = Device(Role.PREFILL, setting.prefill_shares)
    longest = max(setting.prefill_points)
    pool = Pool(device, config, setting.dtype, 2 * longest)
    kernels = prefill_kernels(pool, longest, sheet)
    for number, share in enumerate(setting.prefill_shares):
        for num_new, num_cached in prefill_shapes(setting, few=number > 0):
            _, rows = pool.prompt(num_new, num_cached)
            q = torch.randn(num_new, config.num_heads, config.head_dim, device=pool.kv.device).to(pool.kv.dtype)
            out = torch.empty(num_new, config.q_size, dtype=q.dtype, device=q.device)
            device.backend.driver.synchronize()
            lane, num_sms = device.lane(share), device.num_sms(share)
            seconds: dict[str, float] = {}
            extra: dict[str, Any] = {}
            for name in reversed(kernels):  # ours last: `out` is compared
                work = prefill_work(kernels[name], q, rows, out, num_sms)
                seconds[name] = median_s(device.backend, lane, work, setting.repeats)
            if number == 0 and not num_cached:
                keys, values = gather(pool.kv[0], rows.block_tables, num_new)
                whole = q.transpose(0, 1).unsqueeze(0)
                seconds["sdpa"], other = sdpa(setting, device, lane, whole, keys, values, causal=True)
                extra["max_difference"] = difference(out, other)
            flops = attention_flops(config.num_heads, config.head_dim, [Chunk(num_new, num_cached)])
            extra["flops_per_s"] = flops / seconds["triton"]
            yield KernelTiming(AttentionShape("prefill", 1, num_new, num_new + num_cached, num_sms), seconds), extra


def prefill_shapes(setting: Setting, *, few: bool) -> list[tuple[int, int]]:
    """(new, cached) tokens of one row: whole prompts, and a quarter behind a cached rest."""
    points = setting.prefill_points[:2] if few else setting.prefill_points
    return [(num, 0) for num in points] + [(num // 4, num - num // 4) for num in points[:2]]


def prefill_kernels(pool: Pool, longest: int, sheet: Sheet) -> dict[str, CudaAttention]:
    """By their names in the table; FlashInfer where it can be had."""

    def make(backend: str) -> CudaAttention:
        return attention_for(pool.config, pool.kv, max_rows=1, max_tokens=longest, backend=backend)

    found = {"triton": make("triton")}
    reason = why_not_flashinfer(pool.config, pool.kv.dtype, pool.kv.device)
    if reason is None:
        try:
            found["flashinfer"] = make("flashinfer")
        except (ConfigError, RuntimeError, ImportError) as error:
            reason = str(error)[:500]
    sheet.put("flashinfer", reason or "measured")
    print(f"flashinfer: {reason or 'measured'}")
    return found


def prefill_work(kernel: CudaAttention, q: Tensor, rows: Any, out: Tensor, num_sms: int) -> Callable[[], None]:
    return lambda: kernel.prefill(0, q, rows, out, num_sms)


def gather(layer: Tensor, block_tables: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """Keys and values [rows, kv_heads, length, head_dim] of a layer's pool, contiguous."""
    num_blocks = -(-length // BLOCK_SIZE)
    blocks = layer[:, block_tables[:, :num_blocks].long()]  # [2, rows, blocks, kv_heads, slots, head_dim]
    flat = blocks.permute(0, 1, 3, 2, 4, 5).flatten(3, 4)[:, :, :, :length].contiguous()
    return flat[0], flat[1]


def sdpa(
    setting: Setting, device: Device, lane: Any, q: Tensor, keys: Tensor, values: Tensor, *, causal: bool
) -> tuple[float, Tensor]:
    """Seconds, and the result as [tokens, heads * head_dim]."""
    held: list[Tensor] = []

    def work() -> None:
        held[:] = [scaled_dot_product_attention(q, keys, values, is_causal=causal, enable_gqa=True)]

    seconds = median_s(device.backend, lane, work, max(2, setting.repeats // 2))
    device.backend.driver.synchronize()
    return seconds, held[0].transpose(1, 2).flatten(0, 1).flatten(1)


def difference(ours: Tensor, other: Tensor) -> float:
    return float((ours.float() - other.float()).abs().max())


def draw(figure: Any, data: dict[str, Any]) -> None:
    panels = figure.subplots(1, 2)
    for axes, phase in zip(panels, ("decode", "prefill"), strict=True):
        rows = [row for row in data["timings"] if row["phase"] == phase]
        whole = max((row["sms"] for row in rows), default=0)
        rows = [row for row in rows if row["sms"] == whole]
        for offset, name in enumerate(sorted({name for row in rows for name in row["seconds"]})):
            known = [(place, row["seconds"][name]) for place, row in enumerate(rows) if name in row["seconds"]]
            axes.bar([place + 0.27 * offset for place, _ in known], [s * 1e6 for _, s in known], 0.25, label=name)
        axes.set_xticks(range(len(rows)), [f"{row['new']}x\n{row['context']}" for row in rows], fontsize="x-small")
        axes.set(ylabel="us", yscale="log", title=f"{phase}, {whole} SMs, new x context")
        axes.legend()
