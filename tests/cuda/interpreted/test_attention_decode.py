"""Decode attention against float64: splits, skipped rows, windows, groups, head sizes; and what the plan promises."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from colocate.errors import InvariantError
from colocate.model.cuda.attention import CudaAttention
from colocate.model.cuda.kernels.attention_decode import attention_plan_kernel
from colocate.model.cuda.kernels.attention_shapes import AttentionShapes, DecodeShape, PrefillShape
from tests.cuda.paged_world import PagedWorld, assert_close, heads_config

_PREFILL = PrefillShape(16, 16, 1, 1)
_ALONE = AttentionShapes(_PREFILL, DecodeShape(16, 1, 1), items_per_sm=1, min_tiles=1)
_SPLIT = replace(_ALONE, items_per_sm=12)  # of the interpreter's one SM, shared by the KV heads


def _check(
    world: PagedWorld,
    shapes: AttentionShapes = _SPLIT,
    inactive: Sequence[int] = (),
    full: Sequence[int] = (),
    num_sms: int = 4,
) -> None:
    num_rows = len(world.contexts)
    slots = [2 * row + 1 for row in reversed(range(num_rows))]
    state = world.decode_state(slots, inactive, full)
    index = torch.tensor([*slots, state.padding_slot], dtype=torch.int32)
    attention = CudaAttention(world.config, world.pool, max_rows=num_rows + 1, max_tokens=64, shapes=shapes)
    q = world.queries(num_rows + 1)
    for layer in range(world.config.num_layers):
        out = world.new_out(num_rows + 1)
        attention.decode(layer, q, state, index, out, num_sms)
        expected = torch.zeros(num_rows + 1, world.config.q_size, dtype=torch.float64)
        for row, context in enumerate(world.contexts):
            if row not in inactive and row not in full:
                expected[row] = world.attend(layer, row, q[row], context - 1)
        assert_close(out, expected)


@pytest.mark.parametrize("shapes", [_ALONE, _SPLIT], ids=["alone", "split"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_of_all_lengths_and_rows_that_are_skipped(dtype: torch.dtype, shapes: AttentionShapes) -> None:
    config = heads_config(4, 2, 32, [None, 20, None, 20])
    world = PagedWorld.make(config, [1, 130, 16, 17, 40, 33], block_size=4, dtype=dtype, shared_blocks=2)
    _check(world, shapes, inactive=[4], full=[5])


@pytest.mark.parametrize(("num_heads", "num_kv_heads"), [(2, 2), (4, 2), (3, 1), (4, 1), (7, 1), (8, 1), (17, 1)])
def test_groups_of_any_size(num_heads: int, num_kv_heads: int) -> None:
    config = heads_config(num_heads, num_kv_heads, 32, [None])
    _check(PagedWorld.make(config, [55, 9], block_size=8, dtype=torch.float32))


@pytest.mark.parametrize("head_dim", [16, 64, 80, 128])
def test_head_sizes(head_dim: int) -> None:
    config = heads_config(2, 1, head_dim, [None, 7])
    _check(PagedWorld.make(config, [70, 3], block_size=16, dtype=torch.bfloat16))


@pytest.mark.parametrize("window", [1, 15, 16, 17, 64])
def test_windows_around_the_borders_of_tiles(window: int) -> None:
    config = heads_config(2, 1, 32, [window])
    _check(PagedWorld.make(config, [49, 64, 81], block_size=8, dtype=torch.float32))


@pytest.mark.parametrize("block_size", [1, 32, 128])
def test_blocks_smaller_and_larger_than_tiles(block_size: int) -> None:
    config = heads_config(2, 1, 32, [None])
    _check(PagedWorld.make(config, [45, 133], block_size=block_size, dtype=torch.float32))


def test_keys_that_slid_out_of_the_window_are_not_read() -> None:
    world = PagedWorld.make(heads_config(2, 1, 32, [8]), [40], block_size=4, dtype=torch.float32)
    world.block_tables[0, :8] = 0  # positions 0..31: a block of NaN; position 39 sees 32..39
    _check(world)


def test_more_parts_than_are_merged_at_once() -> None:
    world = PagedWorld.make(heads_config(4, 1, 32, [None]), [530, 600, 560], block_size=16, dtype=torch.float32)
    world.pool[:, 0] *= 3  # scores far apart: the heaviest part comes early in some rows and heads, late in others
    _check(world, replace(_SPLIT, items_per_sm=150))


def test_pools_of_more_elements_than_an_int32_counts() -> None:
    world = PagedWorld.make(heads_config(2, 1, 32, [None]), [40, 3], block_size=16, dtype=torch.bfloat16)
    _check(world.behind(1 << 31))


def test_the_shapes_of_the_interpreted_backend_and_of_an_h200() -> None:
    world = PagedWorld.make(heads_config(6, 2, 32, [None, 100]), [300, 40], block_size=16, dtype=torch.float32)
    for shapes in (AttentionShapes.interpreted(), AttentionShapes.of(32, 4), AttentionShapes.of(32, 2)):
        _check(world, shapes)


@pytest.mark.parametrize("num_sms", [0, 1, 500])
def test_the_workspace_holds_the_parts_of_any_share(num_sms: int) -> None:
    """0 is an inline lane: a few SMs, more than the interpreter's one; 500 is more than any device has."""
    world = PagedWorld.make(heads_config(2, 1, 32, [None]), [900, 400], block_size=16, dtype=torch.float32)
    _check(world, num_sms=num_sms)


def test_a_step_without_any_row_is_zeros() -> None:
    world = PagedWorld.make(heads_config(2, 1, 32, [None]), [5, 20], block_size=4, dtype=torch.float32)
    _check(world, inactive=[0, 1])


def test_rows_that_advance_are_planned_again_with_the_first_layer() -> None:
    world = PagedWorld.make(heads_config(2, 1, 32, [None, 9]), [60, 31], block_size=4, dtype=torch.float32)
    state = world.decode_state([0, 1])
    index = torch.tensor([0, 1], dtype=torch.int32)
    attention = CudaAttention(world.config, world.pool, max_rows=2, max_tokens=8, shapes=_SPLIT)
    q = world.queries(2)
    for step in (24, 2, 1):  # so many positions before the last
        state.context_len.copy_(torch.tensor([60 - step, 31 - step, 0]))
        for layer in range(2):
            out = world.new_out(2)
            attention.decode(layer, q, state, index, out, num_sms=4)
            expected = [world.attend(layer, row, q[row], context - step) for row, context in enumerate(world.contexts)]
            assert_close(out, torch.stack(expected))


@settings(max_examples=25, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    contexts=st.lists(st.integers(0, 4000), min_size=1, max_size=12),
    window=st.one_of(st.just(0), st.integers(1, 500)),
    slots=st.integers(1, 40),
    min_tiles=st.integers(1, 4),
)
def test_a_plan_covers_what_is_seen_once_in_parts_of_equal_size(
    contexts: list[int], window: int, slots: int, min_tiles: int
) -> None:
    """A context of 0 stands for a row that is skipped."""
    num_rows, num_items, tile = len(contexts), slots + len(contexts), 16
    active = torch.tensor([int(context > 0) for context in contexts], dtype=torch.int32)
    written = torch.tensor([max(context - 1, 0) for context in contexts], dtype=torch.int32)
    items = torch.full((num_items + 1, 8), -99, dtype=torch.int32)
    parts = torch.full((num_rows, 2), -99, dtype=torch.int32)
    attention_plan_kernel[(-(-num_items // 8),)](
        torch.arange(num_rows, dtype=torch.int32), active, written, written + 1, num_rows, slots, num_items, items,
        parts, WINDOW=window, BLOCK_N=tile, MIN_TILES=min_tiles, ROWS=16, ITEMS=8,
    )  # fmt: skip
    assert items[num_items].eq(-99).all()
    used = [item[:5] for item in items[:num_items].tolist() if item[0] >= 0]
    tiles = [-(-end // tile) - first // tile for _, _, first, end, _ in used]
    for row, context in enumerate(contexts):
        own = [item for item in used if item[0] == row]
        first_item, count = parts[row].tolist()
        assert own == used[first_item : first_item + count]
        assert all(item[1] == row and item[4] == count for item in own)
        edges = [edge for item in own for edge in item[2:4]]
        assert edges[0] == (max(0, context - window) if window else 0)
        assert edges[-1] == context
        assert edges[1:-1:2] == edges[2::2] and all(edge % tile == 0 for edge in edges[1:-1])
        own_tiles = tiles[first_item : first_item + count]
        assert max(own_tiles) - min(own_tiles) <= 1
    assert max(tiles) <= max(min_tiles, -(-sum(tiles) // slots))


def test_more_rows_than_room_is_a_bug() -> None:
    world = PagedWorld.make(heads_config(2, 1, 32, [None]), [4, 4], block_size=4, dtype=torch.float32)
    attention = CudaAttention(world.config, world.pool, max_rows=1, max_tokens=8, shapes=_SPLIT)
    index = torch.tensor([0, 1], dtype=torch.int32)
    with pytest.raises(InvariantError):
        attention.decode(0, world.queries(2), world.decode_state([0, 1]), index, world.new_out(2), num_sms=1)


@settings(max_examples=10, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    contexts=st.lists(st.integers(1, 150), min_size=1, max_size=6),
    group=st.integers(1, 5),
    window=st.one_of(st.none(), st.integers(1, 50)),
    block_size=st.sampled_from([2, 8, 16]),
    items_per_sm=st.integers(1, 20),
    min_tiles=st.integers(1, 3),
    skipped=st.sets(st.integers(0, 5)),
    seed=st.integers(0, 1000),
)
def test_any_batch(
    contexts: list[int],
    group: int,
    window: int | None,
    block_size: int,
    items_per_sm: int,
    min_tiles: int,
    skipped: set[int],
    seed: int,
) -> None:
    config = heads_config(group, 1, 16, [window])
    world = PagedWorld.make(
        config, contexts, block_size=block_size, dtype=torch.float32, shared_blocks=seed % 3, seed=seed
    )
    inactive = [row for row in skipped if row < len(contexts)]
    _check(world, replace(_SPLIT, items_per_sm=items_per_sm, min_tiles=min_tiles), inactive)
