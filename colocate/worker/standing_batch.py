"""The decode worker's rows between steps: who is stepped, who is masked, what the next report must say."""

from __future__ import annotations

from colocate.core.stop import finish_after
from colocate.messages.decode import DecodeRow, DecodeUpdate, StepRow
from colocate.types import BlockId, Incarnation, RequestId
from colocate.worker.executor import StandingRow, StepTokens

RowKey = tuple[RequestId, Incarnation]


class StandingBatch:
    """Every row is either in `rows` (it has a slot and is stepped) or masked (it waits for a block).

    `version` changes whenever `rows`, their order or one of their block tables does.
    """

    def __init__(self, block_size: int) -> None:
        self._block_size = block_size
        self._by_key: dict[RowKey, StandingRow] = {}
        self._masked: dict[RowKey, StandingRow] = {}
        self._left: list[RowKey] = []
        self._newly_masked: list[RowKey] = []
        self._someone_is_full = False
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
            self._left += update.leaves
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

    def record(self, tokens: StepTokens) -> list[StepRow]:
        """Book the result of a step over `rows`: rows that ended leave, the others move on by one position."""
        logprobs = tokens.logprobs
        block_size = self._block_size
        step_rows: list[StepRow] = []
        finished: list[RowKey] = []
        for index, (row, token_id) in enumerate(zip(self.rows, tokens.token_ids, strict=True)):
            finish = finish_after(row.sample.params, row.position, token_id)
            logprob = None if logprobs is None else logprobs[index]
            step_rows.append(StepRow(row.request_id, row.incarnation, token_id, finish, logprob))
            if finish is not None:
                finished.append((row.request_id, row.incarnation))
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
        """A step raised: its rows leave (masked ones stay). Answers who left."""
        keys = [(row.request_id, row.incarnation) for row in self.rows]
        self._remove(keys)
        return keys

    def take_acknowledgements(self) -> tuple[list[RowKey], list[RowKey]]:
        """Leaves in force and rows newly masked since the last call; for the next report."""
        left, masked = self._left, self._newly_masked
        self._left, self._newly_masked = [], []
        return left, masked

    @property
    def has_acknowledgements(self) -> bool:
        return bool(self._left or self._newly_masked)

    def clear(self) -> None:
        """A new engine: nobody is here and nothing is owed to anyone."""
        self._by_key.clear()
        self._masked.clear()
        self._left, self._newly_masked = [], []
        self.rows = []
        self.version += 1

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
