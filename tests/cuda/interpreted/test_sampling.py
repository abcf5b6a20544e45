"""The device draws what `model/sampler.py` draws, wherever rounding does not decide."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from colocate.messages.sampling import SampleState, SamplingParams
from colocate.model import noise
from colocate.model.cuda.kernels.noise import gumbel, noise_bits, noise_key
from colocate.model.cuda.kernels.sampling import DAMAGED, NO_TOKEN, RowSampler, pieces_of
from colocate.model.cuda.sampling import needs_host
from colocate.model.cuda.state import DecodeState, SamplingTable
from colocate.model.sampler import Sampler
from tests.cuda.device_rows import fill_table, sampler_buffers

VOCAB = 97
SCORE_TOLERANCE = 2e-5  # noisy scores: float32 against double
MASS_TOLERANCE = 1e-5  # of a nucleus; also relative, of min-p's weights


def draw(logits: torch.Tensor, states: list[SampleState], num_sms: int = 0) -> list[int]:
    """Rows in slots 1, 2, ... of a table, slot 0 being somebody else's."""
    num_rows, vocab_size = logits.shape
    table = SamplingTable.allocate(num_rows + 1, "cpu")
    slots = list(range(1, num_rows + 1))
    fill_table(table, slots, states, vocab_size)
    drawn = torch.full((num_rows,), 99, dtype=torch.int32)
    index = torch.tensor(slots, dtype=torch.int32)
    before = logits.clone()
    RowSampler(sampler_buffers(num_rows)).sample(logits, table, index, drawn, num_sms)
    assert torch.equal(torch.nan_to_num(logits), torch.nan_to_num(before)), "logits belong to the caller"
    return drawn.tolist()


@triton.jit
def _noise_kernel(seed_key, position, bits, values, BLOCK: tl.constexpr):
    tokens = tl.arange(0, BLOCK)
    key = noise_key(tl.load(seed_key), tl.load(position))
    found = noise_bits(key, tokens)
    tl.store(bits + tokens, found.to(tl.int64, bitcast=True))
    tl.store(values + tokens, gumbel(found))


@triton.jit
def _gumbel_kernel(bits, values, BLOCK: tl.constexpr):
    places = tl.arange(0, BLOCK)
    tl.store(values + places, gumbel(tl.load(bits + places).to(tl.uint64, bitcast=True)))


@pytest.mark.parametrize("seed", [0, 1, 2**62 + 12345, 2**63 - 1])
@pytest.mark.parametrize(("choice", "position"), [(0, 0), (3, 1), (1, 2**31 - 1)])
def test_noise_is_the_hosts(seed: int, choice: int, position: int) -> None:
    count = 4096
    state = SampleState(SamplingParams(max_tokens=1, seed=seed, choice=choice), position)
    table = SamplingTable.allocate(1, "cpu")
    fill_table(table, [0], [state], count)
    bits, values = torch.empty(count, dtype=torch.int64), torch.empty(count)
    _noise_kernel[(1,)](table.seed_key, table.position, bits, values, BLOCK=count)
    key, counters = noise.noise_key(seed, choice, position), noise.token_counters(np.arange(count))
    uniforms = noise.uniform(key, counters)
    np.testing.assert_array_equal(bits.numpy(), (uniforms * 2**52 - 0.5).astype(np.int64))
    np.testing.assert_allclose(values.numpy(), noise.gumbel(key, counters), rtol=2e-7, atol=1e-6)


def test_noise_keeps_its_tails() -> None:
    """At both ends of (0, 1) and around every power of two, where float32 has most to lose."""
    ends = [0, 1, 2, 3, 2**51 - 1, 2**51, 2**51 + 1, 2**52 - 4, 2**52 - 3, 2**52 - 2, 2**52 - 1]
    powers = [2**e + d for e in range(2, 51) for d in (-1, 0, 1)]
    bits = sorted({*ends, *powers, *(2**52 - 1 - p for p in powers)})
    padded = bits + [0] * (512 - len(bits))
    values = torch.empty(512)
    _gumbel_kernel[(1,)](torch.tensor(padded), values, BLOCK=512)
    exact = []
    for n in padded:  # 1 - u is exact in a double, log1p keeps the upper tail
        exact.append(
            -math.log(-math.log1p(-(2**52 - n - 0.5) * 2**-52))
            if n >= 2**51
            else -math.log(-math.log((n + 0.5) * 2**-52))
        )
    np.testing.assert_allclose(values.numpy(), exact, rtol=2e-7, atol=1e-6)
    assert max(values.tolist()) > 36 and min(values.tolist()) < -3.5


def scores_of(row: torch.Tensor, state: SampleState) -> np.ndarray:
    """float64 scores before noise, masked as the host masks."""
    params = state.params
    scores = row.double().numpy().copy()
    if state.position < params.min_tokens:
        ends = [t for t in (*params.eos_token_ids, *params.stop_token_ids) if 0 <= t < len(scores)]
        kept = scores[ends]
        scores[ends] = -np.inf
        if not math.isfinite(scores.max()):
            scores[ends] = kept
    return scores / params.temperature


def kept_by(scores: np.ndarray, params: SamplingParams, slack: float) -> np.ndarray:
    """Filters of float64 scores by threshold, ties kept: looser with a positive slack, tighter with a negative one."""
    kept = np.isfinite(scores)
    if 0 < params.top_k < len(scores):
        kept &= scores >= np.sort(scores)[-params.top_k]
    weights = np.where(kept, np.exp(scores - scores.max()), 0.0)
    if params.top_p < 1.0:
        above = np.array([weights[scores > s].sum() for s in scores]) / weights.sum()
        kept &= (above < params.top_p + slack) | (scores == scores.max())
    if params.min_p > 0.0:
        kept &= np.exp(scores - scores.max()) >= params.min_p * (1 - slack * 10) - slack
        if slack < 0:
            kept |= scores == scores.max()
    return kept


def check_draw(row: torch.Tensor, state: SampleState, token: int, host_token: int) -> bool:
    """The token is one that exact arithmetic could have drawn; returns whether it left no choice."""
    params = state.params
    scores = scores_of(row, state)
    loose, tight = kept_by(scores, params, MASS_TOLERANCE), kept_by(scores, params, -MASS_TOLERANCE)
    key = noise.noise_key(params.seed, params.choice, state.position)
    noisy = scores - scores.max() + noise.gumbel(key, noise.token_counters(np.arange(len(scores))))
    assert loose[token], "a token that the filters rule out"
    best = np.where(tight, noisy, -np.inf).max()
    assert noisy[token] >= best - SCORE_TOLERANCE
    # The host adds noise to scores as they are: huge ones swallow it. The device subtracts the peak first.
    lost_on_host = 4 * np.finfo(np.float64).eps * np.abs(scores[np.isfinite(scores)]).max()
    contenders = loose & (noisy >= best - SCORE_TOLERANCE - lost_on_host)
    # The host's nucleus takes tokens of one weight, also by rounding, by the lower id.
    weights = np.exp(scores - scores.max())
    ties = params.top_p < 1.0 and any((weights == weights[t]).sum() > 1 for t in (token, host_token))
    if contenders.sum() == 1 and not ties:
        assert token == host_token
        return True
    return False


params_of = st.builds(
    SamplingParams,
    max_tokens=st.just(10),
    seed=st.integers(0, 2**63 - 1),
    choice=st.integers(0, 3),
    temperature=st.sampled_from([0.0, 1e-6, 0.2, 1.0, 3.0, 1e38]),
    top_p=st.sampled_from([1.0, 0.9, 0.5, 0.1, 1e-17]),
    top_k=st.sampled_from([0, 1, 5, 50, VOCAB, 2**31 - 1]),
    min_p=st.sampled_from([0.0, 1e-310, 0.05, 1.0]),
    min_tokens=st.integers(0, 4),
    eos_token_ids=st.sampled_from([(), (2,), (2, 5, 1000)]),
    stop_token_ids=st.sampled_from([(), (7, 8)]),
)
states_of = st.builds(SampleState, params=params_of, position=st.integers(0, 8))


@given(
    batch=st.lists(states_of, min_size=1, max_size=4),
    seed=st.integers(0, 1000),
    scale=st.sampled_from([1e-3, 1.0, 4.0, 3e37]),
    steps=st.sampled_from([0, 2]),
)
@settings(deadline=None, max_examples=40, derandomize=True, phases=(Phase.explicit, Phase.generate))
def test_a_draw_is_the_hosts(batch: list[SampleState], seed: int, scale: float, steps: int) -> None:
    logits = torch.randn(len(batch), VOCAB, generator=torch.Generator().manual_seed(seed))
    if steps:
        logits = (logits * steps).round() / steps  # many ties
    logits *= scale
    assert not any(needs_host(state, VOCAB) for state in batch)
    on_host = Sampler(VOCAB).sample(logits, batch).token_ids
    on_device = draw(logits, batch)
    for row, state, host_token, token in zip(logits, batch, on_host, on_device, strict=True):
        if state.params.temperature < 1e-5:
            assert token == host_token
        else:
            check_draw(row, state, token, host_token)


def test_most_draws_leave_no_choice() -> None:
    """The tolerances above decide almost nothing: 16 rows over 5,000 tokens, in one piece or three."""
    vocab, rows = 5000, 16
    logits = torch.randn(rows, vocab, generator=torch.Generator().manual_seed(5)) * 3
    filters = [{}, {"top_k": 40}, {"top_p": 0.8}, {"top_k": 100, "top_p": 0.9, "min_p": 0.02}]
    states = [
        SampleState(SamplingParams(max_tokens=9, seed=row, temperature=0.9, **filters[row % 4]), row)
        for row in range(rows)
    ]
    on_host = Sampler(vocab).sample(logits, states).token_ids
    few, many = draw(logits, states, num_sms=2), draw(logits, states, num_sms=132)
    assert pieces_of(rows, vocab, 2) == 1 and pieces_of(rows, vocab, 132) == 3
    assert few == many, "the number of programs changes no draw"
    decided = [check_draw(*four) for four in zip(logits, states, many, on_host, strict=True)]
    assert sum(decided) >= rows - 1


def test_a_tie_goes_to_the_lower_token_across_pieces() -> None:
    logits = torch.zeros(2, 5000)
    logits[0, [2047, 2048, 4999]] = 3.0
    logits[1, 4999] = 3.0
    greedy = [SampleState(SamplingParams(max_tokens=9, temperature=0.0), 0)] * 2
    assert draw(logits, greedy, num_sms=132) == [2047, 4999]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_damaged_logits_are_told(value: float, temperature: float) -> None:
    state = SampleState(SamplingParams(max_tokens=9, temperature=temperature), 0)
    logits = torch.zeros(3, 5000)
    logits[0, 4000] = value
    logits[1] = -float("inf")
    assert draw(logits, [state] * 3)[:2] == [DAMAGED, DAMAGED]
    assert draw(logits, [state] * 3)[2] >= 0


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_ends_are_ruled_out_unless_nothing_else_is_left(temperature: float) -> None:
    params = SamplingParams(
        max_tokens=9, temperature=temperature, min_tokens=2, eos_token_ids=(3,), stop_token_ids=(5,), ignore_eos=True
    )
    logits = torch.full((4, VOCAB), -float("inf"))
    logits[:, 3], logits[:, 5] = 50.0, 40.0
    logits[:2, 9] = 0.0
    states = [SampleState(params, position) for position in (1, 2, 1, 2)]
    assert draw(logits, states) == [9, 3, 3, 3]


def test_rows_that_are_not_live_draw_nothing() -> None:
    state = DecodeState.allocate(4, 2, "cpu")
    sample = SampleState(SamplingParams(max_tokens=9, temperature=0.0), 0)
    fill_table(state.sampling, range(4), [sample] * 4, VOCAB)
    state.active[:3] = 1
    state.context_len[:4] = torch.tensor([5, 16, 17, 3])
    state.granted_len[:4] = 16
    logits = torch.zeros(6, VOCAB)
    logits[:, 11] = 1.0
    index = torch.tensor([0, 1, 2, 3, state.padding_slot, -1], dtype=torch.int32)
    drawn = torch.zeros(6, dtype=torch.int32)
    RowSampler(sampler_buffers(6)).sample(logits[:5], state.sampling, index[:5], drawn[:5], 0, state)
    assert drawn[:5].tolist() == [11, NO_TOKEN, NO_TOKEN, NO_TOKEN, NO_TOKEN]
    RowSampler(sampler_buffers(6)).sample(logits, state.sampling, index, drawn, 0)
    assert drawn.tolist() == [11, 11, 11, 11, 11, NO_TOKEN]
