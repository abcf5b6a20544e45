"""The attention kernels on a GPU: against float64 at the shapes that serve, in a graph, and FlashInfer against ours."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
import torch
from torch import Tensor

from colocate.model.cuda.attention import attention_for
from colocate.model.cuda.flashinfer import why_not_flashinfer
from colocate.model.cuda.rows import PrefillBatchRows
from colocate.model.cuda.state import DecodeState
from tests.cuda.paged_world import PagedWorld, assert_close, heads_config

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU"),
]

_MODELS = {"llama-3.1-8b": (32, 8, 128, None), "windowed": (28, 4, 128, 300), "demo": (6, 2, 32, None)}
_CONTEXTS = (1, 700, 33, 1500, 64, 257)


def _world(name: str, dtype: torch.dtype = torch.bfloat16) -> PagedWorld:
    heads, kv_heads, head_dim, window = _MODELS[name]
    config = heads_config(heads, kv_heads, head_dim, [window, None])
    return PagedWorld.make(config, _CONTEXTS, block_size=16, dtype=dtype, shared_blocks=1)


def _rows_on_gpu(rows: PrefillBatchRows) -> PrefillBatchRows:
    tensors = {field.name: getattr(rows, field.name) for field in fields(rows)}
    moved = {name: value.cuda() for name, value in tensors.items() if isinstance(value, Tensor)}
    return replace(rows, **moved)


def _state_on_gpu(state: DecodeState) -> DecodeState:
    names = ("token", "context_len", "active", "granted_len", "block_table")
    return replace(state, **{name: getattr(state, name).cuda() for name in names})


@pytest.mark.parametrize("backend", ["triton", "flashinfer"])
@pytest.mark.parametrize("name", _MODELS)
def test_prefill(name: str, backend: str) -> None:
    world = _world(name)
    reason = why_not_flashinfer(world.config, torch.bfloat16, torch.device("cuda"))
    if backend == "flashinfer" and reason is not None:
        pytest.skip(reason)
    own = [1, 300, 33, 100, 1, 200]
    rows, pool = world.prefill_rows(own), world.pool.cuda()
    attention = attention_for(world.config, pool, max_rows=8, max_tokens=4096, backend=backend)
    q = world.queries(rows.num_tokens)
    owners = torch.repeat_interleave(torch.arange(len(own)), torch.tensor(own)).tolist()
    on_gpu, q_on_gpu = _rows_on_gpu(rows), q.cuda()
    for layer in range(2):
        out = world.new_out(rows.num_tokens).cuda()
        attention.prefill(layer, q_on_gpu, on_gpu, out, num_sms=64)
        expected = [
            world.attend(layer, row, q[token], position)
            for token, (row, position) in enumerate(zip(owners, rows.positions.tolist(), strict=True))
        ]
        assert_close(out.cpu(), torch.stack(expected))


@pytest.mark.parametrize("num_sms", [0, 8, 132])
@pytest.mark.parametrize("name", _MODELS)
def test_decode(name: str, num_sms: int) -> None:
    world = _world(name)
    state = world.decode_state(range(6), inactive=[2], full=[4])
    attention = attention_for(world.config, world.pool.cuda(), max_rows=8, max_tokens=64)
    index = torch.tensor([*range(6), state.padding_slot], dtype=torch.int32)
    q = world.queries(7)
    on_gpu = _state_on_gpu(state)
    for layer in range(2):
        out = world.new_out(7).cuda()
        attention.decode(layer, q.cuda(), on_gpu, index.cuda(), out, num_sms)
        expected = torch.zeros(7, world.config.q_size, dtype=torch.float64)
        for row in (0, 1, 3, 5):
            expected[row] = world.attend(layer, row, q[row], _CONTEXTS[row] - 1)
        assert_close(out.cpu(), expected)


def test_one_graph_serves_whatever_the_contexts_are() -> None:
    world = _world("llama-3.1-8b")
    state, index = world.decode_state(range(6)), torch.arange(6, dtype=torch.int32, device="cuda")
    on_gpu, q = _state_on_gpu(state), world.queries(6)
    q_on_gpu = q.cuda()
    out = [world.new_out(6).cuda() for _ in range(2)]
    attention = attention_for(world.config, world.pool.cuda(), max_rows=8, max_tokens=64)

    def step() -> None:
        for layer in range(2):
            attention.decode(layer, q_on_gpu, on_gpu, index, out[layer], num_sms=64)

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        step()  # kernels are compiled and loaded outside of the capture
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        step()
    for lens in (_CONTEXTS, (1, 20, 3, 1000, 64, 16), (1, 700, 1, 1, 1, 1)):
        on_gpu.context_len[:6] = torch.tensor(lens, device="cuda") - 1
        torch.cuda.synchronize()
        graph.replay()
        torch.cuda.synchronize()
        for layer in range(2):
            expected = [world.attend(layer, row, q[row], length - 1) for row, length in enumerate(lens)]
            assert_close(out[layer].cpu(), torch.stack(expected))
