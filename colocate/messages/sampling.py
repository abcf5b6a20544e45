"""What a request asks of the sampler, and what the sampler needs to go on with it anywhere."""

from __future__ import annotations

from msgspec import Struct

from colocate.types import TokenId


class SamplingParams(Struct, frozen=True, omit_defaults=True):
    """Validated sampling parameters of one choice.

    The noise of output position `i` depends on `(seed, choice, i, token id)` alone, so any worker, batch or process
    that continues the request draws the same tokens. The frontend draws a missing seed.
    """

    max_tokens: int
    seed: int = 0  # 0 <= seed < 2**63
    choice: int = 0  # index among `n`
    temperature: float = 1.0  # 0 is greedy
    top_p: float = 1.0
    top_k: int = 0  # 0 is off
    min_p: float = 0.0
    min_tokens: int = 0  # EOS and stop token ids are masked before this many output tokens
    repetition_penalty: float = 1.0  # over prompt and output, as in CTRL (arXiv 1909.05858, section 4.1)
    presence_penalty: float = 0.0  # over output, OpenAI's definition
    frequency_penalty: float = 0.0  # over output, OpenAI's definition
    logit_bias: dict[TokenId, float] = {}
    eos_token_ids: tuple[TokenId, ...] = ()
    stop_token_ids: tuple[TokenId, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None  # how many alternatives beside the sampled token; 0 is the sampled token alone
    prompt_logprobs: int | None = None  # the same for every prompt token (`echo`)


class TokenLogprob(Struct, frozen=True, array_like=True):
    """Natural-log probability of one token and of the most likely alternatives, before temperature and filters."""

    logprob: float
    top: list[tuple[TokenId, float]] = []  # most likely first


class SampleState(Struct, frozen=True, omit_defaults=True):
    """All that a worker needs to sample the next token of a request.

    `position` is the output position about to be drawn. Token lists are sent only where a penalty reads them: the
    prompt where `repetition_penalty != 1`, the output where any penalty is on.
    """

    params: SamplingParams
    position: int
    prompt_token_ids: list[TokenId] = []
    output_token_ids: list[TokenId] = []
