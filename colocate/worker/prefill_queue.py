"""The prefill batches a worker holds: which one is next, and which rows of it are still wanted."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain

from colocate.messages.prefill import PrefillBatch, PrefillCancel, PrefillCancelled, PrefillRow
from colocate.types import Incarnation, RequestId
from colocate.worker.executor import PrefillForward

RowKey = tuple[RequestId, Incarnation]


@dataclass(slots=True, eq=False)
class HeldBatch:
    """A batch of the engine's. `keys` are its rows that are not cancelled."""

    message: PrefillBatch
    keys: set[RowKey]
    num_tokens: int = 0  # of those rows
    context_len: int = 0  # of the longest of them, at the end of its chunk
    forward: PrefillForward | None = None  # under way
    layers_left: int = 0  # of that forward
    started_ns: int = 0
    is_aside: bool = False  # an urgent batch was started between two slices of that forward, which has not gone on yet

    @staticmethod
    def of(message: PrefillBatch) -> HeldBatch:
        batch = HeldBatch(message, {(row.request_id, row.incarnation) for row in message.rows})
        batch._measure(message.rows)
        return batch

    def drop(self, keys: set[RowKey]) -> None:
        """These rows are cancelled: from here on their blocks are neither read nor written."""
        self.keys -= keys
        self._measure(self.remaining().rows)
        if self.forward is not None:
            self.forward.drop_rows(keys)

    def abandon(self) -> None:
        """Nobody wants it any more, or it failed."""
        if self.forward is not None:
            self.forward.abandon()
            self.forward = None

    def remaining(self) -> PrefillBatch:
        """Without the rows that were cancelled."""
        message = self.message
        rows = [row for row in message.rows if (row.request_id, row.incarnation) in self.keys]
        return PrefillBatch(message.batch_id, rows, message.urgent)

    def _measure(self, rows: list[PrefillRow]) -> None:
        self.num_tokens = sum(len(row.token_ids) for row in rows)
        self.context_len = max((row.start + len(row.token_ids) for row in rows), default=0)


class PrefillQueue:
    """Urgent batches go before all others, each kind in the order sent. The first of either kind may be under way: an
    ordinary forward that an urgent batch overtakes stays where it is, with what it has computed, and is the next
    ordinary one again. So at most one forward is set aside. Forwards that are launched to the end and not answered yet
    are here for their cancels only."""

    def __init__(self) -> None:
        self._urgent: deque[HeldBatch] = deque()
        self._ordinary: deque[HeldBatch] = deque()
        self._launched: deque[HeldBatch] = deque()
        self.num_cancelled = 0  # rows
        self.num_unknown_cancels = 0  # rows that were done, or never here

    def __iter__(self) -> Iterator[HeldBatch]:
        return chain(self._launched, self._urgent, self._ordinary)

    def add(self, message: PrefillBatch) -> None:
        (self._urgent if message.urgent else self._ordinary).append(HeldBatch.of(message))

    def head(self) -> HeldBatch | None:
        """What runs next, or goes on."""
        if self._urgent:
            return self._urgent[0]
        return self._ordinary[0] if self._ordinary else None

    def set_aside(self) -> bool:
        """The head starts now. Whether that interrupts another forward."""
        if not self._urgent or not self._ordinary:
            return False
        other = self._ordinary[0]
        if other.forward is None or other.is_aside:
            return False
        other.is_aside = True
        return True

    def pop(self) -> HeldBatch:
        """The head is through."""
        return (self._urgent or self._ordinary).popleft()

    def all_launched(self) -> None:
        """The head is launched to its end, and awaited."""
        self._launched.append(self.pop())

    def remove(self, batch: HeldBatch) -> None:
        """It was answered for, or given up."""
        for batches in (self._launched, self._urgent, self._ordinary):
            if batch in batches:
                batches.remove(batch)

    def cancel(self, message: PrefillCancel) -> PrefillCancelled:
        """Drop rows wherever they are. What to answer."""
        wanted = set(message.rows)
        found: set[RowKey] = set()
        for batch in self:
            if dropped := batch.keys & wanted:
                batch.drop(dropped)
                found |= dropped
        self.num_cancelled += len(found)
        self.num_unknown_cancels += len(wanted - found)
        return PrefillCancelled(message.rows)

    def clear(self) -> None:
        """Waits for what is under way."""
        for batch in self:
            batch.abandon()
        self._launched.clear()
        self._urgent.clear()
        self._ordinary.clear()
