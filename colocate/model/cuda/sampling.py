"""From a request's sampling parameters to the device's table, and to the host where the table does not reach."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from colocate.messages.sampling import SampleState, SamplingParams
from colocate.model.cuda.state import MAX_ENDS
from colocate.model.noise import GAMMA, mix
from colocate.model.sampler import GREEDY_BELOW

_MASK = 2**64 - 1
_MOST = 2**31 - 1
_MAX_TEMPERATURE = 3e38  # float32 ends here; at infinity a ruled out token would be no number

# One slot of a `SamplingTable`: the same names, types and order.
TABLE_ROW = np.dtype(
    [
        ("position", np.int32),
        ("temperature", np.float32),
        ("top_k", np.int32),
        ("top_p", np.float32),
        ("min_p", np.float32),
        ("seed_key", np.int64),
        ("min_tokens", np.int32),
        ("max_tokens", np.int32),
        ("ends", np.int32, (MAX_ENDS,)),
        ("end_finishes", np.int32, (MAX_ENDS,)),
    ]
)


def needs_host(sample: SampleState, vocab_size: int | None = None) -> bool:
    """Whether the row must be sampled by `model/sampler.py`: it reads token lists, biases, or wants logprobs."""
    params = sample.params
    return (
        params.repetition_penalty != 1.0
        or params.presence_penalty != 0.0
        or params.frequency_penalty != 0.0
        or bool(params.logit_bias)
        or params.logprobs is not None
        or len(_ends(params, vocab_size)) > MAX_ENDS
    )


def table_row(sample: SampleState, vocab_size: int | None = None) -> NDArray[np.void]:
    """The slot of a row that draws `sample.position` next: an array of no dimension, type `TABLE_ROW`.

    Rows that need the host get one too: `advance` ends them by it. Only its first MAX_ENDS ends are there then, so the
    host must tell the device of the end of such a row (which it does by a delta, as it drew the token itself).
    """
    params = sample.params
    row = np.zeros((), TABLE_ROW)
    row["position"] = sample.position
    greedy = params.temperature < GREEDY_BELOW
    row["temperature"] = 0.0 if greedy else min(params.temperature, _MAX_TEMPERATURE)
    row["top_k"] = min(params.top_k, _MOST)
    row["top_p"] = params.top_p
    row["min_p"] = params.min_p
    row["seed_key"] = np.uint64(_chain(params)).astype(np.int64)
    row["min_tokens"] = min(params.min_tokens, _MOST)
    row["max_tokens"] = min(params.max_tokens, _MOST)
    row["ends"] = -1
    for place, (token_id, finishes) in enumerate(list(_ends(params, vocab_size).items())[:MAX_ENDS]):
        row["ends"][place] = token_id
        row["end_finishes"][place] = finishes
    return row


def _chain(params: SamplingParams) -> int:
    """The part of `noise.noise_key` before the position."""
    key = mix((params.seed + GAMMA) & _MASK)
    return mix((key ^ params.choice) + GAMMA & _MASK)


def _ends(params: SamplingParams, vocab_size: int | None) -> dict[int, bool]:
    """Token ids that are masked before min_tokens -> whether they end the row. As `core/stop.py` says."""
    ends = dict.fromkeys(params.eos_token_ids, not params.ignore_eos)
    ends.update(dict.fromkeys(params.stop_token_ids, True))
    return {t: finishes for t, finishes in ends.items() if t >= 0 and (vocab_size is None or t < vocab_size)}
