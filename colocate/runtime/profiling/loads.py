"""Keeping a phase at work on one state, and noting how long each forward or step took.

The KV that a state claims to be cached is whatever lies in its blocks: kernels take the same time over it. Both phases
write, so the prompts' blocks are those of the pool's lower half and the standing rows' those of its upper half.
"""

from __future__ import annotations

from dataclasses import dataclass

from colocate.messages.decode import DecodeRow, DecodeUpdate, StepReport
from colocate.messages.prefill import PrefillBatch, PrefillDone, PrefillRow
from colocate.messages.sampling import SampleState, SamplingParams
from colocate.runtime.profiling.line import WorkerLine
from colocate.runtime.profiling.states import DecodeState, Limits, PrefillState
from colocate.types import BlockId, RequestId, Role

_DEPTH = 2  # batches at the worker, as the engine keeps them: it goes from one to the next without a pause
_ENDLESS = 1 << 40
_PREFILL_IDS, _DECODE_IDS = 1 << 20, 1 << 30  # request ids of the two loads do not meet


@dataclass(frozen=True, slots=True)
class Timing:
    """One forward or one step. `linear` and `pairs` as in `config.profile.Sample`."""

    started_ns: int
    finished_ns: int
    linear: float
    pairs: float

    @property
    def seconds(self) -> float:
        return (self.finished_ns - self.started_ns) / 1e9


class PrefillLoad:
    """Batches of one state, one after another without a pause."""

    def __init__(
        self, line: WorkerLine, limits: Limits, state: PrefillState, params: SamplingParams, vocab_size: int
    ) -> None:
        self._line = line
        self._state = state
        self._rows = _prefill_rows(limits, state, params, vocab_size)
        self._next_id = 0
        self._in_flight = 0
        self._is_on = True
        self.timings: list[Timing] = []

    def start(self) -> None:
        while self._in_flight < _DEPTH:
            self._send()

    def stop(self) -> None:
        """Nothing new from here on; what is under way is still heard."""
        self._is_on = False

    @property
    def is_idle(self) -> bool:
        return self._in_flight == 0

    def take(self, done: PrefillDone) -> None:
        self._in_flight -= 1
        self.timings.append(Timing(done.started_ns, done.finished_ns, self._state.linear, self._state.pairs))
        if self._is_on:
            self._send()

    def _send(self) -> None:
        self._next_id += 1
        self._in_flight += 1
        self._line.send(Role.PREFILL, PrefillBatch(self._next_id, self._rows))


class DecodeLoad:
    """A standing batch that steps without a pause. Every few steps fresh rows of the state take the places of those
    that have grown: in one message, so that the worker misses no step."""

    def __init__(self, line: WorkerLine, limits: Limits, state: DecodeState, params: SamplingParams) -> None:
        self._line = line
        self._state = state
        self._params = params
        self._tables = _decode_tables(limits, state)
        self._renew_after = max(1, limits.step_room // 4)
        self._generation = 0  # incarnation of the rows sent last
        self._stepped: dict[int, int] = {}  # steps reported, by generation
        self._is_on = False
        self.is_idle = True
        self.timings: list[Timing] = []

    def start(self) -> None:
        self._is_on, self.is_idle = True, False
        self._renew()

    def stop(self) -> None:
        """The rows leave at the next boundary."""
        if self._is_on:
            self._is_on = False
            self._line.send(Role.DECODE, DecodeUpdate(leaves=self._keys(self._generation)))

    def take(self, report: StepReport) -> None:
        if report.rows:
            self._book(report)
        if self._is_on and any(incarnation == self._generation for _, incarnation in report.masked):
            self._renew()  # they outran us: the batch stands still
        if not self._is_on and any(incarnation == self._generation for _, incarnation in report.left):
            self.is_idle = True

    def _book(self, report: StepReport) -> None:
        generation = report.rows[0].incarnation
        steps = self._stepped.get(generation, 0)
        self._stepped[generation] = steps + 1
        num_rows = len(self._state.contexts)
        if len(report.rows) != num_rows:  # some outran us and wait for their successors
            return
        sum_context = sum(self._state.contexts) + steps * num_rows
        self.timings.append(Timing(report.started_ns, report.finished_ns, sum_context, num_rows))
        if self._is_on and generation == self._generation and steps + 1 >= self._renew_after:
            self._renew()

    def _renew(self) -> None:
        leaves = self._keys(self._generation) if self._generation else []
        self._generation += 1
        joins = [
            DecodeRow(request_id, generation, 1, context, list(table), SampleState(self._params, 1))
            for (request_id, generation), context, table in zip(
                self._keys(self._generation), self._state.contexts, self._tables, strict=True
            )
        ]
        self._line.send(Role.DECODE, DecodeUpdate(joins=joins, leaves=leaves))

    def _keys(self, generation: int) -> list[tuple[RequestId, int]]:
        return [(_DECODE_IDS + index, generation) for index in range(len(self._state.contexts))]


def params_of(temperature: float) -> SamplingParams:
    """Of every row: it never ends by itself."""
    return SamplingParams(max_tokens=_ENDLESS, temperature=temperature, ignore_eos=True)


def _prefill_rows(limits: Limits, state: PrefillState, params: SamplingParams, vocab_size: int) -> list[PrefillRow]:
    rows, first = [], 0
    for index, (new, cached) in enumerate(state.rows):
        num_blocks = -(-(cached + new) // limits.block_size)
        token_ids = [(index + place) % vocab_size for place in range(new)]
        table = list(range(first, first + num_blocks))
        rows.append(PrefillRow(_PREFILL_IDS + index, 1, token_ids, cached, table, SampleState(params, 0)))
        first += num_blocks
    return rows


def _decode_tables(limits: Limits, state: DecodeState) -> list[list[BlockId]]:
    tables, first = [], limits.prefill_blocks
    for context in state.contexts:
        num_blocks = -(-(context + limits.step_room) // limits.block_size)
        tables.append(list(range(first, first + num_blocks)))
        first += num_blocks
    return tables
