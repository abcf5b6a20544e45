"""What the engine expects of prefill work: how long it takes on the share prefill has now. Implements `QueueView`."""

from __future__ import annotations

from colocate.core.books import Books
from colocate.core.queues.tally import pairs_of
from colocate.core.request import Request

# A forward does at least so many times the work of reading the weights.
MIN_WORK = 4.0


class Prospects:
    """Owned by the prefill side. `units` and `peer_units` follow the plan in force and whether decode works."""

    __slots__ = ("_books", "_max_chunk", "num_reserved", "num_rows", "peer_units", "sum_context", "units")

    def __init__(self, books: Books) -> None:
        self._books = books
        self.units = books.settings.total_units
        self.peer_units = 0
        self.num_rows = 0  # of the standing batch
        self.sum_context = 0  # tokens of KV that one step of it reads
        self.num_reserved = 0  # blocks that admission keeps back
        self._max_chunk: dict[tuple[int, int, int], int] = {}

    @property
    def now_ns(self) -> int:
        return self._books.now_ns

    def uncached_tokens(self, request: Request) -> int:
        return self._books.memory.uncached_tokens(request)

    def predicted_s(self, request: Request) -> float:
        return self.forward_s(request.num_uncached, pairs_of(request))

    def fits(self, request: Request) -> bool:
        memory = self._books.memory
        return memory.can_allocate(memory.blocks_expected(request) + self.num_reserved)

    def forward_s(self, num_tokens: int, pairs: float) -> float:
        """Seconds until so many tokens are computed, in one forward or as many chunks as it takes in mode `chunked`,
        where the standing batch rides along in each; 0 where there is no latency model."""
        books = self._books
        model = books.model
        if model is None:
            return 0.0
        if books.settings.mode != "chunked":
            return model.prefill_s(self.units, num_tokens, pairs, self.peer_units)
        num_forwards = -(-num_tokens // max(books.settings.max_num_batched_tokens - self.num_rows, 1)) or 1
        more_s = (num_forwards - 1) * model.prefill_s(self.units, 0, 0)
        rows, context = self.num_rows * num_forwards, self.sum_context * num_forwards
        return model.hybrid_s(self.units, num_tokens, pairs, context, rows) + more_s

    def max_chunk_tokens(self, num_cached: int) -> int:
        """The most tokens of one chunk behind `num_cached` others of which a single layer still takes no longer than
        `max_slice_ms`: a slice cannot be shorter than a layer, so a plan switch or an urgent prompt would wait longer.

        Never so few that reading the weights dominates: where that alone takes the bound, a smaller chunk would cost
        throughput and shorten nothing.
        """
        settings, model = self._books.settings, self._books.model
        limit = settings.max_num_batched_tokens
        if model is None or settings.mode == "chunked":
            return limit
        # By powers of two of the cached tokens, and again whenever the model has learnt a tenth.
        key = (self.units, num_cached.bit_length(), round(model.correction("prefill") * 10))
        known = self._max_chunk.get(key)
        if known is None:
            fixed_s = model.prefill_s(self.units, 0, 0)
            context = (1 << num_cached.bit_length()) - 1
            per_token_s = (model.prefill_s(self.units, limit, limit * (context + limit / 2)) - fixed_s) / limit
            allowed_s = settings.max_slice_ms / 1e3 * model.profile.num_layers - fixed_s
            most = int(max(allowed_s, MIN_WORK * fixed_s) / per_token_s) if per_token_s > 0 else limit
            known = self._max_chunk[key] = max(min(limit, most), min(limit, settings.block_size))
        return known
