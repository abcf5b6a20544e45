"""When a request ends by itself: one rule for the engine (first token) and the decode worker (all others)."""

from __future__ import annotations

from colocate.messages.sampling import SamplingParams
from colocate.types import FinishReason, TokenId


def finish_after(params: SamplingParams, position: int, token_id: TokenId) -> FinishReason | None:
    """The reason to stop after `token_id` was drawn at output position `position`, or None to go on.

    EOS and stop token ids count only from the `min_tokens`-th output token on; length always does.
    """
    num_output_tokens = position + 1
    if num_output_tokens >= params.min_tokens:
        if not params.ignore_eos and token_id in params.eos_token_ids:
            return FinishReason.STOP
        if token_id in params.stop_token_ids:
            return FinishReason.STOP
    if num_output_tokens >= params.max_tokens:
        return FinishReason.LENGTH
    return None
