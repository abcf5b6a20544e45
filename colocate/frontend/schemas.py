"""Request bodies of the HTTP API. Ranges live here; what needs the model (vocabulary, length) is in `parameters.py`.

Unknown fields are refused. Fields whose description says "no effect" are accepted because OpenAI clients send them.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainValidator, WithJsonSchema

from colocate.errors import RequestError
from colocate.frontend.slo import MAX_TARGET_MS, MIN_TARGET_MS


def _whole(value: object) -> object:
    """JSON has one number type: 16.0 is the integer 16."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Int = Annotated[int, BeforeValidator(_whole)]
TokenIdField = Annotated[Int, Field(ge=0, lt=2**31)]
NonEmpty = Annotated[str, Field(min_length=1)]
StopString = Annotated[str, Field(min_length=1, max_length=512)]

MAX_STOP_STRINGS = 16
MAX_LOGPROBS = 20
MAX_LOGIT_BIAS = 1024  # entries; every choice and every batch it is in carries them in an engine message
NO_EFFECT = "Accepted for compatibility, no effect."


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class StreamOptions(_Strict):
    include_usage: bool = Field(False, description="One more chunk at the end: no choices, but `usage`.")
    continuous_usage_stats: bool = Field(
        False, description="With `include_usage`, as vLLM's: every chunk's `usage` counts its choice so far."
    )
    include_obfuscation: bool | None = Field(None, description=NO_EFFECT)


class GenerationFields(_Strict):
    """What both generation calls share."""

    model: NonEmpty = Field(description="A name that /v1/models lists.")
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    n: Int | None = Field(1, ge=1, le=128, description="Choices per prompt.")
    temperature: float | None = Field(1.0, ge=0, le=100, description="Below 1e-5: greedy.")
    top_p: float | None = Field(1.0, gt=0, le=1)
    top_k: Int | None = Field(0, ge=-1, lt=2**31, description="0 or -1: off.")
    min_p: float | None = Field(0.0, ge=0, le=1)
    repetition_penalty: float | None = Field(1.0, ge=0.01, le=100)
    presence_penalty: float | None = Field(0.0, ge=-2, le=2)
    frequency_penalty: float | None = Field(0.0, ge=-2, le=2)
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] | None = Field(
        None, max_length=MAX_LOGIT_BIAS, description="Token id (as a string) to bias."
    )
    seed: Int | None = Field(None, ge=-(2**63), lt=2**63, description="Drawn at random where it is missing.")
    stop: StopString | Annotated[list[StopString], Field(max_length=MAX_STOP_STRINGS)] | None = None
    stop_token_ids: Annotated[list[TokenIdField], Field(max_length=256)] | None = None
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    min_tokens: Int | None = Field(0, ge=0, lt=2**31)
    skip_special_tokens: bool = True
    return_token_ids: bool | None = Field(False, description="Adds `prompt_token_ids` and `token_ids`.")
    priority: Int = Field(0, ge=-(2**31), lt=2**31, description="Passed to the scheduler; lower is sooner.")
    request_id: Annotated[str, Field(pattern=r"^[A-Za-z0-9._:-]{1,128}$")] | None = None
    slo_class: Annotated[str, Field(max_length=64)] | None = Field(
        None, description="A configured SLO class. The header `x-slo-class` says the same."
    )
    cache_salt: Annotated[str, Field(max_length=128)] | None = Field(
        None, description="Cached prefixes are shared only among requests of one salt."
    )
    user: str | None = Field(None, description=NO_EFFECT)
    store: bool | None = Field(None, description=NO_EFFECT)
    metadata: dict[str, str] | None = Field(None, description=NO_EFFECT)
    service_tier: str | None = Field(None, description=NO_EFFECT)
    safety_identifier: str | None = Field(None, description=NO_EFFECT)
    prompt_cache_key: str | None = Field(None, description=NO_EFFECT)


Prompts = list[str] | list[list[int]]

_TOKENS_SCHEMA = {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 2**31 - 1}, "minItems": 1}
_TEXT_SCHEMA = {"type": "string", "minLength": 1}
PROMPT_SCHEMA = {
    "title": "Prompt",
    "description": "Text, token ids, or a list of either.",
    "anyOf": [
        _TEXT_SCHEMA,
        _TOKENS_SCHEMA,
        {"type": "array", "items": _TEXT_SCHEMA, "minItems": 1},
        {"type": "array", "items": _TOKENS_SCHEMA, "minItems": 1},
    ],
}


def parse_prompt(value: object) -> Prompts:
    """Any of the four forms, as a list of prompts. By hand: a union would try every form on every token."""
    if isinstance(value, str):
        value = [value]
    if not isinstance(value, list):
        raise RequestError("prompt: expected text, token ids, or a list of either", param="prompt")
    if not value:
        raise RequestError("prompt: must not be empty", param="prompt")
    if isinstance(value[0], str):
        for index, text in enumerate(value):
            if not isinstance(text, str) or not text:
                raise RequestError(f"prompt[{index}]: expected text that is not empty", param=f"prompt[{index}]")
        return value
    if isinstance(value[0], list):
        return [_parse_tokens(tokens, f"prompt[{index}]") for index, tokens in enumerate(value)]
    return [_parse_tokens(value, "prompt")]


def _parse_tokens(value: object, param: str) -> list[int]:
    if not isinstance(value, list) or not value:
        raise RequestError(f"{param}: expected token ids, at least one", param=param)
    if set(map(type, value)) != {int}:
        for index, token in enumerate(value):
            if type(token) is not int and not (isinstance(token, float) and token.is_integer()):
                raise RequestError(f"{param}[{index}]: expected a token id", param=f"{param}[{index}]")
            value[index] = int(token)
    return value


class CompletionRequest(GenerationFields):
    prompt: Annotated[Prompts, PlainValidator(parse_prompt), WithJsonSchema(PROMPT_SCHEMA)]
    max_tokens: Int | None = Field(16, ge=0, lt=2**31, description="0 only with `echo`.")
    echo: bool | None = Field(False, description="Puts the prompt before the completion; with `logprobs`, scored.")
    logprobs: Int | None = Field(None, ge=0, le=MAX_LOGPROBS)
    add_special_tokens: bool = Field(True, description="Whether tokenizing a text prompt adds BOS and the like.")


class TextPart(_Strict):
    type: Literal["text"]
    text: str


class ChatMessage(_Strict):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[TextPart], Field(min_length=1)] | None = None
    name: str | None = None
    refusal: None = None
    tool_calls: None = None
    function_call: None = None
    audio: None = None
    annotations: None = None


class ChatCompletionRequest(GenerationFields):
    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    max_tokens: Int | None = Field(None, ge=1, lt=2**31, description="Default: the rest of the context.")
    max_completion_tokens: Int | None = Field(None, ge=1, lt=2**31, description="The same; wins over `max_tokens`.")
    logprobs: bool | None = False
    top_logprobs: Int | None = Field(None, ge=0, le=MAX_LOGPROBS, description="Needs `logprobs`.")
    add_generation_prompt: bool = True
    chat_template_kwargs: dict[str, Any] | None = Field(None, description="More variables for the chat template.")


class TokenizeRequest(_Strict):
    model: NonEmpty | None = None
    prompt: str | None = Field(None, description="Either `prompt` or `messages`.")
    messages: Annotated[list[ChatMessage], Field(min_length=1)] | None = None
    add_special_tokens: bool = True
    add_generation_prompt: bool = True
    return_token_strs: bool = False
    chat_template_kwargs: dict[str, Any] | None = None


class PlanPin(_Strict):
    """An order to hold one plan in force."""

    plan: Annotated[str, Field(min_length=1, max_length=64)] | None = Field(
        description="A name that /control/plans lists; null gives the policy its say again."
    )


_TargetMs = Annotated[float, Field(ge=MIN_TARGET_MS, le=MAX_TARGET_MS)]


class SloTargets(_Strict):
    """Targets of one class in milliseconds: what is left out stays as it is, null promises nothing."""

    name: Annotated[str, Field(min_length=1, max_length=64)] = Field(description="A configured class.")
    ttft_ms: _TargetMs | None = None
    tpot_ms: _TargetMs | None = None
    itl_ms: _TargetMs | None = None
    ttft_per_token_ms: _TargetMs | None = None


class SloChange(_Strict):
    """For requests that arrive from now on."""

    classes: Annotated[list[SloTargets], Field(min_length=1, max_length=64)]


class DetokenizeRequest(_Strict):
    model: NonEmpty | None = None
    tokens: list[TokenIdField]
    skip_special_tokens: bool = False
