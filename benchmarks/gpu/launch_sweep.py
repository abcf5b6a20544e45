"""Launch parameters of our two attention kernels: tile sizes, warps and pipeline stages, the fastest by shape.

What stands in `model/cuda/kernels/attention_shapes.py` was chosen on paper. A choice that does not compile or does not
fit into shared memory is a row that says so. Compiling takes most of the time: the choices worth most come first.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from typing import Any

import torch

from colocate.model.config import load_model_config
from colocate.model.cuda.attention import CudaAttention, attention_for
from colocate.model.cuda.kernels.attention_shapes import AttentionShapes, DecodeShape, PrefillShape
from colocate.types import Role
from gpu.setting import Setting
from gpu.sheet import Sheet
from gpu.stage import Device, Pool, one_layer
from gpu.timing import median_s

_DECODE_POINTS = ((64, 2048), (256, 512), (8, 8192))
_PREFILL_POINTS = (4096, 512)
_Work = Callable[[], None]


def run(setting: Setting, sheet: Sheet) -> None:
    sweep(setting, sheet, "decode", decode_choices, decode_works)
    sweep(setting, sheet, "prefill", prefill_choices, prefill_works)


def sweep(
    setting: Setting,
    sheet: Sheet,
    phase: str,
    choices: Callable[[AttentionShapes], Iterator[AttentionShapes]],
    works: Callable[[Pool, Setting], dict[str, Callable[[CudaAttention], _Work]]],
) -> None:
    config = one_layer(load_model_config(setting.model))
    device = Device(Role.DECODE if phase == "decode" else Role.PREFILL, (0,))
    tokens = max(batch * (context + 128) for batch, context in points(setting)) if phase == "decode" else 8192
    pool = Pool(device, config, setting.dtype, tokens if not setting.is_smoke else 1024)
    made = works(pool, setting)
    now = AttentionShapes.of(config.head_dim, pool.kv.element_size())
    best: dict[str, dict[str, Any]] = {}
    for shapes in itertools.islice(choices(now), 2 if setting.is_smoke else None):
        row: dict[str, Any] = {"phase": phase, "choice": asdict(getattr(shapes, phase)), "is_now": shapes == now}
        row |= {"items_per_sm": shapes.items_per_sm}
        try:
            attention = attention_for(
                config, pool.kv, max_rows=setting.max_num_seqs, max_tokens=8192, backend="triton", shapes=shapes
            )
            lane = device.lane(0)
            row["seconds"] = {
                name: median_s(device.backend, lane, make(attention), setting.repeats) for name, make in made.items()
            }
        except Exception as error:  # a compiler's or a launch's refusal: this choice is out
            row["error"] = f"{type(error).__name__}: {error}"[:300]
        sheet.add("choices", row)
        for name, seconds in row.get("seconds", {}).items():
            if name not in best or seconds < best[name]["seconds"]:
                best[name] = {"seconds": seconds, "choice": row["choice"], "items_per_sm": shapes.items_per_sm}
        sheet.put(f"best_{phase}", best)
    report(phase, sheet, best)


def report(phase: str, sheet: Sheet, best: dict[str, dict[str, Any]]) -> None:
    now = next((row for row in sheet.data["choices"] if row["phase"] == phase and row["is_now"]), {})
    for name, found in best.items():
        mine = now.get("seconds", {}).get(name)
        gain = "" if mine is None else f", {mine / found['seconds']:.2f}x of what is chosen now"
        words = ", ".join(f"{key} {value}" for key, value in found["choice"].items())
        print(
            f"{phase} {name}: {found['seconds'] * 1e6:.1f} us with {words}, {found['items_per_sm']} items per SM{gain}"
        )


def points(setting: Setting) -> tuple[tuple[int, int], ...]:
    return setting.decode_points[:1] if setting.is_smoke else _DECODE_POINTS


def decode_choices(now: AttentionShapes) -> Iterator[AttentionShapes]:
    """What is chosen now first, then its neighbours."""
    yield now
    for block_n, num_warps, num_stages in itertools.product((64, 128, 32), (4, 8), (5, 3, 7)):
        shapes = replace(now, decode=DecodeShape(block_n, num_warps, num_stages))
        if shapes != now:
            yield shapes
    for items_per_sm in (4, 16, 2):
        yield replace(now, items_per_sm=items_per_sm)


def prefill_choices(now: AttentionShapes) -> Iterator[AttentionShapes]:
    yield now
    for block_m, block_n, num_warps, num_stages in itertools.product((128, 64), (64, 128, 32), (8, 4), (5, 3)):
        shapes = replace(now, prefill=PrefillShape(block_m, block_n, num_warps, num_stages))
        if shapes != now:
            yield shapes


def decode_works(pool: Pool, setting: Setting) -> dict[str, Callable[[CudaAttention], _Work]]:
    config, found = pool.config, {}
    for batch, context in points(setting):
        state = pool.decode_state(batch, context)
        index = torch.arange(batch, dtype=torch.int32, device=pool.kv.device)
        q = torch.randn(batch, config.num_heads, config.head_dim, device=pool.kv.device).to(pool.kv.dtype)
        out = torch.empty(batch, config.q_size, dtype=q.dtype, device=q.device)
        found[f"{batch}x{context}"] = _decode(state, index, q, out, pool.device.num_sms(0))
    return found


def prefill_works(pool: Pool, setting: Setting) -> dict[str, Callable[[CudaAttention], _Work]]:
    config, found = pool.config, {}
    for num_tokens in (16,) if setting.is_smoke else _PREFILL_POINTS:
        _, rows = pool.prompt(num_tokens)
        q = torch.randn(num_tokens, config.num_heads, config.head_dim, device=pool.kv.device).to(pool.kv.dtype)
        out = torch.empty(num_tokens, config.q_size, dtype=q.dtype, device=q.device)
        found[str(num_tokens)] = _prefill(rows, q, out, pool.device.num_sms(0))
    return found


def _decode(state: Any, index: Any, q: Any, out: Any, num_sms: int) -> Callable[[CudaAttention], _Work]:
    return lambda attention: lambda: attention.decode(0, q, state, index, out, num_sms)


def _prefill(rows: Any, q: Any, out: Any, num_sms: int) -> Callable[[CudaAttention], _Work]:
    return lambda attention: lambda: attention.prefill(0, q, rows, out, num_sms)
