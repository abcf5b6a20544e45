"""The prefix tree: KV blocks of past and present requests, found again by the tokens they hold.

A radix tree cut at block borders: one node for each full block, its children keyed by the next block's token ids, one
root for each `cache_salt`. The salt isolates tenants: equal tokens under different salts never meet.

Rules:
* The tree is one holder of each of its blocks (`BlockPool.share`); a request that reads a block is another.
* A request pins every node of its path once, so pins(parent) >= sum(pins(children)) and a node that nobody pins has
  no pinned descendant: every unpinned node can be evicted, leaves first.
* Unpinned nodes stand in one line, in the order in which they were let go. A path is let go from its leaf upwards and
  whoever pins a node pins its parents, so a child always stands before its parent: the head of the line is the least
  recently used node and has no children. Eviction is O(1) for each block.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import NamedTuple, TypeAlias

from colocate.core.blocks import BlockPool
from colocate.errors import InvariantError
from colocate.types import BlockId, TokenId

BlockTokens: TypeAlias = tuple[TokenId, ...]


class PrefixNode:
    """One full block of KV whose content is proven to be written. Opaque to all but the tree."""

    __slots__ = ("block", "children", "depth", "last_used_ns", "life", "parent", "pins", "salt", "tokens")

    def __init__(
        self, salt: str, tokens: BlockTokens, block: BlockId, parent: PrefixNode | None, life: int, now_ns: int
    ) -> None:
        self.salt = salt
        self.tokens = tokens
        self.block = block
        self.parent = parent
        self.depth: int = 1 if parent is None else parent.depth + 1  # blocks from the root to here, this one included
        self.life = life  # of the tree it was made in: one that `clear` ended is detached
        self.pins = 1  # whoever inserts a node uses it
        self.last_used_ns = now_ns
        self.children: dict[BlockTokens, PrefixNode] = {}


class PrefixMatch(NamedTuple):
    """What `acquire` found: the deepest pinned node (None: nothing) and the blocks of its path, root first."""

    node: PrefixNode | None
    blocks: list[BlockId]


class PrefixTree:
    """Owned by the engine. `num_queries` and `num_hits` count tokens asked for and found by `acquire`, `num_evicted`
    blocks that `evict` forgot."""

    __slots__ = (
        "_life",
        "_line",
        "_pool",
        "_roots",
        "num_evicted",
        "num_hits",
        "num_nodes",
        "num_queries",
    )

    def __init__(self, pool: BlockPool) -> None:
        self._pool = pool
        self._roots: dict[str, dict[BlockTokens, PrefixNode]] = {}
        self._line: OrderedDict[PrefixNode, None] = OrderedDict()  # nobody pins these; least recently used first
        self._life = 0
        self.num_nodes = 0
        self.num_queries = 0
        self.num_hits = 0
        self.num_evicted = 0

    @property
    def num_evictable(self) -> int:
        """Nodes that nobody pins: `evict` can forget all of them."""
        return len(self._line)

    def match_length(self, salt: str, token_ids: Sequence[TokenId], max_tokens: int) -> int:
        """Tokens that `acquire` would find now: a multiple of the block size, at most `max_tokens`. Changes nothing."""
        return sum(1 for _ in self._walk(salt, token_ids, max_tokens)) * self._pool.block_size

    def acquire(self, salt: str, token_ids: Sequence[TokenId], max_tokens: int) -> PrefixMatch:
        """Pin the longest cached prefix and share its blocks: the caller puts them at the head of its block table.

        The caller gives the blocks back to the pool itself, and the pins with `release`.
        """
        node: PrefixNode | None = None
        blocks: list[BlockId] = []
        for node in self._walk(salt, token_ids, max_tokens):
            self._pin(node)
            blocks.append(node.block)
        self._pool.share(blocks)
        self.num_queries += len(token_ids)
        self.num_hits += len(blocks) * self._pool.block_size
        return PrefixMatch(node, blocks)

    def uncount(self, num_asked: int, num_blocks: int) -> None:
        """A lookup that served no new prompt: `acquire` counted so many tokens asked for and blocks found."""
        self.num_queries -= num_asked
        self.num_hits -= num_blocks * self._pool.block_size

    def extend(
        self,
        node: PrefixNode | None,
        salt: str,
        token_ids: Sequence[TokenId],
        blocks: Sequence[BlockId],
        num_computed: int,
        now_ns: int,
    ) -> PrefixNode | None:
        """Insert the full blocks of positions below `num_computed` that lie beyond the caller's pinned `node`.

        `token_ids` and `blocks` are the caller's whole sequence and block table; KV of the first `num_computed` tokens
        is proven to be written. Where an equal node stands already (another request computed the same), it is pinned
        instead and the caller's own block stays private. Returns the node to hold from now on. O(new blocks).
        """
        if node is not None and node.life != self._life:
            return node  # its path was forgotten: what hangs below an untrusted block is not trusted either
        size = self._pool.block_size
        new_blocks: list[BlockId] = []
        for depth in range(0 if node is None else node.depth, num_computed // size):
            tokens = tuple(token_ids[depth * size : (depth + 1) * size])
            siblings = node.children if node is not None else self._roots.setdefault(salt, {})
            found = siblings.get(tokens)
            if found is not None:
                self._pin(found)
                node = found
                continue
            new_blocks.append(blocks[depth])
            node = siblings[tokens] = PrefixNode(salt, tokens, blocks[depth], node, self._life, now_ns)
        self._pool.share(new_blocks)
        self.num_nodes += len(new_blocks)
        return node

    def release(self, node: PrefixNode | None, now_ns: int) -> None:
        """Unpin a path. None, and a node that `clear` detached, are ignored."""
        if node is None or node.life != self._life:
            return
        up: PrefixNode | None = node
        while up is not None:
            if up.pins == 0:
                raise InvariantError(f"prefix node of block {up.block} is released but nobody pins it")
            up.pins -= 1
            up.last_used_ns = now_ns
            if up.pins == 0:
                self._line[up] = None
            up = up.parent

    def evict(self, num_blocks: int) -> int:
        """Forget unpinned nodes, the least recently used leaf first, until `num_blocks` blocks became free.

        Returns how many did: fewer where the line ends first.
        """
        num_freed = 0
        while num_freed < num_blocks and self._line:
            node, _ = self._line.popitem(last=False)
            siblings = node.parent.children if node.parent is not None else self._roots[node.salt]
            del siblings[node.tokens]
            if not siblings and node.parent is None:
                del self._roots[node.salt]
            num_freed += self._pool.ref_count(node.block) == 1
            self._pool.release((node.block,))
            self.num_nodes -= 1
            self.num_evicted += 1
        return num_freed

    def clear(self) -> None:
        """Forget everything, pinned or not: the KV is not to be trusted. Pins on forgotten nodes mean nothing now.

        A request without a node cannot be told from a new one: the caller computes its KV again before it extends.
        """
        nodes = list(self._nodes())
        self._pool.release([node.block for node in nodes])
        for node in nodes:  # unlinked one by one: a request that still holds a leaf must not keep the whole path
            node.parent = None
            node.children = {}
        self._roots = {}
        self._line.clear()
        self._life += 1
        self.num_nodes = 0

    def blocks(self) -> Iterator[BlockId]:
        """Every block that the tree holds, in no order."""
        return (node.block for node in self._nodes())

    def check(self) -> None:
        """Raises InvariantError where a rule of this file is broken. O(nodes)."""
        owned: set[BlockId] = set()
        for node in self._nodes():
            self._check_node(node)
            if node.block in owned:
                raise InvariantError(f"block {node.block} belongs to two prefix nodes")
            owned.add(node.block)
        if len(owned) != self.num_nodes:
            raise InvariantError(f"{len(owned)} prefix nodes, the account says {self.num_nodes}")
        if not all(self._roots.values()):
            raise InvariantError("a salt without nodes was kept")
        passed: set[PrefixNode] = set()
        last_used_ns = 0
        for node in self._line:
            if node.last_used_ns < last_used_ns:
                raise InvariantError(f"the line of prefix nodes is out of order at block {node.block}")
            if not passed.issuperset(node.children.values()):
                raise InvariantError(f"prefix node of block {node.block} stands before a child")
            passed.add(node)
            last_used_ns = node.last_used_ns

    def _walk(self, salt: str, token_ids: Sequence[TokenId], max_tokens: int) -> Iterator[PrefixNode]:
        """The nodes that hold the head of `token_ids`, root first."""
        size = self._pool.block_size
        children = self._roots.get(salt)
        for start in range(0, min(max_tokens, len(token_ids)) - size + 1, size):
            node = children.get(tuple(token_ids[start : start + size])) if children else None
            if node is None:
                return
            yield node
            children = node.children

    def _pin(self, node: PrefixNode) -> None:
        if node.pins == 0:
            del self._line[node]
        node.pins += 1

    def _nodes(self) -> Iterator[PrefixNode]:
        """Parents before their children; a chain may be thousands of blocks deep, so nothing recurses."""
        heap = [node for siblings in self._roots.values() for node in siblings.values()]
        while heap:
            node = heap.pop()
            yield node
            heap.extend(node.children.values())

    def _check_node(self, node: PrefixNode) -> None:
        where = f"prefix node of block {node.block}"
        if self._pool.ref_count(node.block) == 0:
            raise InvariantError(f"{where}: the block is free")
        if node.pins < sum(child.pins for child in node.children.values()):
            raise InvariantError(f"{where}: fewer pins than its children")
        if (node.pins == 0) != (node in self._line):
            raise InvariantError(f"{where}: {node.pins} pins, in the line: {node in self._line}")
        if any(child.parent is not node or child.depth != node.depth + 1 for child in node.children.values()):
            raise InvariantError(f"{where}: a child does not know it")
