"""The prefill batches a simulated worker holds, by the rules of `worker/prefill_queue.py`: urgent ones first, a forward
that is overtaken resumes where it was."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from itertools import chain

from colocate.messages.prefill import PrefillBatch, PrefillCancel, PrefillRow, PrefillRowDone
from colocate.types import Incarnation, RequestId, TokenId

RowKey = tuple[RequestId, Incarnation]
# What a request's output token is: by request and output position.
TokenOf = Callable[[RequestId, int], TokenId]


class SimBatch:
    """One forward: what of it is wanted, how much work that is, how many layers are left."""

    __slots__ = ("_rows", "batch_id", "is_urgent", "layers_left", "linear", "pairs", "started_ns")

    def __init__(self, message: PrefillBatch, num_layers: int) -> None:
        self.batch_id = message.batch_id
        self.is_urgent = message.urgent
        self.layers_left = num_layers
        self.started_ns = 0
        self._measure(message.rows)

    def drop(self, keys: set[RowKey]) -> None:
        rows = [row for row in self._rows if (row.request_id, row.incarnation) not in keys]
        if len(rows) != len(self._rows):
            self._measure(rows)

    @property
    def is_void(self) -> bool:
        """Every row was cancelled."""
        return not self._rows

    def results(self, token_of: TokenOf) -> list[PrefillRowDone]:
        return [
            PrefillRowDone(
                row.request_id,
                row.incarnation,
                None if row.sample is None else token_of(row.request_id, row.sample.position),
            )
            for row in self._rows
        ]

    def _measure(self, rows: Sequence[PrefillRow]) -> None:
        """`linear` = sum(n) and `pairs` = sum(n * (r + n / 2)), see config/profile.py."""
        self._rows = rows
        self.linear = 0
        self.pairs = 0.0
        for row in rows:
            num_new = len(row.token_ids)
            self.linear += num_new
            self.pairs += num_new * (row.start + num_new / 2)


class PrefillWork:
    """At most one forward is set aside: the first ordinary one."""

    __slots__ = ("_num_layers", "_ordinary", "_urgent")

    def __init__(self, num_layers: int) -> None:
        self._num_layers = num_layers
        self._urgent: deque[SimBatch] = deque()
        self._ordinary: deque[SimBatch] = deque()

    def add(self, message: PrefillBatch) -> None:
        (self._urgent if message.urgent else self._ordinary).append(SimBatch(message, self._num_layers))

    def cancel(self, message: PrefillCancel) -> None:
        keys = set(message.rows)
        for batch in chain(self._urgent, self._ordinary):
            batch.drop(keys)

    def head(self) -> SimBatch | None:
        """What runs next, or goes on."""
        if self._urgent:
            return self._urgent[0]
        return self._ordinary[0] if self._ordinary else None

    def pop(self, batch: SimBatch) -> None:
        """This batch, the first of its kind, is through."""
        (self._urgent if batch.is_urgent else self._ordinary).popleft()
