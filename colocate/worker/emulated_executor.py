"""The executors of the emulated device: deterministic tokens, time from a profile or none, injected faults.

Imports no torch: a worker of the emulated device starts in a fraction of a second. Sampling parameters other than
seed, choice, EOS and stop token ids do not change the tokens.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from colocate.device.emulated.faults import FaultInjector
from colocate.device.emulated.timing import PhaseTimer, pass_time
from colocate.device.emulated.tokens import TokenDraw, mix, row_key
from colocate.errors import InvariantError
from colocate.messages.prefill import PrefillBatch, PrefillRow, PrefillRowDone
from colocate.messages.sampling import SampleState, TokenLogprob
from colocate.types import Incarnation, RequestId, Role, TokenId
from colocate.worker.executor import HybridResult, StandingRow, StepTokens


class EmulatedPrefillExecutor:
    """Implements `PrefillExecutor`.

    `poison` are token ids that a fault of the decode worker looks for. That worker sees no prompt, so a prompt that
    contains one draws it as its first output token, which no other request ever does.
    """

    def __init__(self, draw: TokenDraw, timer: PhaseTimer, faults: FaultInjector, poison: frozenset[TokenId]) -> None:
        self._draw = draw
        self._timer = timer
        self._faults = faults
        self._poison = poison
        self._poisoned: dict[RequestId, TokenId] = {}  # by a chunk seen earlier

    depth = 1

    @property
    def num_layers(self) -> int:
        return self._timer.num_slices

    def begin(self, batch: PrefillBatch) -> EmulatedPrefillForward:
        watched = self._poison | self._faults.token_ids
        found: set[TokenId] = set()
        if watched:
            for row in batch.rows:
                marks = watched.intersection(row.token_ids)
                found |= marks
                for mark in marks & self._poison:
                    self._poisoned[row.request_id] = mark
        self._faults.before_work(Role.PREFILL, found)
        return EmulatedPrefillForward(self, batch.rows, self._timer)

    def run_whole(self, batch: PrefillBatch) -> list[PrefillRowDone]:
        """The outcome of a batch without its time, which the caller lets pass."""
        self.begin(batch)
        return [self.done(row) for row in batch.rows]

    def units_changed(self, num_units: int) -> None:
        self._faults.during_switch()
        self._timer.units_changed(num_units)

    def done(self, row: PrefillRow) -> PrefillRowDone:
        """What the last slice yields for a row."""
        scores: list[TokenLogprob] = []
        if row.prompt_logprobs is not None:
            num_scored = len(row.token_ids) - (row.next_token_id is None)
            scores = [TokenLogprob(-1.0, []) for _ in range(num_scored)]
        if row.sample is None:
            return PrefillRowDone(row.request_id, row.incarnation, prompt_logprobs=scores)
        token_id = self._poisoned.pop(row.request_id, None)
        if token_id is None:
            token_id = draw_token(self._draw, row.sample, row.sample.position)
        logprob = emulated_logprob(row.sample, row.sample.position, token_id)
        return PrefillRowDone(row.request_id, row.incarnation, token_id, logprob, scores)


class EmulatedPrefillForward:
    """Implements `PrefillForward`."""

    def __init__(self, executor: EmulatedPrefillExecutor, rows: Sequence[PrefillRow], timer: PhaseTimer) -> None:
        self._executor = executor
        self._rows = list(rows)
        self._timer = timer
        self._layers_left = timer.num_slices

    def run_slice(self, max_layers: int = 1) -> bool:
        num_layers = min(max_layers, self._layers_left)
        if self._timer.takes_time:
            started_s = time.perf_counter()
            spans = [(len(row.token_ids), row.start) for row in self._rows]
            pass_time(self._timer.prefill_slice_s(spans, num_layers), started_s)
        self._layers_left -= num_layers
        return self._layers_left <= 0

    def wait_slice(self) -> None:
        """It is done."""

    def abandon(self) -> None:
        """Nothing is held."""

    def drop_rows(self, rows: set[tuple[RequestId, Incarnation]]) -> None:
        self._rows = [row for row in self._rows if (row.request_id, row.incarnation) not in rows]

    def results(self) -> list[PrefillRowDone]:
        if self._layers_left > 0:
            raise InvariantError("results of a prefill forward were asked for before its last slice")
        return [self._executor.done(row) for row in self._rows]


class EmulatedDecodeExecutor:
    """A step at a time; `worker/at_once.py` makes it a `DecodeExecutor`."""

    def __init__(self, draw: TokenDraw, timer: PhaseTimer, faults: FaultInjector) -> None:
        self._draw = draw
        self._timer = timer
        self._faults = faults
        self._version: int | None = None
        self._keys: list[tuple[int, tuple[TokenId, ...]]] = []
        self._has_logprobs = False

    def units_changed(self, num_units: int) -> None:
        self._faults.during_switch()
        self._timer.units_changed(num_units)

    def step(self, rows: Sequence[StandingRow], version: int) -> StepTokens:
        started_s = time.perf_counter()
        tokens = self.draw(rows, version)
        if self._timer.takes_time:
            pass_time(self._timer.decode_step_s(sum(row.context_len for row in rows), len(rows)), started_s)
        return tokens

    def draw(self, rows: Sequence[StandingRow], version: int) -> StepTokens:
        """The outcome of a step without its time, which the caller lets pass."""
        self._faults.before_work(Role.DECODE, self._poison_among(rows))
        if version != self._version:
            self._version = version
            params = [row.sample.params for row in rows]
            self._keys = [
                (row_key(each.seed, each.choice), _eos_of(row)) for each, row in zip(params, rows, strict=True)
            ]
            self._has_logprobs = any(each.logprobs is not None for each in params)
        token = self._draw.token
        token_ids = [token(key, row.position, eos) for (key, eos), row in zip(self._keys, rows, strict=True)]
        logprobs = None
        if self._has_logprobs:
            logprobs = [
                emulated_logprob(row.sample, row.position, token_id)
                for row, token_id in zip(rows, token_ids, strict=True)
            ]
        return StepTokens(token_ids, logprobs)

    def _poison_among(self, rows: Sequence[StandingRow]) -> set[TokenId]:
        watched = self._faults.token_ids
        if not watched:
            return set()
        found: set[TokenId] = set()
        for row in rows:
            found |= watched & {row.last_token_id, *row.output_token_ids, *row.sample.prompt_token_ids}
        return found


class EmulatedHybridExecutor:
    """A forward at a time, which `worker/at_once.py` makes a `HybridExecutor`: what the two others yield, in the time
    of one forward over both."""

    def __init__(self, prefill: EmulatedPrefillExecutor, decode: EmulatedDecodeExecutor, timer: PhaseTimer) -> None:
        """Both share one injector of faults and `timer`."""
        self._prefill = prefill
        self._decode = decode
        self._timer = timer

    def units_changed(self, num_units: int) -> None:
        self._decode.units_changed(num_units)

    def step(self, batch: PrefillBatch | None, rows: Sequence[StandingRow], version: int) -> HybridResult:
        started_s = time.perf_counter()
        done = self._prefill.run_whole(batch) if batch is not None else []
        tokens = self._decode.draw(rows, version) if rows else None
        if self._timer.takes_time:
            spans = [(len(row.token_ids), row.start) for row in batch.rows] if batch is not None else []
            context = sum(row.context_len for row in rows)
            pass_time(self._timer.hybrid_step_s(spans, context, len(rows)), started_s)
        return HybridResult(tokens, done)


def draw_token(draw: TokenDraw, sample: SampleState, position: int) -> TokenId:
    params = sample.params
    return draw.token(row_key(params.seed, params.choice), position, params.eos_token_ids)


def _eos_of(row: StandingRow) -> tuple[TokenId, ...]:
    return row.sample.params.eos_token_ids


def emulated_logprob(sample: SampleState, position: int, token_id: TokenId) -> TokenLogprob | None:
    """Plausible and deterministic: the drawn token first, others below it."""
    num_top = sample.params.logprobs
    if num_top is None:
        return None
    logprob = -(mix(token_id, position) % 2000) / 1000
    others = [(max(token_id - place, 0), logprob - place) for place in range(1, num_top)]
    return TokenLogprob(logprob, [(token_id, logprob), *others][:num_top])
