"""Whatever else is in the batch, a row draws the same token and the same logprobs, bit for bit; and no parameters of a
row, however extreme, fail the batch."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from colocate.errors import InvariantError
from colocate.messages.sampling import SampleState, SamplingParams
from colocate.model.sampler import SampledTokens, Sampler

VOCAB = 97
token_ids = st.integers(0, VOCAB - 1)

params = st.builds(
    SamplingParams,
    max_tokens=st.just(10),
    seed=st.integers(0, 2**63 - 1),
    choice=st.integers(0, 3),
    temperature=st.sampled_from([0.0, 0.2, 1.0, 3.0]),
    top_p=st.sampled_from([1.0, 0.9, 0.1]),
    top_k=st.sampled_from([0, 1, 5, 200]),
    min_p=st.sampled_from([0.0, 0.05, 1.0]),
    min_tokens=st.integers(0, 4),
    repetition_penalty=st.sampled_from([1.0, 0.8, 1.5]),
    presence_penalty=st.sampled_from([0.0, -1.0, 1.0]),
    frequency_penalty=st.sampled_from([0.0, 0.5]),
    logit_bias=st.dictionaries(token_ids, st.floats(-100, 100), max_size=3),
    eos_token_ids=st.just((2,)),
    logprobs=st.sampled_from([None, 0, 3]),
)
states = st.builds(
    SampleState,
    params=params,
    position=st.integers(0, 8),
    prompt_token_ids=st.lists(token_ids, max_size=6),
    output_token_ids=st.lists(token_ids, max_size=6),
)


def row_of(result: SampledTokens, index: int) -> tuple[int, object]:
    return result.token_ids[index], None if result.logprobs is None else result.logprobs[index]


@given(batch=st.lists(states, min_size=1, max_size=6), seed=st.integers(0, 1000), data=st.data())
@settings(deadline=None, max_examples=150)
def test_a_row_is_independent_of_its_batch(batch: list[SampleState], seed: int, data: st.DataObject) -> None:
    logits = torch.randn(len(batch), VOCAB, generator=torch.Generator().manual_seed(seed)) * 4
    sampler = Sampler(VOCAB)
    together = sampler.sample(logits, batch)
    order = data.draw(st.permutations(range(len(batch))))
    shuffled = sampler.sample(logits[list(order)], [batch[i] for i in order])
    for place, index in enumerate(order):
        alone = sampler.sample(logits[index : index + 1], [batch[index]])
        assert row_of(together, index) == row_of(alone, 0) == row_of(shuffled, place)
        params = batch[index].params
        assert (params.logprobs is None) == (row_of(alone, 0)[1] is None)
        if batch[index].position < params.min_tokens and params.logit_bias.get(2, 0.0) <= 0:
            assert alone.token_ids[0] != 2


TINY, HUGE = 1e-310, 1e308
extreme_params = st.builds(
    SamplingParams,
    max_tokens=st.just(10),
    seed=st.integers(0, 2**63 - 1),
    temperature=st.sampled_from([0.0, TINY, 1e-6, 1e-5, 1.0, 100.0, HUGE]),
    top_p=st.sampled_from([1.0, 1 - 2**-53, 0.5, 1e-17, TINY]),
    top_k=st.sampled_from([0, 1, VOCAB, 2**31 - 1]),
    min_p=st.sampled_from([0.0, TINY, 0.5, 1.0]),
    min_tokens=st.sampled_from([0, 2**31 - 1]),
    repetition_penalty=st.sampled_from([TINY, 0.01, 1.0, 100.0, HUGE]),
    presence_penalty=st.sampled_from([-HUGE, 0.0, 2.0, HUGE]),
    frequency_penalty=st.sampled_from([-HUGE, 0.0, 2.0, HUGE]),
    logit_bias=st.dictionaries(token_ids, st.sampled_from([-HUGE, -100.0, 100.0, HUGE]), max_size=3),
    eos_token_ids=st.just((2,)),
    stop_token_ids=st.sampled_from([(), (5,), tuple(range(VOCAB))]),
    logprobs=st.sampled_from([None, 3]),
)
extreme_states = st.builds(
    SampleState,
    params=extreme_params,
    position=st.integers(0, 8),
    prompt_token_ids=st.lists(token_ids, max_size=6) | st.just(list(range(VOCAB))),
    output_token_ids=st.lists(token_ids, max_size=6) | st.just([7] * 500),
)
rows_of_logits = st.sampled_from([0.0, 1e-30, 1.0, 1e4, 3e37])


@given(batch=st.lists(extreme_states, min_size=1, max_size=4), scale=rows_of_logits, seed=st.integers(0, 1000))
@settings(deadline=None, max_examples=200)
@pytest.mark.filterwarnings("error")
def test_extreme_parameters_draw_a_token(batch: list[SampleState], scale: float, seed: int) -> None:
    logits = torch.randn(len(batch), VOCAB, generator=torch.Generator().manual_seed(seed)) * scale
    drawn = Sampler(VOCAB).sample(logits, batch)
    assert len(drawn.token_ids) == len(batch) and all(0 <= token_id < VOCAB for token_id in drawn.token_ids)
    for row, state, token_id in zip(logits, batch, drawn.token_ids, strict=True):
        params = state.params
        stops = {*params.eos_token_ids, *params.stop_token_ids}
        if state.position < params.min_tokens and len(stops) < VOCAB:
            assert token_id not in stops
        elif params.temperature < 1e-5 and not (params.logit_bias or state.output_token_ids or state.prompt_token_ids):
            assert token_id == int(row.argmax())


def test_damaged_logits_still_raise() -> None:
    state = SampleState(SamplingParams(max_tokens=10, repetition_penalty=TINY, top_p=TINY), 0)
    for value in (float("nan"), float("inf")):
        logits = torch.zeros(1, VOCAB)
        logits[0, 3] = value
        with pytest.raises(InvariantError, match="damaged"):
            Sampler(VOCAB).sample(logits, [state])
