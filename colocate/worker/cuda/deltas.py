"""The standing batch on the device, and how the host changes it between steps.

All of a `DecodeState`, the index of the step and the tokens drawn lie in one arena of 32-bit words, which the host
mirrors. So every difference, whether a row joins, leaves, grows or is corrected, is a set of words: the host writes
them into its mirror and remembers where; before a step they go out in one copy from pinned memory, and one scatter puts
them in their places. Words that the device advances by itself are sent only when a row joins or is restated, so they
never overwrite what the device knows better.

Everything goes to the lane of the step, in its order: a slot may be given to another row while the step before, which
still knows the old one, is under way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from colocate.device.cuda.backend import Backend
from colocate.device.cuda.lane import Lane, Mark
from colocate.errors import InvariantError
from colocate.messages.sampling import SampleState
from colocate.model.cuda.sampling import TABLE_ROW, needs_host, table_row
from colocate.model.cuda.state import DecodeState, SamplingTable
from colocate.worker.executor import StandingRow
from colocate.worker.packed_rows import RowKey

Words = npt.NDArray[np.int32]
Places = npt.NDArray[np.int64]

_ALIGNMENT_WORDS = 64  # 256 bytes, as every allocation of CUDA
_BYTES_PER_WORD = 12  # an int64 place and the word itself
_WORDS_PER_COPY = 1 << 15  # 384 KiB: one copy holds dozens of joins with long block tables
_NUM_COPIES = 4  # buffers in turn: two steps ahead, and a large difference in several pieces
_FLOATS = {"temperature", "top_p", "min_p"}


@dataclass(frozen=True, slots=True)
class _Field:
    first: int  # word
    stride: int  # words per slot


class StateArena:
    """`state`, `index` int32 [max_num_seqs] and `drawn` int32 [max_num_seqs] are views of `words`. `mirror` is what the
    host wrote last; of a field that the device advances it is not the truth."""

    def __init__(self, max_num_seqs: int, table_width: int, device: str) -> None:
        capacity = max_num_seqs + 1
        shapes: dict[str, tuple[int, ...]] = {
            "token": (capacity,), "context_len": (capacity,), "active": (capacity,), "granted_len": (capacity,),
            "block_table": (capacity, table_width), "index": (max_num_seqs,), "drawn": (max_num_seqs,),
        }  # fmt: skip
        for name in TABLE_ROW.names or ():
            shapes[name] = (capacity, *TABLE_ROW[name].shape)
        self.fields: dict[str, _Field] = {}
        num_words = 0
        for name, shape in shapes.items():
            words_each = prod(shape[1:]) * (2 if name == "seed_key" else 1)
            self.fields[name] = _Field(num_words, words_each)
            num_words += -(-shape[0] * words_each // _ALIGNMENT_WORDS) * _ALIGNMENT_WORDS
        self.mirror: Words = np.zeros(num_words, np.int32)
        self._fill(shapes)
        self.words = torch.from_numpy(self.mirror).to(device, copy=True)
        views = {name: self._view(name, shape) for name, shape in shapes.items()}
        self.index, self.drawn = views.pop("index"), views.pop("drawn")
        table = SamplingTable(**{name: views.pop(name) for name in TABLE_ROW.names or ()})
        self.state = DecodeState(sampling=table, **views)

    def _fill(self, shapes: dict[str, tuple[int, ...]]) -> None:
        """As `SamplingTable.allocate`; the index is all padding."""
        one, padding = int(np.float32(1.0).view(np.int32)), shapes["token"][0] - 1
        for name, word in (("ends", -1), ("top_p", one), ("index", padding)):
            first = self.fields[name].first
            self.mirror[first : first + prod(shapes[name])] = word

    def _view(self, name: str, shape: tuple[int, ...]) -> Tensor:
        first = self.fields[name].first
        part = self.words[first : first + shape[0] * self.fields[name].stride]
        if name == "seed_key":
            return part.view(torch.int64).view(shape)
        return (part.view(torch.float32) if name in _FLOATS else part).view(shape)


class _Copy:
    """One pinned buffer and its place on the device. Not rewritten before its last copy is done."""

    def __init__(self, backend: Backend) -> None:
        num_bytes = _WORDS_PER_COPY * _BYTES_PER_WORD
        self._pinned = backend.pinned((num_bytes,), torch.uint8)
        self._host: npt.NDArray[Any] = self._pinned.numpy()
        self._device = torch.zeros(num_bytes, dtype=torch.uint8, device=backend.torch_device)
        self._mark: Mark | None = None

    def send(self, arena: StateArena, places: Places, lane: Lane) -> None:
        if self._mark is not None:
            self._mark.wait()
        split, end = 8 * len(places), _BYTES_PER_WORD * len(places)
        self._host[:split].view(np.int64)[:] = places
        self._host[split:end].view(np.int32)[:] = arena.mirror[places]
        self._device[:end].copy_(self._pinned[:end], non_blocking=True)
        self._mark = lane.mark()
        arena.words.index_copy_(0, self._device[:split].view(torch.int64), self._device[split:end].view(torch.int32))


class Deltas:
    """What changed in an arena since it was last sent."""

    def __init__(self, backend: Backend, arena: StateArena) -> None:
        self._arena = arena
        self._dirty: list[Places] = []
        self._copies = [_Copy(backend) for _ in range(_NUM_COPIES)]
        self._next = 0

    def put(self, name: str, slot: int, values: Sequence[int] | Words, offset: int = 0) -> None:
        """Words of one field of one slot, from its `offset`-th on."""
        field = self._arena.fields[name]
        first = field.first + slot * field.stride + offset
        self.put_words(np.arange(first, first + len(values), dtype=np.int64), values)

    def put_words(self, places: Places, words: Sequence[int] | Words) -> None:
        self._arena.mirror[places] = words
        self._dirty.append(places)

    def send(self, lane: Lane) -> None:
        """Launch it on this lane, inside its `use()`. The latest of two words for one place is the one that arrives."""
        if not self._dirty:
            return
        places = np.unique(np.concatenate(self._dirty))
        self._dirty = []
        for start in range(0, len(places), _WORDS_PER_COPY):
            copy = self._copies[self._next]
            self._next = (self._next + 1) % _NUM_COPIES
            copy.send(self._arena, places[start : start + _WORDS_PER_COPY], lane)


@dataclass(slots=True)
class _Seat:
    slot: int
    num_blocks: int
    needs_host: bool


class Seats:
    """Which slot each standing row has. A row that is not in a step gives its slot back; when it returns it joins
    again, with what the host knows by then."""

    def __init__(self, backend: Backend, arena: StateArena, block_size: int, vocab_size: int) -> None:
        self._arena = arena
        self._deltas = Deltas(backend, arena)
        self._block_size = block_size
        self._vocab_size = vocab_size
        self._seats: dict[RowKey, _Seat] = {}
        self._free = list(range(arena.state.padding_slot))
        self._index: list[int] = []
        fields = [arena.fields[name] for name in TABLE_ROW.names or ()]
        self._record_first = np.concatenate([np.arange(each.first, each.first + each.stride) for each in fields])
        self._record_stride = np.concatenate([np.full(each.stride, each.stride) for each in fields])

    def seat(self, rows: Sequence[StandingRow], bucket: int) -> None:
        """These rows are stepped next, in this order, in a step of `bucket` entries."""
        present = {(row.request_id, row.incarnation) for row in rows}
        for key in [key for key in self._seats if key not in present]:
            self._leave(key)
        index = [self._slot_of(row) for row in rows]
        index += [self._arena.state.padding_slot] * (bucket - len(index))
        if index != self._index:
            self._index = index
            self._deltas.put("index", 0, index)

    def any_for_host(self, rows: Sequence[StandingRow]) -> bool:
        """Whether the host draws for one of them. What a row asks for never changes: it is looked at as it joins."""
        seats = self._seats
        for row in rows:
            seat = seats.get((row.request_id, row.incarnation))
            if needs_host(row.sample, self._vocab_size) if seat is None else seat.needs_host:
                return True
        return False

    def restate(self, rows: Sequence[StandingRow]) -> None:
        """The host drew for some of these rows, and the device advanced those by tokens of its own."""
        for row in rows:
            seat = self._seats.get((row.request_id, row.incarnation))
            if seat is not None:
                self._state(seat.slot, row)

    def clear(self) -> None:
        """Nobody stands any more, and what was sent may not have arrived: whoever joins is stated anew."""
        for key in list(self._seats):
            self._leave(key)
        self._index = []

    def send(self, lane: Lane) -> None:
        self._deltas.send(lane)

    def _slot_of(self, row: StandingRow) -> int:
        seat = self._seats.get((row.request_id, row.incarnation))
        if seat is None:
            return self._join(row)
        if seat.num_blocks < len(row.block_table):
            self._grant(seat, row)
        return seat.slot

    def _join(self, row: StandingRow) -> int:
        if row.num_ahead or not self._free:
            raise InvariantError(f"row {row.request_id} joins with {row.num_ahead} steps ahead, {len(self._free)} free")
        seat = _Seat(self._free.pop(), 0, needs_host(row.sample, self._vocab_size))
        self._seats[row.request_id, row.incarnation] = seat
        record = table_row(SampleState(row.sample.params, row.position), self._vocab_size)
        places = self._record_first + seat.slot * self._record_stride
        self._deltas.put_words(places, np.frombuffer(record.tobytes(), np.int32))
        self._grant(seat, row)
        self._state(seat.slot, row)
        return seat.slot

    def _state(self, slot: int, row: StandingRow) -> None:
        put = self._deltas.put
        put("token", slot, (row.last_token_id,))
        put("context_len", slot, (row.context_len,))
        put("position", slot, (row.position,))
        put("active", slot, (1,))

    def _grant(self, seat: _Seat, row: StandingRow) -> None:
        self._deltas.put("block_table", seat.slot, row.block_table[seat.num_blocks :], seat.num_blocks)
        seat.num_blocks = len(row.block_table)
        self._deltas.put("granted_len", seat.slot, (seat.num_blocks * self._block_size,))

    def _leave(self, key: RowKey) -> None:
        slot = self._seats.pop(key).slot
        self._free.append(slot)
        self._deltas.put("active", slot, (0,))


def table_width(max_model_len: int, block_size: int) -> int:
    """Blocks of the longest row."""
    return -(-max_model_len // block_size)
