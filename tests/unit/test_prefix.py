"""The prefix tree: matching, sharing, eviction order, tenants, and what `clear` leaves harmless."""

from __future__ import annotations

import gc

import pytest

from colocate.core.blocks import BlockPool
from colocate.core.prefix import PrefixNode, PrefixTree
from colocate.errors import InvariantError

SIZE = 4


class World:
    """A pool, a tree, and requests that compute whole sequences."""

    def __init__(self, num_blocks: int = 32) -> None:
        self.pool = BlockPool(num_blocks, SIZE)
        self.tree = PrefixTree(self.pool)
        self.now_ns = 0

    def tick(self) -> int:
        self.now_ns += 1
        return self.now_ns

    def start(self, tokens: list[int], salt: str = "") -> tuple[PrefixNode | None, list[int]]:
        """A request that reuses what it finds, computes the rest, and stays."""
        node, blocks = self.tree.acquire(salt, tokens, len(tokens))
        table = blocks + self.pool.allocate(self.pool.blocks_for(len(tokens)) - len(blocks))
        return self.tree.extend(node, salt, tokens, table, len(tokens), self.tick()), table

    def finish(self, request: tuple[PrefixNode | None, list[int]]) -> None:
        self.tree.release(request[0], self.tick())
        self.pool.release(request[1])

    def run(self, tokens: list[int], salt: str = "") -> list[int]:
        request = self.start(tokens, salt)
        self.finish(request)
        self.tree.check()
        return request[1]


def sequence(*heads: int) -> list[int]:
    """One block of equal tokens for each head."""
    return [head for head in heads for _ in range(SIZE)]


def test_only_full_blocks_are_found_and_never_more_than_asked_for() -> None:
    world = World()
    tokens = [*sequence(1, 2, 3), 9, 9]
    table = world.run(tokens)
    match = world.tree.match_length
    assert match("", tokens, len(tokens)) == 12
    assert match("", tokens, 12) == 12
    assert match("", tokens, 11) == 8  # a full hit must leave the last token to be computed
    assert match("", tokens, 3) == 0
    assert match("", tokens[:7], 100) == 4
    assert match("", sequence(1, 3), 100) == 4
    node, blocks = world.tree.acquire("", tokens, 11)
    assert blocks == table[:2]
    assert [world.pool.ref_count(block) for block in table[:3]] == [2, 2, 1]
    world.finish((node, blocks))
    assert world.pool.num_free == world.pool.num_blocks - world.tree.num_nodes


def test_tokens_asked_for_and_found_are_counted_by_acquire_alone() -> None:
    world = World()
    world.run(sequence(1, 2))
    world.tree.match_length("", sequence(1, 2), 8)
    assert (world.tree.num_queries, world.tree.num_hits) == (8, 0)
    world.tree.acquire("", [*sequence(1), 5, 5], 6)
    assert (world.tree.num_queries, world.tree.num_hits) == (14, 4)


def test_a_salt_isolates_tenants() -> None:
    world = World()
    world.run(sequence(1, 2), "alice")
    assert world.tree.match_length("bob", sequence(1, 2), 8) == 0
    assert world.tree.match_length("", sequence(1, 2), 8) == 0
    assert world.tree.match_length("alice", sequence(1, 2), 8) == 8


def test_two_requests_that_computed_the_same_share_one_node_and_keep_their_own_blocks() -> None:
    world = World()
    tokens = sequence(1, 2)
    tables = [world.pool.allocate(2), world.pool.allocate(2)]
    first = world.tree.extend(None, "", tokens, tables[0], 8, world.tick())
    second = world.tree.extend(None, "", tokens, tables[1], 8, world.tick())
    assert first is second
    assert world.tree.num_nodes == 2
    assert sorted(world.tree.blocks()) == sorted(tables[0])
    assert [world.pool.ref_count(block) for block in tables[1]] == [1, 1]
    world.finish((first, tables[0]))
    world.tree.check()
    assert world.tree.num_evictable == 0  # the second request still pins the path
    world.finish((second, tables[1]))
    assert world.tree.num_evictable == 2


def test_extend_inserts_only_what_a_report_has_confirmed_and_goes_on_from_there() -> None:
    world = World()
    tokens, table = sequence(1, 2, 3), world.pool.allocate(3)
    node = world.tree.extend(None, "", tokens, table, 3, world.tick())
    assert node is None
    node = world.tree.extend(node, "", tokens, table, 7, world.tick())
    assert world.tree.match_length("", tokens, 12) == 4
    node = world.tree.extend(node, "", tokens, table, 12, world.tick())
    assert world.tree.match_length("", tokens, 12) == 12
    world.finish((node, table))
    world.tree.check()


def test_eviction_takes_the_least_recently_used_leaf_and_a_parent_after_its_children() -> None:
    world = World()
    world.run(sequence(1, 2, 3))
    world.run(sequence(1, 4))  # the shared head is younger than the first branch now
    world.run(sequence(5))
    evicted: list[list[int]] = []
    for _ in range(5):
        assert world.tree.evict(1) == 1
        world.tree.check()
        evicted.append(
            [
                world.tree.match_length("", tokens, 12) // SIZE
                for tokens in (sequence(1, 2, 3), sequence(1, 4), sequence(5))
            ]
        )
    assert evicted == [[2, 2, 1], [1, 2, 1], [1, 1, 1], [0, 0, 1], [0, 0, 0]]
    assert world.tree.evict(1) == 0
    assert world.pool.num_free == world.pool.num_blocks
    assert world.tree.num_evicted == 5


def test_a_pinned_path_is_never_evicted() -> None:
    world = World()
    world.run(sequence(1, 2))
    held = world.start(sequence(1))
    assert world.tree.evict(10) == 1
    assert world.tree.match_length("", sequence(1, 2), 8) == 4
    world.finish(held)
    assert world.tree.evict(10) == 1


def test_a_block_that_somebody_still_holds_is_forgotten_but_not_counted_as_freed() -> None:
    world = World()
    node, table = world.start(sequence(1))
    world.tree.release(node, world.tick())
    assert world.tree.evict(1) == 0
    assert world.tree.num_nodes == 0
    assert world.pool.ref_count(table[0]) == 1


def test_clear_forgets_pinned_paths_too_and_makes_their_release_harmless() -> None:
    world = World()
    held = world.start(sequence(1, 2))
    world.run(sequence(1, 3))
    world.tree.clear()
    world.tree.check()
    assert (world.tree.num_nodes, world.tree.num_evictable) == (0, 0)
    assert [world.pool.ref_count(block) for block in held[1]] == [1, 1]
    # The detached request inserts nothing more, and its release does not touch what was built since.
    newcomer = world.start(sequence(1, 2))
    grown = world.tree.extend(held[0], "", sequence(1, 2, 4), [*held[1], 31], 12, world.tick())
    assert grown is held[0]
    assert world.tree.num_nodes == 2
    world.finish(held)
    world.tree.check()
    assert world.tree.num_evictable == 0
    world.finish(newcomer)
    assert world.tree.evict(10) == 2


def test_clear_does_not_leave_a_long_path_alive_through_its_leaf() -> None:
    world = World()
    node, _ = world.start(sequence(1, 2, 3))
    assert node is not None
    world.tree.clear()
    gc.collect()
    others = [item for item in gc.get_objects() if isinstance(item, PrefixNode) and item is not node]
    assert others == []


def test_salts_without_nodes_are_dropped() -> None:
    world = World()
    for tenant in range(20):
        world.run(sequence(1), f"tenant-{tenant}")
    world.tree.evict(19)
    world.tree.check()  # fails on an empty root
    assert world.tree.match_length("tenant-19", sequence(1), 4) == 4


def test_a_path_of_thousands_of_blocks_needs_no_recursion() -> None:
    world = World(num_blocks=5000)
    tokens = [token // SIZE for token in range(5000 * SIZE)]
    world.run(tokens)
    assert world.tree.match_length("", tokens, len(tokens)) == len(tokens)
    assert world.tree.evict(2500) == 2500
    world.tree.check()
    world.tree.clear()
    assert world.pool.num_free == 5000


def test_releasing_twice_is_a_bug() -> None:
    world = World()
    node, _ = world.start(sequence(1))
    world.tree.release(node, world.tick())
    with pytest.raises(InvariantError, match="nobody pins it"):
        world.tree.release(node, world.tick())
