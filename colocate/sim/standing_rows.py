"""The simulated decode worker's rows. A step costs O(1) and O(rows that end or fill up), not O(rows).

Who ends and who runs out of slots is known in advance, so rows wait in buckets named by the number of the step; the
context of a row is a base plus the number of steps; and a row's line in the report is the same object until it ends.
"""

from __future__ import annotations

from colocate.messages.decode import DecodeRow, DecodeUpdate, StepRow
from colocate.sim.prefill_work import RowKey, TokenOf
from colocate.types import FinishReason


class _Row:
    """`base + steps` tokens of context while it is stepped; `base` alone while it is masked."""

    __slots__ = ("base", "capacity", "ends_at", "first_position", "is_masked", "key", "since")

    def __init__(self, key: RowKey, base: int, capacity: int, ends_at: int, first_position: int) -> None:
        self.key = key
        self.base = base
        self.capacity = capacity
        self.ends_at = ends_at  # the step after which it is done; while masked, how many steps are left
        self.first_position = first_position  # output position minus steps
        self.is_masked = False
        self.since = 0  # the step it was stepped in first, since it joined or was unmasked


class StandingRows:
    """What `worker/standing_batch.py` does, without walking the rows."""

    __slots__ = (
        "_block_size",
        "_ending",
        "_filling",
        "_left",
        "_masked",
        "_report",
        "_rows",
        "_stepped",
        "_stretches",
        "_token_of",
        "_varying",
        "num_steps",
        "step_ends_ns",
        "sum_context",
    )

    def __init__(self, block_size: int, token_of: TokenOf, *, tokens_vary: bool) -> None:
        """`tokens_vary`: a request's output tokens differ by position; else one token stands for all of them."""
        self._block_size = block_size
        self._token_of = token_of
        self._varying = tokens_vary
        self._rows: dict[RowKey, _Row] = {}
        self._stepped: dict[RowKey, StepRow] = {}  # in the order of the report
        self._report: list[StepRow] | None = []  # of `_stepped`; None: it has changed
        self._ending: dict[int, list[_Row]] = {}
        self._filling: dict[int, list[_Row]] = {}
        self._left: list[RowKey] = []
        self._masked: list[RowKey] = []
        self.num_steps = 0
        self.sum_context = 0
        self.step_ends_ns: list[int] = []  # of every step
        self._stretches: dict[int, list[tuple[int, int]]] = {}  # per request: the steps `first .. last - 1` it was in

    @property
    def num_stepped(self) -> int:
        """Rows of the next step."""
        return len(self._stepped)

    def apply(self, update: DecodeUpdate) -> None:
        """Grows, leaves, joins, in this order."""
        for request_id, incarnation, blocks in update.grows:
            row = self._rows.get((request_id, incarnation))
            if row is not None:
                row.capacity += len(blocks) * self._block_size
                if row.is_masked:
                    self._unmask(row)
        for key in update.leaves:
            row = self._rows.pop(key, None)
            if row is not None and not row.is_masked:
                self._stop(row)
            self._left.append(key)
        for joining in update.joins:
            self._join(joining)

    def mask_full(self) -> None:
        """Rows without a granted slot are not stepped. Call before every step."""
        for row in self._filling.pop(self.num_steps, ()):
            if row.is_masked or self._rows.get(row.key) is not row:
                continue
            fills_at = row.capacity - row.base
            if fills_at > self.num_steps:
                self._filling.setdefault(fills_at, []).append(row)
                continue
            self._stop(row)
            row.is_masked = True
            row.base += self.num_steps
            row.ends_at -= self.num_steps
            row.first_position += self.num_steps
            self._masked.append(row.key)

    def step(self, now_ns: int) -> tuple[list[StepRow], bool]:
        """One step over `num_stepped` rows that ends now: its report, and whether any row ended with it."""
        self.step_ends_ns.append(now_ns)
        self.sum_context += len(self._stepped)
        self.num_steps += 1
        ending = dict.fromkeys(self._ending.pop(self.num_steps, ()))  # masked and back within one step: twice
        ended = [row for row in ending if self._is_stepped(row, self.num_steps)]
        if self._varying:
            self._draw()
        if self._report is None:
            self._report = list(self._stepped.values())
        if not ended:
            return self._report, False
        for row in ended:
            last = self._stepped[row.key]
            self._stepped[row.key] = StepRow(*row.key, last.token_id, FinishReason.LENGTH)
        report = list(self._stepped.values())
        for row in ended:
            del self._rows[row.key]
            self._stop(row)
        return report, True

    def take_acknowledgements(self) -> tuple[list[RowKey], list[RowKey]]:
        """Leaves in force and rows newly masked since the last call."""
        left, masked = self._left, self._masked
        if left or masked:
            self._left, self._masked = [], []
        return left, masked

    @property
    def has_acknowledgements(self) -> bool:
        return bool(self._left or self._masked)

    def _is_stepped(self, row: _Row, ends_at: int) -> bool:
        return not row.is_masked and row.ends_at == ends_at and self._rows.get(row.key) is row

    def _join(self, joining: DecodeRow) -> None:
        key = (joining.request_id, joining.incarnation)
        sample, steps = joining.sample, self.num_steps
        num_left = max(sample.params.max_tokens - sample.position, 1)
        capacity = len(joining.block_table) * self._block_size
        row = _Row(key, joining.context_len - steps, capacity, steps + num_left, sample.position - steps)
        self._rows[key] = row
        self._start(row)

    def _unmask(self, row: _Row) -> None:
        if row.capacity <= row.base:
            return
        row.is_masked = False
        row.base -= self.num_steps
        row.ends_at += self.num_steps
        row.first_position -= self.num_steps
        self._start(row)

    def _start(self, row: _Row) -> None:
        steps = self.num_steps
        token_id = self._token_of(row.key[0], row.first_position + steps)
        self._stepped[row.key] = StepRow(*row.key, token_id)
        self._report = None
        row.since = steps
        self.sum_context += row.base + steps
        self._ending.setdefault(row.ends_at, []).append(row)
        self._filling.setdefault(max(row.capacity - row.base, steps), []).append(row)

    def _stop(self, row: _Row) -> None:
        del self._stepped[row.key]
        self._report = None
        self.sum_context -= row.base + self.num_steps
        if row.since < self.num_steps:
            self._stretches.setdefault(row.key[0], []).append((row.since, self.num_steps))

    def token_times_ns(self, request_id: int) -> list[int]:
        """When each token of an ended row was made, the first one (by prefill) left out. In order."""
        times_ns: list[int] = []
        for first, last in self._stretches.get(request_id, ()):
            times_ns += self.step_ends_ns[first:last]
        return times_ns

    def _draw(self) -> None:
        """The tokens of this step, one by one: only where a log's own tokens are repeated."""
        token_of, before = self._token_of, self.num_steps - 1
        for key in self._stepped:
            token_id = token_of(key[0], self._rows[key].first_position + before)
            self._stepped[key] = StepRow(*key, token_id)
        self._report = None
