"""Prefill attention against float64: prefixes, windows, groups, head sizes, ragged batches."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from colocate.errors import InvariantError
from colocate.model.cuda.attention import CudaAttention
from colocate.model.cuda.kernels.attention_shapes import AttentionShapes, DecodeShape, PrefillShape
from tests.cuda.paged_world import PagedWorld, assert_close, heads_config

# Small tiles, so that small contexts have several on each side of every border.
_SHAPES = AttentionShapes(PrefillShape(16, 16, 1, 1), DecodeShape(16, 1, 1))


def _check(world: PagedWorld, own: Sequence[int], shapes: AttentionShapes = _SHAPES, max_rows: int = 8) -> None:
    rows = world.prefill_rows(own)
    attention = CudaAttention(world.config, world.pool, max_rows=max_rows, max_tokens=1 << 12, shapes=shapes)
    q = world.queries(rows.num_tokens)
    for layer in range(world.config.num_layers):
        out = world.new_out(rows.num_tokens)
        attention.prefill(layer, q, rows, out, num_sms=4)
        owners = torch.repeat_interleave(torch.arange(len(own)), torch.tensor(own)).tolist()
        expected = [
            world.attend(layer, row, q[token], position)
            for token, (row, position) in enumerate(zip(owners, rows.positions.tolist(), strict=True))
        ]
        assert_close(out, torch.stack(expected))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_prefixes_of_every_kind_in_one_batch(dtype: torch.dtype) -> None:
    config = heads_config(4, 2, 32, [None, 20])
    # cached: none, one token, whole blocks, whole tiles, a part of a block
    world = PagedWorld.make(config, [37, 6, 21, 40, 20], block_size=4, dtype=dtype, shared_blocks=1)
    _check(world, [37, 5, 5, 8, 1])


@pytest.mark.parametrize(("num_heads", "num_kv_heads"), [(2, 2), (4, 2), (3, 1), (4, 1), (7, 1), (8, 1), (17, 1)])
def test_groups_of_any_size(num_heads: int, num_kv_heads: int) -> None:
    config = heads_config(num_heads, num_kv_heads, 32, [None])
    _check(PagedWorld.make(config, [23, 9], block_size=8, dtype=torch.float32), [20, 9])


@pytest.mark.parametrize("head_dim", [16, 64, 80, 128])
def test_head_sizes(head_dim: int) -> None:
    config = heads_config(2, 1, head_dim, [None, 7])
    _check(PagedWorld.make(config, [33], block_size=16, dtype=torch.bfloat16), [30])


@pytest.mark.parametrize("window", [1, 15, 16, 17, 64])
def test_windows_around_the_borders_of_tiles(window: int) -> None:
    config = heads_config(2, 1, 32, [window])
    _check(PagedWorld.make(config, [50, 70], block_size=8, dtype=torch.float32), [40, 20])


@pytest.mark.parametrize("block_size", [1, 32, 128])
def test_blocks_smaller_and_larger_than_tiles(block_size: int) -> None:
    config = heads_config(2, 1, 32, [None])
    _check(PagedWorld.make(config, [45, 33], block_size=block_size, dtype=torch.float32), [29, 33])


def test_keys_that_slid_out_of_the_window_are_not_read() -> None:
    config = heads_config(2, 1, 32, [8])
    world = PagedWorld.make(config, [40], block_size=4, dtype=torch.float32)
    world.block_tables[0, :6] = 0  # positions 0..23: a block of NaN; query 31 sees 24..31
    _check(world, [9])


def test_pools_of_more_elements_than_an_int32_counts() -> None:
    world = PagedWorld.make(heads_config(2, 1, 32, [None]), [40, 3], block_size=16, dtype=torch.bfloat16)
    _check(world.behind(1 << 31), [20, 3])


def test_the_shapes_of_the_interpreted_backend_and_of_an_h200() -> None:
    config = heads_config(3, 1, 32, [None, 100])
    world = PagedWorld.make(config, [200, 40, 1], block_size=16, dtype=torch.float32)
    _check(world, [70, 40, 1], AttentionShapes.interpreted())
    _check(world, [70, 40, 1], AttentionShapes.of(32, 4))
    _check(world, [70, 40, 1], AttentionShapes.of(32, 2))


def test_more_rows_than_room_is_a_bug() -> None:
    world = PagedWorld.make(heads_config(2, 1, 32, [None]), [4] * 3, block_size=4, dtype=torch.float32)
    with pytest.raises(InvariantError):
        _check(world, [4, 4, 4], max_rows=2)


@settings(max_examples=10, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    lens=st.lists(st.tuples(st.integers(0, 40), st.integers(1, 40)), min_size=1, max_size=5),
    group=st.integers(1, 5),
    window=st.one_of(st.none(), st.integers(1, 50)),
    block_size=st.sampled_from([2, 8, 16]),
    shared_blocks=st.integers(0, 2),
    seed=st.integers(0, 1000),
)
def test_any_batch(
    lens: list[tuple[int, int]], group: int, window: int | None, block_size: int, shared_blocks: int, seed: int
) -> None:
    config = heads_config(group, 1, 16, [window])
    contexts = [cached + own for cached, own in lens]
    world = PagedWorld.make(
        config, contexts, block_size=block_size, dtype=torch.float32, shared_blocks=shared_blocks, seed=seed
    )
    _check(world, [own for _, own in lens])
