"""The simulated standing batch says the same as the real worker's, for any sequence of updates and steps."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st

from colocate.messages.decode import DecodeRow, DecodeUpdate, StepRow
from colocate.messages.sampling import SampleState, SamplingParams
from colocate.sim.standing_rows import StandingRows
from colocate.worker.executor import StepTokens
from colocate.worker.standing_batch import StandingBatch

BLOCK = 4


def token_of(request_id: int, position: int) -> int:
    return request_id * 1000 + position


def same_token(request_id: int, position: int) -> int:
    return request_id


@dataclass
class Pair:
    """The real batch and the simulated one, told the same."""

    vary: bool
    real: StandingBatch = field(default_factory=lambda: StandingBatch(BLOCK))
    next_id: int = 1
    live: list[tuple[int, int]] = field(default_factory=list)
    times_ns: dict[int, list[int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.token_of = token_of if self.vary else same_token
        self.simulated = StandingRows(BLOCK, self.token_of, tokens_vary=self.vary)

    def update(self, update: DecodeUpdate) -> None:
        self.real.apply(update)
        self.simulated.apply(update)

    def join(self, context: int, num_blocks: int, num_tokens: int) -> None:
        params = SamplingParams(max_tokens=num_tokens + 1, ignore_eos=True)
        key = (self.next_id, 1)
        self.next_id += 1
        row = DecodeRow(*key, 0, context, list(range(num_blocks)), SampleState(params, position=1))
        self.live.append(key)
        self.update(DecodeUpdate(joins=[row]))

    def step(self) -> None:
        self.real.mask_full_rows()
        self.simulated.mask_full()
        rows = self.real.next_step()
        assert self.simulated.num_stepped == len(rows)
        assert self.simulated.sum_context == sum(row.context_len for row in rows)
        if rows:
            tokens = StepTokens([self.token_of(row.request_id, row.position) for row in rows], None)
            self.real.launched(rows)
            expected = self.real.record(rows, tokens)
            now_ns = self.simulated.num_steps * 1_000
            got, has_ended = self.simulated.step(now_ns)
            assert by_request(got) == by_request(expected)
            assert has_ended == any(row.finish is not None for row in expected)
            for row in expected:
                self.times_ns.setdefault(row.request_id, []).append(now_ns)
                if row.finish is not None:
                    self.live.remove((row.request_id, row.incarnation))
                    assert self.simulated.token_times_ns(row.request_id) == self.times_ns[row.request_id]
        assert self.simulated.has_acknowledgements == self.real.has_acknowledgements
        left, masked = self.simulated.take_acknowledgements()
        real_left, real_masked = self.real.take_acknowledgements()
        assert (left, sorted(masked)) == (real_left, sorted(real_masked))


def by_request(rows: list[StepRow]) -> list[StepRow]:
    return sorted(rows, key=lambda row: row.request_id)


ACTION = st.one_of(
    st.tuples(st.just("join"), st.integers(0, 9), st.integers(0, 3), st.integers(1, 9)),
    st.tuples(st.just("grow"), st.integers(0, 9), st.integers(1, 2), st.just(0)),
    st.tuples(st.just("leave"), st.integers(0, 9), st.just(0), st.just(0)),
    st.tuples(st.just("step"), st.just(0), st.just(0), st.just(0)),
    st.tuples(st.just("step"), st.just(0), st.just(0), st.just(0)),
)


@given(st.booleans(), st.lists(ACTION, max_size=60))
def test_reports_are_the_real_workers(vary: bool, actions: list[tuple[str, int, int, int]]) -> None:
    pair = Pair(vary)
    for kind, number, blocks, num_tokens in actions:
        if kind == "join":
            pair.join(number, -(-number // BLOCK) + blocks, num_tokens)
        elif kind == "step":
            pair.step()
        elif pair.live:
            key = pair.live[number % len(pair.live)]
            if kind == "grow":
                pair.update(DecodeUpdate(grows=[(*key, list(range(blocks)))]))
            else:
                pair.live.remove(key)
                pair.update(DecodeUpdate(leaves=[key]))


def test_commands_for_rows_that_are_not_here_change_nothing() -> None:
    pair = Pair(False)
    pair.join(4, 2, 5)
    pair.update(DecodeUpdate(grows=[(9, 1, [1])], leaves=[(9, 1)]))
    pair.step()
    pair.step()
