"""The sampler against plain per-token references in Python floats, and what its samples are distributed like."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch

from colocate.errors import InvariantError
from colocate.messages.sampling import SampleState, SamplingParams
from colocate.model.sampler import Sampler

VOCAB = 50


def state(
    position: int = 0, prompt: list[int] | None = None, output: list[int] | None = None, **params: object
) -> SampleState:
    return SampleState(SamplingParams(max_tokens=100, **params), position, prompt or [], output or [])  # type: ignore[arg-type]


def random_logits(seed: int, rows: int = 1, scale: float = 3.0) -> torch.Tensor:
    return torch.randn(rows, VOCAB, generator=torch.Generator().manual_seed(seed)) * scale


def draws(logits: torch.Tensor, n: int, **params: object) -> Counter[int]:
    sampler = Sampler(VOCAB)
    batch = 500
    counts: Counter[int] = Counter()
    for first in range(0, n, batch):
        states = [state(position, **params) for position in range(first, first + batch)]
        counts.update(sampler.sample(logits.expand(batch, VOCAB), states).token_ids)
    return counts


def reference_support(row: list[float], temperature: float, top_k: int, top_p: float, min_p: float) -> set[int]:
    """Filters by the book: sort everything, walk down."""
    order = sorted(range(len(row)), key=lambda t: (-row[t], t))
    if top_k > 0:
        order = [t for t in order if row[t] >= row[order[min(top_k, len(row)) - 1]]]
    weights = {t: math.exp((row[t] - row[order[0]]) / temperature) for t in order}
    total = math.fsum(weights.values())
    kept, mass = [], 0.0
    for t in order:
        if mass >= top_p:
            break
        kept.append(t)
        mass += weights[t] / total
    kept = kept if top_p < 1.0 else order
    return {t for t in kept if weights[t] >= min_p * weights[order[0]]}


def chi_square_fits(counts: Counter[int], probabilities: dict[int, float]) -> bool:
    """Pooled so that every cell expects at least 10; 5 standard deviations of the statistic are allowed."""
    n = sum(counts.values())
    if set(counts) - set(probabilities):
        return False
    small = [t for t, p in probabilities.items() if p * n < 10]
    cells = [(counts[t], p * n) for t, p in probabilities.items() if p * n >= 10]
    pooled = n * sum(probabilities[t] for t in small)
    if pooled > 1:
        cells.append((sum(counts[t] for t in small), pooled))
    statistic = sum((seen - want) ** 2 / want for seen, want in cells)
    degrees = len(cells) - 1
    return statistic < degrees + 5 * math.sqrt(2 * max(degrees, 1))


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
def test_samples_follow_the_softmax(temperature: float) -> None:
    logits = random_logits(1, scale=1.5)
    p = torch.softmax(logits[0].double() / temperature, 0)
    assert chi_square_fits(draws(logits, 20_000, temperature=temperature, seed=5), dict(enumerate(p.tolist())))


@pytest.mark.parametrize(
    ("top_k", "top_p", "min_p"),
    [(5, 1.0, 0.0), (0, 0.8, 0.0), (0, 1.0, 0.2), (20, 0.7, 0.0), (10, 0.9, 0.1), (1, 1.0, 0.0)],
)
def test_filters_keep_the_reference_support_and_renormalise(top_k: int, top_p: float, min_p: float) -> None:
    logits = random_logits(2, scale=1.0)
    row = [float(x) for x in logits[0]]
    support = reference_support(row, 0.9, top_k, top_p, min_p)
    weights = {t: math.exp(row[t] / 0.9) for t in support}
    total = math.fsum(weights.values())
    counts = draws(logits, 10_000, temperature=0.9, top_k=top_k, top_p=top_p, min_p=min_p, seed=8)
    assert chi_square_fits(counts, {t: w / total for t, w in weights.items()})
    assert set(counts) == support or min(weights.values()) / total < 1e-3


def test_a_filter_changes_no_draw_that_it_would_have_kept() -> None:
    """Noise belongs to the token id, so filtering can only replace draws outside the kept set."""
    logits = random_logits(3)
    sampler = Sampler(VOCAB)
    support = reference_support([float(x) for x in logits[0]], 1.0, 8, 1.0, 0.0)
    for position in range(300):
        free = sampler.sample(logits, [state(position, seed=2)]).token_ids[0]
        filtered = sampler.sample(logits, [state(position, seed=2, top_k=8)]).token_ids[0]
        assert filtered == free if free in support else filtered in support


def test_temperature_zero_is_the_lowest_token_id_of_the_maximum() -> None:
    logits = torch.zeros(2, VOCAB)
    logits[0, [7, 30]] = 2.0
    sampler = Sampler(VOCAB)
    assert sampler.sample(logits, [state(temperature=0.0)] * 2).token_ids == [7, 0]
    mixed = [state(temperature=0.0), state(temperature=0.0, logprobs=0)]
    assert sampler.sample(logits, mixed).token_ids == [7, 0]
    assert sampler.sample(logits, [state(temperature=1e-9, seed=s) for s in (1, 2)]).token_ids[0] in (7, 30)


def test_top_k_keeps_every_tie_of_the_last_place() -> None:
    logits = torch.zeros(1, VOCAB)
    logits[0, [3, 9, 12]] = 5.0
    assert set(draws(logits, 1000, top_k=2)) == {3, 9, 12}


def test_penalties_and_bias_match_their_definitions() -> None:
    logits = random_logits(4)
    prompt, output = [1, 2, 2, 40], [5, 5, 5, 2, 9]
    params = {
        "repetition_penalty": 1.3,
        "presence_penalty": 0.7,
        "frequency_penalty": 0.4,
        "logit_bias": {9: 4.0, 11: -100.0},
    }
    expected = [float(x) for x in logits[0]]
    for t, bias in {9: 4.0, 11: -100.0}.items():
        expected[t] += bias
    for t in {*prompt, *output}:
        expected[t] = expected[t] / 1.3 if expected[t] > 0 else expected[t] * 1.3
    for t, count in Counter(output).items():
        expected[t] -= 0.4 * count + 0.7
    adjusted = torch.tensor([expected])
    sampler = Sampler(VOCAB)
    for temperature in (0.0, 0.8):
        for position in range(50):
            ours = sampler.sample(logits, [state(position, prompt, output, temperature=temperature, seed=3, **params)])
            plain = sampler.sample(adjusted, [state(position, temperature=temperature, seed=3)])
            assert ours.token_ids == plain.token_ids
    assert draws(logits, 500, logit_bias={11: 100.0}) == {11: 500}


def test_presence_penalty_counts_a_token_once_and_ignores_the_prompt() -> None:
    logits = torch.zeros(1, VOCAB)
    logits[0, 4], logits[0, 6] = 1.0, 0.9
    sampler = Sampler(VOCAB)
    assert sampler.sample(logits, [state(0, [4], [], temperature=0.0, presence_penalty=0.5)]).token_ids == [4]
    assert sampler.sample(logits, [state(3, [], [4, 4, 4], temperature=0.0, presence_penalty=0.05)]).token_ids == [4]
    assert sampler.sample(logits, [state(3, [], [4, 4, 4], temperature=0.0, frequency_penalty=0.05)]).token_ids == [6]


def test_min_tokens_masks_eos_and_stop_ids_until_then() -> None:
    logits = torch.zeros(1, VOCAB)
    logits[0, 2], logits[0, 8], logits[0, 20] = 9.0, 8.0, 7.0
    params = {"min_tokens": 3, "eos_token_ids": (2, 10_000), "stop_token_ids": (8,), "temperature": 0.0}
    sampler = Sampler(VOCAB)
    assert [sampler.sample(logits, [state(i, **params)]).token_ids[0] for i in range(5)] == [20, 20, 20, 2, 2]


def test_logprobs_are_of_the_raw_logits() -> None:
    logits = random_logits(6, rows=3)
    log_p = torch.log_softmax(logits.double(), 1)
    states = [
        state(temperature=0.0),
        state(temperature=0.3, logprobs=4, seed=1, logit_bias={3: 50.0}),
        state(temperature=2.0, logprobs=0),
    ]
    result = Sampler(VOCAB).sample(logits, states)
    assert result.logprobs is not None and result.logprobs[0] is None
    assert result.token_ids[1] == 3
    for row in (1, 2):
        entry = result.logprobs[row]
        assert entry is not None
        assert entry.logprob == pytest.approx(float(log_p[row, result.token_ids[row]]), abs=1e-12)
    first, second = result.logprobs[1], result.logprobs[2]
    assert first is not None and second is not None
    assert [t for t, _ in first.top] == log_p[1].topk(4).indices.tolist() and second.top == []
    assert [p for _, p in first.top] == pytest.approx(log_p[1].topk(4).values.tolist(), abs=1e-12)


def test_top_logprobs_break_ties_by_the_lower_id_and_never_exceed_the_vocabulary() -> None:
    logits = torch.zeros(1, VOCAB)
    logits[0, 30] = 1.0
    entries = Sampler(VOCAB).prompt_logprobs(logits, [5], 3) + Sampler(VOCAB).prompt_logprobs(logits, [5], VOCAB + 7)
    assert [t for t, _ in entries[0].top] == [30, 0, 1]
    assert [t for t, _ in entries[1].top] == [30, *range(30), *range(31, VOCAB)]


def test_prompt_logprobs_score_the_next_token() -> None:
    logits = random_logits(7, rows=6)
    log_p = torch.log_softmax(logits.double(), 1)
    next_ids = [3, 1, 4, 1, 5, 9]
    entries = Sampler(VOCAB).prompt_logprobs(logits, next_ids, 2)
    assert [e.logprob for e in entries] == pytest.approx(
        [float(log_p[i, t]) for i, t in enumerate(next_ids)], abs=1e-12
    )
    assert all(len(e.top) == 2 for e in entries)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_damaged_logits_are_refused_with_the_row(bad: float, temperature: float) -> None:
    logits = random_logits(8, rows=3)
    logits[1, 13] = bad
    with pytest.raises(InvariantError, match="row 1 hold NaN"):
        Sampler(VOCAB).sample(logits, [state(temperature=temperature)] * 3)
    with pytest.raises(InvariantError, match="row 1 hold NaN"):
        Sampler(VOCAB).prompt_logprobs(logits, [0, 0, 0], 1)


def test_all_minus_infinity_and_wrong_shape_are_refused() -> None:
    with pytest.raises(InvariantError, match="no finite maximum"):
        Sampler(VOCAB).sample(torch.full((1, VOCAB), -math.inf), [state()])
    with pytest.raises(InvariantError, match="vocabulary of 50"):
        Sampler(VOCAB).sample(torch.zeros(1, VOCAB - 1), [state()])
    with pytest.raises(InvariantError, match="for 2 rows"):
        Sampler(VOCAB).sample(torch.zeros(1, VOCAB), [state()] * 2)


def test_choices_and_positions_and_seeds_draw_different_streams() -> None:
    logits = torch.zeros(1, VOCAB).expand(60, VOCAB)
    sampler = Sampler(VOCAB)
    streams = {
        tuple(sampler.sample(logits, [state(i, seed=seed, choice=choice) for i in range(60)]).token_ids)
        for seed in (0, 1, 2**63 - 1)
        for choice in (0, 1, 2)
    }
    assert len(streams) == 9


def test_input_logits_are_left_alone() -> None:
    logits = random_logits(9)
    before = logits.clone()
    Sampler(VOCAB).sample(
        logits, [state(3, [1], [2], temperature=0.5, repetition_penalty=2.0, logit_bias={1: 5.0}, top_p=0.5)]
    )
    assert torch.equal(logits, before)
