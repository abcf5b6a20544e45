"""KV memory as the engine sees it: the block pool with the prefix tree on top.

A block that only the tree holds is as good as free: it is evicted when somebody needs it. So "can be allocated" counts
both, and whoever allocates makes room first. Rules of the tree (design section 6):
* a block enters only when a report has proved all its layers written;
* decode's blocks enter up to the last token fed, when the request ends or is preempted;
* a full hit recomputes the final token, because its logits are needed;
* a prompt that is scored (`echo` with logprobs) is computed whole;
* requests of different `cache_salt` never share;
* a prompt counts once in the queries and hits, as in its answer's usage: one that comes back after a preemption finds
  its own blocks, which is no reuse.
"""

from __future__ import annotations

from colocate.core.blocks import BlockPool
from colocate.core.prefix import PrefixMatch, PrefixNode, PrefixTree
from colocate.core.request import Request
from colocate.types import BlockId, RequestId, TokenId


class Memory:
    """Owned by the books. Ask (`can_allocate`), then do."""

    __slots__ = ("_is_caching", "_needed_by_refused", "_num_changes", "_refused", "pool", "tree")

    def __init__(self, num_blocks: int, block_size: int, prefix_caching: bool) -> None:
        self.pool = BlockPool(num_blocks, block_size)
        self.tree = PrefixTree(self.pool)
        self._is_caching = prefix_caching
        self._num_changes = 0  # what may let a request find more blocks that are in use: insertions and admissions
        self._refused: tuple[RequestId, int] | None = None  # who was refused last, and `_num_changes` then
        self._needed_by_refused = 0  # blocks that it needs to be available

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
        `num_cached` and `num_computed`; changes nothing where the answer is no.

        O(blocks), but asked again in vain O(1): whoever waits for blocks asks at every event.
        """
        asked = (request.request_id, self._num_changes)
        if asked == self._refused and not self.can_allocate(self._needed_by_refused + num_reserved):
            return False
        num_available = self.num_available
        tokens, match = self._acquire(request)
        missing = self.pool.blocks_for(request.num_prefill_tokens) - len(match.blocks)
        if not self.can_allocate(missing + num_reserved):
            self._refused = asked
            # Cached blocks that nobody used were available too, but not once this request uses them.
            self._needed_by_refused = missing + num_available - self.num_available
            self.tree.uncount(len(tokens), len(match.blocks))
            self._unshare(match.blocks, match.node, now_ns)
            return False
        self._num_changes += 1
        request.prefix_node = match.node
        request.block_table = [*match.blocks, *self.allocate(missing)]
        request.num_cached = request.num_computed = request.num_scheduled = len(match.blocks) * self.pool.block_size
        if request.first_cached < 0:
            request.first_cached = min(request.num_cached, len(request.prompt_token_ids))
        else:
            self.tree.uncount(len(tokens), len(match.blocks))
        return True

    def _acquire(self, request: Request) -> tuple[list[TokenId], PrefixMatch]:
        """The tokens looked up, and what was found: nothing of either where it may not reuse."""
        if not self._may_reuse(request):
            return [], PrefixMatch(None, [])
        tokens = request.prefill_tokens(0, request.num_prefill_tokens)
        return tokens, self.tree.acquire(request.cache_salt, tokens, len(tokens) - 1)

    def remember(self, request: Request, now_ns: int) -> None:
        """Full blocks of confirmed tokens enter the tree. O(new blocks)."""
        # Steps under way when a client left wrote KV of tokens that nobody kept.
        num_known = min(request.num_computed, request.num_prefill_tokens)
        if self._is_caching and num_known >= self.pool.block_size:
            is_prompt = num_known <= len(request.prompt_token_ids)
            tokens = request.prompt_token_ids if is_prompt else request.prefill_tokens(0, num_known)
            request.prefix_node = self.tree.extend(
                request.prefix_node, request.cache_salt, tokens, request.block_table, num_known, now_ns
            )
            self._num_changes += 1

    def release(self, request: Request, now_ns: int) -> None:
        """No worker touches its blocks any more: they go back, or stay with the tree."""
        self._unshare(request.block_table, request.prefix_node, now_ns)
        request.block_table = []
        request.prefix_node = None

    def _unshare(self, blocks: list[BlockId], node: PrefixNode | None, now_ns: int) -> None:
        if blocks:
            self.pool.release(blocks)
        if node is not None:
            self.tree.release(node, now_ns)

    def distrust(self) -> None:
        """A memory fault: what the tree holds may be garbage."""
        self.tree.clear()
