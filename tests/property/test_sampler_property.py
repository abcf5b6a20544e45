"""Whatever else is in the batch, a row draws the same token and the same logprobs, bit for bit."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

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
