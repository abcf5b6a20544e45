"""Norms, gate, rotation with the write of KV, and the end of a step, each against float64 or the host's own rule."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from colocate.core.stop import finish_after
from colocate.messages.sampling import SampleState, SamplingParams
from colocate.model.cuda.kernels.activation import gate_
from colocate.model.cuda.kernels.advance import advance
from colocate.model.cuda.kernels.norm import add_rms_norm, rms_norm
from colocate.model.cuda.kernels.rope import HeadFinisher
from colocate.model.cuda.rows import PrefillBatchRows
from colocate.model.cuda.sampling import needs_host
from colocate.model.cuda.state import DecodeState
from tests.cuda.device_rows import fill_table

EPS = 1e-5
# Relative. The interpreter cuts floats to bf16 where a GPU rounds, so one unit of the last place is lost at most.
TOLERANCES = {torch.float32: 2e-6, torch.bfloat16: 2**-7}
DTYPES = list(TOLERANCES)


def random(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def exact_norm(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    x = x.double()
    return x / (x.square().mean(-1, keepdim=True) + EPS).sqrt() * weight.double()


def assert_close(found: torch.Tensor, exact: torch.Tensor) -> None:
    rtol = TOLERANCES[found.dtype]
    torch.testing.assert_close(found.double(), exact, rtol=rtol, atol=rtol)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("columns", [192, 33, 4096])
def test_norm_of_rows_that_lie_apart(columns: int, dtype: torch.dtype) -> None:
    x = random(3, columns + 8, dtype=dtype)[:, :columns]
    weight, out = random(columns, dtype=dtype, seed=1), torch.full((3, columns), float("nan"), dtype=dtype)
    rms_norm(x, weight, EPS, out)
    assert_close(out, exact_norm(x, weight))


def test_adding_in_passing_gives_the_bits_of_adding_before() -> None:
    residual, delta, weight = (random(5, 192, seed=seed) for seed in range(3))
    weight = weight[0]
    fused, apart = torch.empty(5, 192), torch.empty(5, 192)
    before = residual + delta
    rms_norm(before, weight, EPS, apart)
    add_rms_norm(residual, delta, weight, EPS, fused)
    assert torch.equal(residual, before) and torch.equal(fused, apart)
    assert_close(fused, exact_norm(before, weight))


def test_a_sum_in_bf16_is_normalised_as_it_was_stored() -> None:
    residual, delta, weight = (random(5, 192, dtype=torch.bfloat16, seed=seed) for seed in range(3))
    fused, apart = torch.empty(2, 5, 192, dtype=torch.bfloat16)
    exact = residual.double() + delta.double()
    add_rms_norm(residual, delta, weight[0], EPS, fused)
    assert_close(residual, exact)
    rms_norm(residual, weight[0], EPS, apart)
    assert torch.equal(fused, apart)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("columns", [112, 1500])
def test_gate(columns: int, dtype: torch.dtype) -> None:
    gate_up = random(3, 2 * columns, dtype=dtype) * 8
    gate_up[0, 0], gate_up[0, 1] = -200.0, 200.0  # where exp overflows, and where it vanishes
    gate, up = gate_up.double().split(columns, dim=1)
    exact, kept_up = gate / (1 + (-gate).exp()) * up, gate_up[:, columns:].clone()
    out = gate_(gate_up)
    assert out.data_ptr() == gate_up.data_ptr() and torch.equal(gate_up[:, columns:], kept_up)
    assert_close(out, exact)


@dataclass
class Heads:
    """A layer's heads, a pool of three layers, and what float64 says must come out."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    dtype: torch.dtype
    with_bias: bool
    with_norm: bool
    block_size: int = 16
    num_blocks: int = 7

    def __post_init__(self) -> None:
        all_heads, half = self.num_heads + 2 * self.num_kv_heads, self.head_dim // 2
        self.width = all_heads * self.head_dim
        shape = (3, 2, self.num_blocks, self.num_kv_heads, self.block_size, self.head_dim)
        self.pool = torch.full(shape, 77.0, dtype=self.dtype)
        angles = torch.arange(200)[:, None] * 0.5 ** torch.arange(half)[None, :]
        self.rotary = torch.cat((angles.cos(), angles.sin()), dim=1).float()
        self.bias = random(self.width, dtype=self.dtype, seed=5) if self.with_bias else None
        self.qk_norm = random(2, self.head_dim, dtype=self.dtype, seed=6) if self.with_norm else None
        self.finisher = HeadFinisher(self.num_heads, self.rotary, self.pool, EPS)

    def exact(self, qkv: torch.Tensor, positions: list[int]) -> torch.Tensor:
        """[tokens, heads, head_dim] in float64, the values behind the keys."""
        x = qkv.double()
        if self.bias is not None:
            x = x + self.bias.double()
        x = x.view(len(positions), -1, self.head_dim).clone()
        rotating = self.num_heads + self.num_kv_heads
        if self.qk_norm is not None:
            x[:, : self.num_heads] = exact_norm(x[:, : self.num_heads], self.qk_norm[0])
            x[:, self.num_heads : rotating] = exact_norm(x[:, self.num_heads : rotating], self.qk_norm[1])
        cos, sin = self.rotary[positions].double()[:, None].chunk(2, dim=-1)
        first, second = x[:, :rotating].chunk(2, dim=-1)
        x[:, :rotating] = torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
        return x

    def check(self, layer: int, qkv: torch.Tensor, exact: torch.Tensor, slots: list[int | None]) -> None:
        """Queries in place, keys and values at `slots` of that layer, and nothing anywhere else."""
        heads = qkv.view(len(slots), -1, self.head_dim)
        expected = torch.full_like(self.pool, 77.0).double()
        for token, slot in enumerate(slots):
            if slot is None:
                continue
            assert_close(heads[token, : self.num_heads], exact[token, : self.num_heads])
            kv = exact[token, self.num_heads :].view(2, self.num_kv_heads, self.head_dim)
            expected[layer, :, slot // self.block_size, :, slot % self.block_size] = kv
        assert_close(self.pool, expected)


SHAPES = [
    Heads(6, 2, 32, torch.float32, False, False),
    Heads(4, 1, 16, torch.float32, True, True),
    Heads(7, 7, 20, torch.float32, True, False, block_size=8),  # no power of two anywhere
    Heads(8, 2, 128, torch.bfloat16, False, True),
]


@pytest.mark.parametrize("heads", SHAPES, ids=lambda heads: f"{heads.num_heads}x{heads.head_dim}")
def test_prefill_rotates_and_stores(heads: Heads) -> None:
    heads.pool.fill_(77.0)
    positions, slots = [0, 1, 199, 30, 31], [3, 4, 50, -1, 16]
    qkv = random(5, heads.width, dtype=heads.dtype)
    exact = heads.exact(qkv, positions)
    none = torch.empty(0, dtype=torch.int32)
    rows = PrefillBatchRows(
        torch.tensor(positions, dtype=torch.int32), torch.tensor(slots), none, none, none, 5, 200
    )  # fmt: skip
    heads.finisher.prefill(1, qkv, heads.bias, heads.qk_norm, rows)
    queries = qkv.view(5, -1, heads.head_dim)[:, : heads.num_heads]
    assert_close(queries[3], exact[3, : heads.num_heads])  # without a slot nothing is stored, but all is computed
    heads.check(1, qkv, exact, [3, 4, 50, None, 16])


@pytest.mark.parametrize("heads", SHAPES, ids=lambda heads: f"{heads.num_heads}x{heads.head_dim}")
def test_decode_stores_live_rows_through_their_tables(heads: Heads) -> None:
    heads.pool.fill_(77.0)
    size = heads.block_size
    state = DecodeState.allocate(5, 3, "cpu")
    state.block_table[:5] = torch.tensor([[5, 2, 0], [1, 3, 4], [6, 0, 0], [4, 0, 0], [0, 0, 0]])
    state.context_len[:5] = torch.tensor([size + 3, 2 * size, size, 1, 0])
    state.granted_len[:5] = torch.tensor([2 * size, 3 * size, size, size, 0])
    state.active[:5] = torch.tensor([1, 1, 1, 0, 1])
    index = torch.tensor([1, 0, 2, 3, 4, state.padding_slot, state.padding_slot], dtype=torch.int32)
    qkv = random(7, heads.width, dtype=heads.dtype)
    before = qkv.clone()
    positions = [2 * size, size + 3, 0, 0, 0, 0, 0]
    exact = heads.exact(qkv, positions)
    heads.finisher.decode(2, qkv, heads.bias, heads.qk_norm, state, index)
    heads.check(2, qkv, exact, [4 * size, 2 * size + 3, None, None, None, None, None])
    assert torch.equal(qkv[2:], before[2:]), "rows that are full, inactive, ungranted or padding"


params_of = st.builds(
    SamplingParams,
    max_tokens=st.integers(1, 6),
    min_tokens=st.integers(0, 6),
    eos_token_ids=st.sampled_from([(), (1,), (1, 2), (3, 1)]),
    stop_token_ids=st.sampled_from([(), (2,), (4, 3, 900)]),
    ignore_eos=st.booleans(),
)


@given(
    rows=st.lists(st.tuples(params_of, st.integers(0, 6), st.integers(0, 5)), min_size=1, max_size=8), data=st.data()
)
@settings(deadline=None, max_examples=80, derandomize=True)
def test_rows_end_where_the_hosts_rule_ends_them(
    rows: list[tuple[SamplingParams, int, int]], data: st.DataObject
) -> None:
    state = DecodeState.allocate(len(rows) + 2, 2, "cpu")
    samples = [SampleState(params, position) for params, position, _ in rows]
    assert not any(needs_host(sample, 100) for sample in samples)
    fill_table(state.sampling, range(len(rows)), samples, 100)
    state.context_len.fill_(10)
    state.granted_len.fill_(16)
    live = data.draw(
        st.lists(st.sampled_from(["yes", "inactive", "full", "no token"]), min_size=len(rows), max_size=len(rows))
    )
    for slot, kind in enumerate(live):
        state.active[slot] = kind != "inactive"
        state.granted_len[slot] = 10 if kind == "full" else 16
    order = data.draw(st.permutations(range(len(rows))))
    index = torch.tensor([*order, state.padding_slot], dtype=torch.int32)
    tokens = [rows[slot][2] if live[slot] != "no token" else -1 for slot in order]
    advance(state, index, torch.tensor([*tokens, 5], dtype=torch.int32))
    for slot, (params, position, token) in enumerate(rows):
        moved = int(live[slot] == "yes")
        is_over = moved and finish_after(params, position, token) is not None
        assert state.active[slot] == (live[slot] != "inactive" and not is_over)
        assert state.context_len[slot] == 10 + moved
        assert state.sampling.position[slot] == position + moved
        assert state.token[slot] == (token if moved else 0)
    assert state.context_len[state.padding_slot] == 10 and not state.active[len(rows) :].any()
