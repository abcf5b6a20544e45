"""Logits to tokens.

The order is the one vLLM's users know: log probabilities come from the raw logits; then logit bias, repetition,
presence and frequency penalties, the `min_tokens` mask, temperature, top-k, top-p, min-p; then the draw, which is
`argmax(logits / T + gumbel)` with the noise of `colocate.model.noise`.

Parameters, however extreme, never fail a row: a batch holds rows of many clients. Adjusted scores stay finite, and
every filter keeps the most likely token.

A row is computed from its own logits and its own state alone, single-threaded and in double precision: batch, row
index, thread count and worker have no influence on a single bit of the result.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from colocate.errors import InvariantError
from colocate.messages.sampling import SampleState, SamplingParams, TokenLogprob
from colocate.model.noise import gumbel, noise_key, token_counters
from colocate.types import TokenId

Float32s: TypeAlias = NDArray[np.float32]
Float64s: TypeAlias = NDArray[np.float64]
Int64s: TypeAlias = NDArray[np.int64]

# Dividing by less would make any difference of logits decide the draw, and in the end overflow.
GREEDY_BELOW = 1e-5
# Far beyond any logit (float32 ends at 3.4e38), and still finite when divided by the lowest temperature.
_MAX_SCORE = 1e100


@dataclass(frozen=True, slots=True)
class SampledTokens:
    """One token per row; `logprobs` is None where no row asked, else holds None for the rows that did not."""

    token_ids: list[TokenId]
    logprobs: list[TokenLogprob | None] | None = None


class Sampler:
    """Holds what depends on the vocabulary alone; no state of any request."""

    def __init__(self, vocab_size: int) -> None:
        self._vocab_size = vocab_size
        self._all_tokens = np.arange(vocab_size, dtype=np.int64)
        self._all_counters = token_counters(self._all_tokens)

    def sample(self, logits: torch.Tensor, states: Sequence[SampleState]) -> SampledTokens:
        """Draw the next token of each row.

        `logits` is float32 `[rows, vocab_size]` on the CPU and is not modified; `states[i]` belongs to row i. Raises
        InvariantError where a row holds NaN, or nothing but minus infinity: such logits come from damaged weights or
        KV.
        """
        rows = self._as_rows(logits, len(states))
        if all(_is_plain_greedy(state) for state in states):
            best = rows.argmax(axis=1)
            peaks = rows[np.arange(len(rows)), best]
            if not np.isfinite(peaks).all():
                raise _damaged(int(np.flatnonzero(~np.isfinite(peaks))[0]))
            return SampledTokens(best.tolist())
        token_ids = [
            self._sample_row(index, row, state) for index, (row, state) in enumerate(zip(rows, states, strict=True))
        ]
        if all(state.params.logprobs is None for state in states):
            return SampledTokens(token_ids)
        logprobs = [
            None if state.params.logprobs is None else token_logprob(row, token_id, state.params.logprobs)
            for row, token_id, state in zip(rows, token_ids, states, strict=True)
        ]
        return SampledTokens(token_ids, logprobs)

    def prompt_logprobs(
        self, logits: torch.Tensor, next_token_ids: Sequence[TokenId], num_top: int
    ) -> list[TokenLogprob]:
        """Entry i scores `next_token_ids[i]` by the raw logits of row i, with `num_top` alternatives."""
        rows = self._as_rows(logits, len(next_token_ids))
        for index, row in enumerate(rows):
            _check_peak(index, row[row.argmax()])
        return [token_logprob(row, token_id, num_top) for row, token_id in zip(rows, next_token_ids, strict=True)]

    def _as_rows(self, logits: torch.Tensor, num_rows: int) -> Float32s:
        if logits.shape != (num_rows, self._vocab_size) or logits.dtype != torch.float32:
            raise InvariantError(
                f"the sampler got logits {tuple(logits.shape)} of {logits.dtype} for {num_rows} rows "
                f"and a vocabulary of {self._vocab_size}"
            )
        rows: Float32s = logits.detach().contiguous().numpy()
        return rows

    def _sample_row(self, index: int, row: Float32s, state: SampleState) -> TokenId:
        raw_best = int(row.argmax())  # NaN counts as the largest, so one look finds it
        _check_peak(index, row[raw_best])
        if _is_untouched(state):
            if _is_greedy(state):
                return raw_best
            scores = row.astype(np.float64)
        else:
            scores = self._adjusted(row, state)
            if _is_greedy(state):
                return int(scores.argmax())
        scores /= state.params.temperature
        return self._draw(scores, state)

    def _adjusted(self, row: Float32s, state: SampleState) -> Float64s:
        """The logits after bias, penalties and mask, before temperature. The largest is finite."""
        params = state.params
        scores = row.astype(np.float64)
        for token_id, bias in params.logit_bias.items():
            if 0 <= token_id < self._vocab_size:
                scores[token_id] = _bounded(scores[token_id] + bias)
        with np.errstate(over="ignore"):  # to infinity, which `_bounded` takes back
            if params.repetition_penalty != 1.0:
                # CTRL (arXiv 1909.05858, section 4.1), made to lower negative logits too
                seen = np.unique(np.array([*state.prompt_token_ids, *state.output_token_ids], dtype=np.int64))
                values, penalty = scores[seen], params.repetition_penalty
                scores[seen] = _bounded(np.where(values > 0, values / penalty, values * penalty))
            if params.presence_penalty != 0.0 or params.frequency_penalty != 0.0:
                seen, counts = np.unique(np.array(state.output_token_ids, dtype=np.int64), return_counts=True)
                scores[seen] = _bounded(scores[seen] - (params.frequency_penalty * counts + params.presence_penalty))
        if state.position < params.min_tokens:
            self._mask_ends(scores, params)
        return scores

    def _mask_ends(self, scores: Float64s, params: SamplingParams) -> None:
        """Rule out the tokens that would end the output, unless that leaves no token at all."""
        masked = [t for t in (*params.eos_token_ids, *params.stop_token_ids) if 0 <= t < self._vocab_size]
        kept = scores[masked]
        scores[masked] = -np.inf
        if not math.isfinite(scores.max()):
            scores[masked] = kept

    def _draw(self, scores: Float64s, state: SampleState) -> TokenId:
        params = state.params
        key = noise_key(params.seed, params.choice, state.position)
        kept = _filtered(scores, params)
        if kept is None:
            return int((scores + gumbel(key, self._all_counters)).argmax())
        return int(kept[(scores[kept] + gumbel(key, self._all_counters[kept])).argmax()])


def token_logprob(row: Float32s, token_id: TokenId, num_top: int) -> TokenLogprob:
    """Score one token and list the `num_top` most likely, ties by the lower token id."""
    scores = row.astype(np.float64)
    peak = scores.max()
    log_total = peak + math.log(np.exp(scores - peak).sum())
    top = [(int(t), float(scores[t] - log_total)) for t in _top_tokens(scores, min(num_top, len(row)))]
    return TokenLogprob(float(scores[token_id] - log_total), top)


def _top_tokens(scores: Float64s, count: int) -> Int64s:
    if count == 0:
        return np.empty(0, dtype=np.int64)
    candidates = np.flatnonzero(scores >= _kth_largest(scores, count))
    order = np.argsort(-scores[candidates], kind="stable")
    top: Int64s = candidates[order[:count]]
    return top


def _filtered(scores: Float64s, params: SamplingParams) -> Int64s | None:
    """Token ids, ascending, that survive top-k, top-p and min-p in this order; None where no filter is on.

    Top-k keeps every tie of the k-th value; top-p is the smallest set that reaches `top_p` of what top-k left, ties
    taken by the lower id (Holtzman et al., arXiv 1904.09751); min-p compares with the most likely token.
    """
    kept: Int64s | None = None
    if 0 < params.top_k < len(scores):
        kept = np.flatnonzero(scores >= _kth_largest(scores, params.top_k))
    if params.top_p < 1.0:
        kept = _nucleus(scores, kept, params.top_p)
    if params.min_p > 0.0:
        # Of those kept: where weights tie by rounding, top-p may have left out the very largest score.
        floor = (scores if kept is None else scores[kept]).max() + math.log(params.min_p)
        kept = np.flatnonzero(scores >= floor) if kept is None else kept[scores[kept] >= floor]
    return kept


def _kth_largest(scores: Float64s, k: int) -> float:
    return float(np.partition(scores, len(scores) - k)[len(scores) - k])


def _nucleus(scores: Float64s, kept: Int64s | None, top_p: float) -> Int64s:
    subset = scores if kept is None else scores[kept]
    weights = np.exp(subset - subset.max())
    weights /= weights.sum()
    # Tokens below (1 - top_p) / n add up to less than 1 - top_p together, so none of them is in the set: most of a
    # large vocabulary need not be sorted.
    # `min` for weights so even that rounding decides.
    likely = np.flatnonzero(weights >= min((1.0 - top_p) / len(weights), weights.max()))
    order = likely[np.argsort(-weights[likely], kind="stable")]
    before = np.cumsum(weights[order]) - weights[order]
    size = max(1, int(np.count_nonzero(before < top_p)))
    chosen = np.sort(order[:size])
    nucleus: Int64s = chosen if kept is None else kept[chosen]
    return nucleus


def _is_untouched(state: SampleState) -> bool:
    """True where logits go to temperature as they are: no bias, no mask, no penalty."""
    params = state.params
    return (
        not params.logit_bias
        and state.position >= params.min_tokens
        and params.repetition_penalty == 1.0
        and params.presence_penalty == 0.0
        and params.frequency_penalty == 0.0
    )


def _is_greedy(state: SampleState) -> bool:
    return state.params.temperature < GREEDY_BELOW


def _is_plain_greedy(state: SampleState) -> bool:
    return _is_greedy(state) and state.params.logprobs is None and _is_untouched(state)


def _bounded(scores: Float64s) -> Float64s:
    return np.clip(scores, -_MAX_SCORE, _MAX_SCORE)


def _check_peak(index: int, peak: np.floating) -> None:
    if not math.isfinite(peak):
        raise _damaged(index)


def _damaged(index: int) -> InvariantError:
    return InvariantError(f"the logits of row {index} hold NaN or no finite maximum: weights or KV are damaged")
