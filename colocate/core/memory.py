"""KV memory as the engine sees it: the block pool with the prefix tree on top.

A block that only the tree holds is as good as free: it is evicted when somebody needs it. So "can be allocated" counts
both, and whoever allocates makes room first. Rules of the tree (design section 6):
* a block enters only when a report has proved all its layers written;
* decode's blocks enter up to the last token fed, when the request ends or is preempted;
* a full hit recomputes the final token, because its logits are needed;
* a prompt that is scored (`echo` with logprobs) is computed whole;
* requests of different `cache_salt` never share.
"""

from __future__ import annotations

from colocate.core.blocks import BlockPool
from colocate.core.prefix import PrefixTree
from colocate.core.request import Request
from colocate.types import BlockId


class Memory:
    """Owned by the books. Ask (`can_allocate`), then do."""

    __slots__ = ("_is_caching", "pool", "tree")

    def __init__(self, num_blocks: int, block_size: int, prefix_caching: bool) -> None:
        self.pool = BlockPool(num_blocks, block_size)
        self.tree = PrefixTree(self.pool)
        self._is_caching = prefix_caching

    @property
    def num_available(self) -> int:
        """Blocks that are free, or cached and in nobody's use."""
        return self.pool.num_free + self.tree.num_evictable

    @property
    def available_share(self) -> float:
        return self.num_available / self.pool.num_blocks

    def can_allocate(self, num_blocks: int) -> bool:
        return num_blocks <= self.pool.num_free + self.tree.num_evictable

    def allocate(self, num_blocks: int) -> list[BlockId]:
        """Evicts what is needed. Raises InvariantError unless `can_allocate` holds."""
        missing = num_blocks - self.pool.num_free
        if missing > 0:
            self.tree.evict(missing)
        return self.pool.allocate(num_blocks)

    # -- a request's life ------------------------------------------------------------------------------------------

    def expect(self, request: Request) -> None:
        """Before it is queued: how much of it a prefill would have to compute. O(cached blocks + 1)."""
        request.num_uncached = self.uncached_tokens(request)

    def uncached_tokens(self, request: Request) -> int:
        """Tokens a prefill would compute, by what is cached now. O(cached blocks + 1)."""
        num_tokens = request.num_prefill_tokens
        if not self._may_reuse(request):
            return num_tokens
        tokens = request.prefill_tokens(0, num_tokens)
        return num_tokens - self.tree.match_length(request.cache_salt, tokens, num_tokens - 1)

    def _may_reuse(self, request: Request) -> bool:
        is_scored = request.params.prompt_logprobs is not None and not request.output_token_ids
        return self._is_caching and not is_scored

    def blocks_expected(self, request: Request) -> int:
        """New blocks its prefill needs, by what was cached when it was queued. O(1)."""
        cached = (request.num_prefill_tokens - request.num_uncached) // self.pool.block_size
        return self.pool.blocks_for(request.num_prefill_tokens) - cached

    def admit(self, request: Request, num_reserved: int, now_ns: int) -> bool:
        """Give it blocks for all its tokens, cached ones first, if `num_reserved` blocks stay available. Sets
        `num_cached` and `num_computed`; changes nothing where the answer is no."""
        if not self.can_allocate(self.blocks_expected(request) + num_reserved):
            return False
        shared: list[BlockId] = []
        if self._may_reuse(request):
            tokens = request.prefill_tokens(0, request.num_prefill_tokens)
            match = self.tree.acquire(request.cache_salt, tokens, len(tokens) - 1, now_ns)
            request.prefix_node, shared = match.node, match.blocks
        needed = self.pool.blocks_for(request.num_prefill_tokens) - len(shared)
        if not self.can_allocate(needed + num_reserved):  # what was cached when it was queued has been evicted
            self._unshare(request, shared, now_ns)
            return False
        request.block_table = [*shared, *self.allocate(needed)]
        request.num_cached = request.num_computed = request.num_scheduled = len(shared) * self.pool.block_size
        if request.first_cached < 0:
            request.first_cached = min(request.num_cached, len(request.prompt_token_ids))
        return True

    def remember(self, request: Request, now_ns: int) -> None:
        """Full blocks of confirmed tokens enter the tree. O(new blocks)."""
        if self._is_caching and request.num_computed >= self.pool.block_size:
            is_prompt = request.num_computed <= len(request.prompt_token_ids)
            tokens = request.prompt_token_ids if is_prompt else request.prefill_tokens(0, request.num_computed)
            request.prefix_node = self.tree.extend(
                request.prefix_node, request.cache_salt, tokens, request.block_table, request.num_computed, now_ns
            )

    def release(self, request: Request, now_ns: int) -> None:
        """No worker touches its blocks any more: they go back, or stay with the tree."""
        self._unshare(request, request.block_table, now_ns)
        request.block_table = []

    def _unshare(self, request: Request, blocks: list[BlockId], now_ns: int) -> None:
        if blocks:
            self.pool.release(blocks)
        if request.prefix_node is not None:
            self.tree.release(request.prefix_node, now_ns)
            request.prefix_node = None

    def distrust(self) -> None:
        """A memory fault: what the tree holds may be garbage."""
        self.tree.clear()
