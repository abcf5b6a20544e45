"""Whatever was measured, the fit gives a model that can be used; whatever the limits, states keep to them."""

from __future__ import annotations

import math
from collections import Counter
from itertools import islice

from hypothesis import given, settings
from hypothesis import strategies as st

from colocate.config.profile import Phase
from colocate.core.plan import build_plan_table
from colocate.runtime.profiling.fit import fit_coefficients
from colocate.runtime.profiling.schedule import all_setups, order
from colocate.runtime.profiling.states import decode_state, limits_of, prefill_state

_seconds = st.floats(1e-7, 1e4)
_measured = st.lists(st.tuples(st.integers(0, 10**7), st.floats(0, 1e10), _seconds), min_size=1, max_size=40)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(["prefill", "decode"]), _measured)
def test_the_fit_never_gives_a_negative_coefficient(phase: Phase, measured: list[tuple[float, float, float]]) -> None:
    linear, pairs, seconds = zip(*measured, strict=True)
    found = fit_coefficients(phase, linear, pairs, seconds)
    values = (found.a, found.b, found.c, found.d)
    assert all(math.isfinite(value) and value >= 0 for value in values)
    assert any(value > 0 for value in values) and (phase == "prefill" or found.d == 0)


@settings(max_examples=150, deadline=None)
@given(
    batched=st.integers(1, 4096),
    seqs=st.integers(1, 256),
    model_len=st.integers(4, 20000),
    num_blocks=st.integers(4, 30000),
    block_size=st.sampled_from([1, 8, 16, 64]),
    seed=st.integers(0, 5),
    index=st.integers(0, 60),
)
def test_states_fit_the_model_the_batch_and_the_pool(
    batched: int, seqs: int, model_len: int, num_blocks: int, block_size: int, seed: int, index: int
) -> None:
    # A run has room for at least one request of its own length.
    num_blocks = max(num_blocks, 2 * -(-(model_len + 1) // block_size))
    limits = limits_of(batched, seqs, model_len, num_blocks, block_size)
    prefill = prefill_state(limits, seed, index)
    assert 1 <= prefill.linear <= batched
    assert all(new >= 1 and cached >= 0 and new + cached <= model_len for new, cached in prefill.rows)
    used = sum(-(-(new + cached) // block_size) for new, cached in prefill.rows)
    assert used <= limits.prefill_blocks
    decode = decode_state(limits, seed, index)
    assert 1 <= len(decode.contexts) <= seqs
    assert all(context >= 1 and context + limits.step_room <= max(model_len, 2) for context in decode.contexts)
    used = sum(-(-(context + limits.step_room) // block_size) for context in decode.contexts)
    assert used <= limits.decode_blocks
    assert limits.prefill_blocks + limits.decode_blocks <= num_blocks


@settings(max_examples=50, deadline=None)
@given(units=st.integers(1, 40), granularity=st.integers(1, 8), states=st.integers(1, 30), taken=st.integers(0, 400))
def test_points_are_visited_alike_stage_by_stage(units: int, granularity: int, states: int, taken: int) -> None:
    setups = all_setups(build_plan_table(units, granularity))
    first = [(setup.name, state) for setup, state in islice(order(setups, states, [], 0), taken)]
    rest = [(setup.name, state) for setup, state in islice(order(setups, states, first, 0), taken)]
    counts = Counter(first + rest)
    every = [counts[setup.name, state] for setup in setups for state in range(states)]
    assert max(every) - min(every) <= 2
    staged = [counts[setup.name, state] for setup in setups for state in range(min(states, 12))]
    assert max(staged) - min(staged) <= 1
    assert len({setup.name for setup in setups}) == len(setups)
