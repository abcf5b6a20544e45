"""The decode worker's rows between steps: who is stepped, who is masked, what the next report must say.

Steps may be launched ahead of the tokens of the one before (`executor.depth`). What is known of a row here is as of the
last step recorded. Three rules keep that sound:

1. A step takes a row only if the row has a granted slot for the position it will be at by then, and only if no step
   under way draws the last token that `max_tokens` allows. Such a row is skipped, not masked: what becomes of it is
   said once that step is recorded. An end that only the token shows is seen by the device itself, which steps the row
   no more.
2. Tokens are booked on the rows the step was launched over, and only where the row still stands here.
3. A leave is acknowledged once every step launched before it was applied has been recorded or abandoned.
"""

from __future__ import annotations

from colocate.core.stop import finish_after
from colocate.errors import InvariantError
from colocate.messages.decode import DecodeRow, DecodeUpdate, StepRow
from colocate.types import BlockId, Incarnation, RequestId
from colocate.worker.executor import StandingRow, StepTokens

RowKey = tuple[RequestId, Incarnation]


class StandingBatch:
    """Every row is either in `rows` (it has a slot and is stepped) or masked (it waits for a block).

    `version` changes whenever the rows of `next_step`, their order or one of their block tables do.
    """

    def __init__(self, block_size: int) -> None:
        self._block_size = block_size
        self._by_key: dict[RowKey, StandingRow] = {}
        self._masked: dict[RowKey, StandingRow] = {}
        self._left: list[tuple[RowKey, int]] = []  # and the number of the last step that may have stepped it
        self._newly_masked: list[RowKey] = []
        self._someone_is_full = False
        self._skipped: list[RowKey] = []  # by the last step
        self._num_launched = 0
        self._num_recorded = 0
        self.rows: list[StandingRow] = []
        self.version = 0
        self.num_ignored = 0  # commands for rows that are not here (or joins of rows that are)

    @property
    def num_rows(self) -> int:
        """Masked rows included."""
        return len(self._by_key)

    def apply(self, update: DecodeUpdate) -> None:
        """Grows, leaves, joins, in this order."""
        for request_id, incarnation, blocks in update.grows:
            self._grow((request_id, incarnation), blocks)
        if update.leaves:
            self._remove(update.leaves)
            self._left += [(key, self._num_launched) for key in update.leaves]
        for joining in update.joins:
            self._join(joining)

    def mask_full_rows(self) -> None:
        """Take rows without a granted slot out of the step. Call before every step; cheap when there is none."""
        if not self._someone_is_full:
            return
        self._someone_is_full = False
        for row in self.rows:
            if self._is_full(row):
                key = (row.request_id, row.incarnation)
                self._masked[key] = row
                self._newly_masked.append(key)
        self._keep_unmasked()

    def next_step(self) -> list[StandingRow]:
        """The rows to launch next, a list of the caller's own. Read `version` after it."""
        skipped: list[RowKey] = []
        rows = self.rows
        if self._num_launched > self._num_recorded:
            rows = [row for row in self.rows if self._goes_on(row)]
            if len(rows) < len(self.rows):
                skipped = [(row.request_id, row.incarnation) for row in self.rows if not self._goes_on(row)]
        if skipped != self._skipped:
            self._skipped = skipped
            self.version += 1
        return list(rows)

    def launched(self, rows: list[StandingRow]) -> None:
        """A step over these rows is under way."""
        self._num_launched += 1
        for row in rows:
            row.num_ahead += 1

    def record(self, rows: list[StandingRow], tokens: StepTokens) -> list[StepRow]:
        """Book the result of the oldest step under way, launched over `rows`: those that ended leave, the others move
        on by one position. Who left meanwhile is not in the answer."""
        self._num_recorded += 1
        logprobs, by_key, block_size = tokens.logprobs, self._by_key, self._block_size
        step_rows: list[StepRow] = []
        finished: list[RowKey] = []
        for index, (row, token_id) in enumerate(zip(rows, tokens.token_ids, strict=True)):
            row.num_ahead -= 1
            key = (row.request_id, row.incarnation)
            if by_key.get(key) is not row:
                continue
            if token_id < 0:
                raise InvariantError(f"the device drew nothing for {key}, which stands at position {row.context_len}")
            finish = finish_after(row.sample.params, row.position, token_id)
            logprob = None if logprobs is None else logprobs[index]
            step_rows.append(StepRow(row.request_id, row.incarnation, token_id, finish, logprob))
            if finish is not None:
                finished.append(key)
                continue
            row.last_token_id = token_id
            row.context_len += 1
            row.position += 1
            row.output_token_ids.append(token_id)
            if row.context_len >= len(row.block_table) * block_size:
                self._someone_is_full = True
        if finished:
            self._remove(finished)
        return step_rows

    def drop_stepped(self) -> list[RowKey]:
        """A step raised, and what was under way is abandoned: all rows but the masked ones leave. Answers who left."""
        self._num_recorded = self._num_launched
        keys = [(row.request_id, row.incarnation) for row in self.rows]
        self._remove(keys)
        return keys

    def take_acknowledgements(self) -> tuple[list[RowKey], list[RowKey]]:
        """Leaves in force and rows newly masked since the last call; for the next report."""
        left = [key for key, last_step in self._left if last_step <= self._num_recorded]
        self._left = [(key, last_step) for key, last_step in self._left if last_step > self._num_recorded]
        masked, self._newly_masked = self._newly_masked, []
        return left, masked

    @property
    def has_acknowledgements(self) -> bool:
        """Asked while no step is under way."""
        return bool(self._left or self._newly_masked)

    def clear(self) -> None:
        """A new engine, and what was under way is abandoned: nobody is here and nothing is owed to anyone."""
        self._num_recorded = self._num_launched
        self._by_key.clear()
        self._masked.clear()
        self._left, self._newly_masked = [], []
        self.rows = []
        self.version += 1

    def _goes_on(self, row: StandingRow) -> bool:
        """Whether a row that steps under way may include can be in one more."""
        if not row.num_ahead:
            return True
        has_slot = row.context_len + row.num_ahead < len(row.block_table) * self._block_size
        return has_slot and row.position + row.num_ahead < row.sample.params.max_tokens

    def _is_full(self, row: StandingRow) -> bool:
        return row.context_len >= len(row.block_table) * self._block_size

    def _grow(self, key: RowKey, blocks: list[BlockId]) -> None:
        row = self._by_key.get(key)
        if row is None:
            self.num_ignored += 1
            return
        row.block_table += blocks
        if key not in self._masked:
            self.version += 1
        elif not self._is_full(row):
            del self._masked[key]
            self.rows.append(row)
            self.version += 1

    def _join(self, joining: DecodeRow) -> None:
        key = (joining.request_id, joining.incarnation)
        if key in self._by_key:
            self.num_ignored += 1
            return
        row = StandingRow(
            request_id=joining.request_id,
            incarnation=joining.incarnation,
            last_token_id=joining.last_token_id,
            context_len=joining.context_len,
            block_table=list(joining.block_table),
            sample=joining.sample,
            position=joining.sample.position,
            output_token_ids=list(joining.sample.output_token_ids),
        )
        self._by_key[key] = row
        self.rows.append(row)
        self._someone_is_full = self._someone_is_full or self._is_full(row)
        self.version += 1

    def _remove(self, keys: list[RowKey]) -> None:
        for key in keys:
            if self._by_key.pop(key, None) is None:
                self.num_ignored += 1
            self._masked.pop(key, None)
        self._keep_unmasked()

    def _keep_unmasked(self) -> None:
        by_key, masked = self._by_key, self._masked
        self.rows = [
            row for row in self.rows if (key := (row.request_id, row.incarnation)) in by_key and key not in masked
        ]
        self.version += 1
