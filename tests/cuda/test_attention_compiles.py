"""The attention kernels compile for sm_90 as they are launched, and cost what their tile sizes were chosen for."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from colocate.model.cuda.attention import CudaAttention
from colocate.model.cuda.kernels.attention_shapes import AttentionShapes
from tests.cuda.aot import SHARED_LIMIT_BYTES, Launch, compiled_launches
from tests.cuda.paged_world import PagedWorld, heads_config

_REGISTERS_PER_SM = 65_536

# name: (heads, KV heads, head_dim, window)
_MODELS: dict[str, tuple[int, int, int, int | None]] = {
    "llama-3.1-8b and qwen3-8b": (32, 8, 128, None),
    "qwen2.5-7b": (28, 4, 128, None),
    "mistral-7b-v0.1": (32, 8, 128, 4096),
    "llama-3.2-1b": (32, 8, 64, None),
    "demo": (6, 2, 32, None),
    "phi-like, padded": (32, 8, 96, None),
    "gemma-like": (8, 4, 256, None),
}


def _launches(name: str, dtype: torch.dtype, num_sms: int = 64) -> dict[str, Launch]:
    heads, kv_heads, head_dim, window = _MODELS[name]
    config = heads_config(heads, kv_heads, head_dim, [window])
    world = PagedWorld.make(config, [300, 40], block_size=16, dtype=dtype)
    # Without a device there is one SM: as many parts as a share of `num_sms` would have.
    shapes = AttentionShapes.of(head_dim, world.pool.element_size())
    shapes = replace(shapes, items_per_sm=shapes.items_per_sm * num_sms)
    attention = CudaAttention(config, world.pool, max_rows=64, max_tokens=4096, shapes=shapes)
    index = torch.tensor([0, 1], dtype=torch.int32)
    with compiled_launches() as launches:
        attention.prefill(0, world.queries(140), world.prefill_rows([100, 40]), world.new_out(140), num_sms)
        attention.decode(0, world.queries(2), world.decode_state([0, 1]), index, world.new_out(2), num_sms)
    return {launch.name: launch for launch in launches}


@pytest.mark.parametrize("name", _MODELS)
def test_bf16(name: str) -> None:
    launches = _launches(name, torch.bfloat16)
    assert len(launches) == 4
    for launch in launches.values():
        assert launch.kernel.cubin.startswith(b"\x7fELF")
        assert launch.kernel.spilled_bytes == 0, launch.name
        assert launch.kernel.shared_bytes <= SHARED_LIMIT_BYTES, launch.name
    prefill = launches["attention_prefill_kernel"].kernel
    assert prefill.uses_wgmma
    assert prefill.num_async_copies > 0
    decode = launches["attention_decode_kernel"].kernel
    assert "mma.sync" in decode.ptx
    assert decode.num_async_copies > 0
    # Two programs at a time on each SM: one loads while the other multiplies.
    assert 2 * decode.shared_bytes <= SHARED_LIMIT_BYTES
    assert 2 * decode.registers * decode.num_warps * 32 <= _REGISTERS_PER_SM


@pytest.mark.parametrize("name", ["demo", "llama-3.1-8b and qwen3-8b"])
def test_float32(name: str) -> None:
    launches = _launches(name, torch.float32)
    assert len(launches) == 4
    for launch in launches.values():
        assert launch.kernel.shared_bytes <= SHARED_LIMIT_BYTES, launch.name
        assert "tf32" not in launch.kernel.ptx, launch.name


def test_grids_of_a_share_hold_whatever_the_contexts_are() -> None:
    launches = _launches("llama-3.1-8b and qwen3-8b", torch.bfloat16, num_sms=64)
    assert launches["attention_prefill_kernel"].grid == ((140 // 32 + 2) * 8, 1, 1)
    assert launches["attention_decode_kernel"].grid == (64 * 8 // 8 + 2, 8, 1)
    assert launches["attention_merge_kernel"].grid == (2, 32, 1)


def test_another_batch_needs_no_other_kernel() -> None:
    """What is compiled in warm-up is what serves: sizes of a batch are no part of a kernel."""
    config = heads_config(6, 2, 32, [None])
    world = PagedWorld.make(config, [300, 40, 17], block_size=16, dtype=torch.bfloat16)
    shapes = replace(AttentionShapes.of(32, 2), items_per_sm=64)
    attention = CudaAttention(config, world.pool, max_rows=64, max_tokens=4096, shapes=shapes)
    slots = torch.tensor([0, 1, 2, 1, 0] * 8, dtype=torch.int32)
    state = world.decode_state([0, 1, 2])
    with compiled_launches() as launches:
        for own in ([1, 1, 1], [16, 16, 16], [300, 40, 17], [299, 1, 3]):
            q, out = world.queries(sum(own)), world.new_out(sum(own))
            attention.prefill(0, q, world.prefill_rows(own), out, 64)
        for first, num_rows in ((0, 1), (0, 16), (1, 17), (3, 32)):
            q, out = world.queries(num_rows), world.new_out(num_rows)
            attention.decode(0, q, state, slots[first : first + num_rows], out, 64)
    kernels = {(launch.name, launch.kernel.cubin) for launch in launches}
    assert len(launches) == 4 + 4 * 3
    assert len(kernels) == 4
