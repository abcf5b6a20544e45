"""The pool of KV blocks: who holds what, counted. Ask (`can_allocate`), then do (`allocate`)."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from colocate.errors import InvariantError
from colocate.types import BlockId


class BlockPool:
    """Reference-counted block ids `0 .. num_blocks - 1`.

    Freed blocks are reused oldest first, so that a bug that reads a freed block shows late rather than never.
    Draining is an account, not a state: blocks still referenced whose holder is being told to let go.
    """

    __slots__ = ("_free", "_ref_counts", "block_size", "num_blocks", "num_draining")

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.num_draining = 0
        self._free: deque[BlockId] = deque(range(num_blocks))
        self._ref_counts = [0] * num_blocks

    @property
    def num_free(self) -> int:
        return len(self._free)

    def blocks_for(self, num_tokens: int) -> int:
        """How many blocks hold `num_tokens` positions."""
        return -(-num_tokens // self.block_size)

    def can_allocate(self, num_blocks: int) -> bool:
        return num_blocks <= len(self._free)

    def allocate(self, num_blocks: int) -> list[BlockId]:
        """Take blocks with a reference count of one. Raises InvariantError unless `can_allocate` holds."""
        if num_blocks > len(self._free):
            raise InvariantError(f"allocate({num_blocks}) with {len(self._free)} blocks free")
        blocks = [self._free.popleft() for _ in range(num_blocks)]
        for block in blocks:
            self._ref_counts[block] = 1
        return blocks

    def share(self, blocks: Iterable[BlockId]) -> None:
        """Add a holder to blocks that are in use."""
        for block in blocks:
            if self._ref_counts[block] == 0:
                raise InvariantError(f"block {block} is free and cannot be shared")
            self._ref_counts[block] += 1

    def release(self, blocks: Iterable[BlockId]) -> None:
        """Drop one holder of each block; a block without holders is free."""
        for block in blocks:
            count = self._ref_counts[block]
            if count == 0:
                raise InvariantError(f"block {block} is released but nobody holds it")
            self._ref_counts[block] = count - 1
            if count == 1:
                self._free.append(block)

    def ref_count(self, block: BlockId) -> int:
        return self._ref_counts[block]

    def statistics(self) -> dict[str, int]:
        return {"blocks_total": self.num_blocks, "blocks_free": self.num_free, "blocks_draining": self.num_draining}
