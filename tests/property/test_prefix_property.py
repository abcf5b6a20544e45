"""The prefix tree against a naive model: a table of prefixes with their blocks, pins and last use."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from colocate.core.blocks import BlockPool
from colocate.core.prefix import PrefixNode, PrefixTree

SIZE = 2
NUM_BLOCKS = 24
Prefix = tuple[str, tuple[int, ...]]  # salt and every token from the root


@dataclass
class Live:
    """A request: its sequence, table, and what it pins according to the model (None once `clear` detached it)."""

    salt: str
    tokens: list[int]
    table: list[int]
    node: PrefixNode | None
    pinned: list[Prefix] | None = field(default_factory=list)


class World:
    """The tree and its model, moved together."""

    def __init__(self) -> None:
        self.pool = BlockPool(NUM_BLOCKS, SIZE)
        self.tree = PrefixTree(self.pool)
        self.live: list[Live] = []
        self.block_of: dict[Prefix, int] = {}
        self.pins: Counter[Prefix] = Counter()
        self.last_used: dict[Prefix, int] = {}
        self.now_ns = 0

    def prefixes(self, salt: str, tokens: list[int], num_tokens: int) -> list[Prefix]:
        return [(salt, tuple(tokens[:end])) for end in range(SIZE, num_tokens + 1, SIZE)]

    def expected_match(self, salt: str, tokens: list[int], max_tokens: int) -> list[Prefix]:
        found = []
        for prefix in self.prefixes(salt, tokens, min(max_tokens, len(tokens))):
            if prefix not in self.block_of:
                break
            found.append(prefix)
        return found

    def start(self, salt: str, tokens: list[int]) -> None:
        """Admit with the whole table, as far as the pool and eviction allow it."""
        max_tokens = len(tokens) - 1
        expected = self.expected_match(salt, tokens, max_tokens)
        assert self.tree.match_length(salt, tokens, max_tokens) == len(expected) * SIZE
        hits = self.tree.num_hits
        node, blocks = self.tree.acquire(salt, tokens, max_tokens)
        assert blocks == [self.block_of[prefix] for prefix in expected]
        assert self.tree.num_hits - hits == len(expected) * SIZE
        self.pins.update(expected)
        request = Live(salt, tokens, blocks, node, expected)
        self.live.append(request)
        missing = self.pool.blocks_for(len(tokens)) - len(blocks)
        if missing > self.pool.num_free:
            self.evict(missing - self.pool.num_free)
        if self.pool.can_allocate(missing):
            request.table = blocks + self.pool.allocate(missing)
        else:
            self.finish(request)

    def compute(self, request: Live, num_tokens: int) -> None:
        num_computed = min(num_tokens, len(request.tokens))
        request.node = self.tree.extend(
            request.node, request.salt, request.tokens, request.table, num_computed, self.now_ns
        )
        if request.pinned is None:
            return
        wanted = self.prefixes(request.salt, request.tokens, num_computed)
        for index, prefix in enumerate(wanted[len(request.pinned) :], start=len(request.pinned)):
            self.block_of.setdefault(prefix, request.table[index])
            self.pins[prefix] += 1
            request.pinned.append(prefix)

    def finish(self, request: Live) -> None:
        self.live.remove(request)
        self.tree.release(request.node, self.now_ns)
        self.pool.release(request.table)
        for prefix in request.pinned or []:
            self.pins[prefix] -= 1
            self.last_used[prefix] = self.now_ns

    def decode(self, request: Live, token: int) -> None:
        """One more token, with a block for it, fed and written."""
        if len(request.tokens) == len(request.table) * SIZE:
            if not self.pool.can_allocate(1):
                self.evict(1)
            if not self.pool.can_allocate(1):
                return
            request.table = request.table + self.pool.allocate(1)
        request.tokens = [*request.tokens, token]

    def evict(self, num_blocks: int) -> None:
        """The model looks at every prefix each time: unpinned, nothing hangs below it, used longest ago."""
        held = Counter(block for request in self.live for block in request.table)
        freed = 0
        while freed < num_blocks:
            leaves = [
                prefix
                for prefix in self.block_of
                if self.pins[prefix] == 0
                and not any(other[0] == prefix[0] and other[1][:-SIZE] == prefix[1] for other in self.block_of)
            ]
            if not leaves:
                break
            oldest = min(leaves, key=lambda prefix: self.last_used[prefix])
            freed += held[self.block_of.pop(oldest)] == 0
        assert self.tree.evict(num_blocks) == freed

    def clear(self) -> None:
        self.tree.clear()
        self.block_of.clear()
        self.pins.clear()
        for request in self.live:
            if request.node is not None:
                request.pinned = None

    def check(self) -> None:
        self.tree.check()
        assert sorted(self.tree.blocks()) == sorted(self.block_of.values())
        assert self.tree.num_nodes == len(self.block_of)
        assert self.tree.num_evictable == sum(1 for prefix in self.block_of if self.pins[prefix] == 0)
        owners = Counter(block for request in self.live for block in request.table)
        owners.update(self.block_of.values())
        assert [self.pool.ref_count(block) for block in range(NUM_BLOCKS)] == [
            owners[block] for block in range(NUM_BLOCKS)
        ]
        assert self.pool.num_free == NUM_BLOCKS - len(owners)


SALTS = st.sampled_from(["", "tenant"])
TOKENS = st.lists(st.integers(0, 1), min_size=1, max_size=12)
OPERATIONS = st.one_of(
    st.tuples(st.just("start"), SALTS, TOKENS),
    st.tuples(st.just("compute"), st.integers(0, 9), st.integers(0, 14)),
    st.tuples(st.just("decode"), st.integers(0, 9), st.integers(0, 1)),
    st.tuples(st.just("finish"), st.integers(0, 9)),
    st.tuples(st.just("evict"), st.integers(1, 6)),
    st.tuples(st.just("clear")),
)


def apply(world: World, operation: tuple[object, ...]) -> None:
    match operation:
        case ("start", str(salt), list(tokens)):
            world.start(salt, tokens)
        case ("evict", int(num_blocks)):
            world.evict(num_blocks)
        case ("clear",):
            world.clear()
        case (str(name), int(index), *rest) if world.live:
            request = world.live[index % len(world.live)]
            match name, rest:
                case "compute", [int(num_tokens)]:
                    world.compute(request, num_tokens)
                case "decode", [int(token)]:
                    world.decode(request, token)
                case "finish", []:
                    world.finish(request)


@settings(max_examples=300, deadline=None)
@given(st.lists(OPERATIONS, max_size=60))
def test_the_tree_equals_the_naive_model_after_every_operation(operations: list[tuple[object, ...]]) -> None:
    world = World()
    for operation in operations:
        world.now_ns += 1
        apply(world, operation)
        world.check()


@settings(max_examples=100, deadline=None)
@given(st.lists(OPERATIONS, max_size=60))
def test_when_all_requests_are_gone_eviction_gives_back_every_block(operations: list[tuple[object, ...]]) -> None:
    world = World()
    for operation in operations:
        world.now_ns += 1
        apply(world, operation)
    for request in list(world.live):
        world.now_ns += 1
        world.finish(request)
    world.evict(NUM_BLOCKS)
    world.check()
    assert world.pool.num_free == NUM_BLOCKS
    assert world.tree.num_nodes == 0
