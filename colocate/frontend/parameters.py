"""From the bytes of a body to validated parameters. Every refusal is a RequestError that names the parameter."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Any, TypeVar

import orjson
from pydantic import BaseModel, ValidationError

from colocate.errors import RequestError
from colocate.frontend.schemas import ChatCompletionRequest, CompletionRequest, GenerationFields
from colocate.messages.sampling import SamplingParams
from colocate.types import TokenId

M = TypeVar("M", bound=BaseModel)

# Parameters of other servers that this one does not have yet, with the values that ask for nothing: those pass.
UNSUPPORTED: Mapping[str, tuple[object, ...]] = {
    "tools": (None, []),
    "tool_choice": (None, "none"),
    "parallel_tool_calls": (None, True, False),
    "functions": (None, []),
    "function_call": (None, "none"),
    "response_format": (None, {"type": "text"}),
    "best_of": (None, 1),
    "suffix": (None, ""),
    "modalities": (None, ["text"]),
    "audio": (None,),
    "prediction": (None,),
    "reasoning_effort": (None, "none"),
    "verbosity": (None,),
    "web_search_options": (None,),
    "use_beam_search": (None, False),
    "length_penalty": (None, 1.0),
    "guided_json": (None,),
    "guided_regex": (None,),
    "guided_choice": (None, []),
    "guided_grammar": (None,),
    "structured_outputs": (None,),
    "prompt_logprobs": (None,),
}


def parse_json(body: bytes) -> dict[str, Any]:
    """A JSON object. NaN, Infinity, text that is not UTF-8 and trailing garbage are refused."""
    if not body:
        raise RequestError("the request has no body; send a JSON object", code="invalid_json")
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise RequestError(f"the body is not valid JSON: {error}", code="invalid_json") from None
    if not isinstance(value, dict):
        raise RequestError("the body must be a JSON object", code="invalid_json")
    return value


def parse_request(body: bytes, model: type[M]) -> M:
    fields = parse_json(body)
    if issubclass(model, GenerationFields):
        _drop_unsupported(fields, model)
    try:
        return model.model_validate(fields)
    except ValidationError as error:
        raise _as_request_error(error) from None


def _drop_unsupported(fields: dict[str, Any], model: type[BaseModel]) -> None:
    for name in [name for name in fields if name in UNSUPPORTED and name not in model.model_fields]:
        value = fields.pop(name)
        if not any(value == neutral and type(value) is type(neutral) for neutral in UNSUPPORTED[name]):
            raise RequestError(f"{name} is not supported by this server", param=name, code="unsupported_parameter")


def _as_request_error(error: ValidationError) -> RequestError:
    """The first complaint that is most specific: pydantic lists one per member of a union."""
    details = error.errors(include_url=False, include_context=False)
    first = max(details, key=lambda detail: (len(_path(detail["loc"])), detail["type"] != "missing"))
    # a refusal at the top level is never hidden behind a deeper one of another field
    top = details[0]
    if top["loc"] and top["loc"][0] != first["loc"][0]:
        first = max((d for d in details if d["loc"][0] == top["loc"][0]), key=lambda d: len(_path(d["loc"])))
    param = _path(first["loc"])
    if first["type"] == "extra_forbidden":
        return RequestError(f"unknown parameter {param}", param=param, code="unknown_parameter")
    if first["type"] == "missing":
        return RequestError(f"{param} is required", param=param, code="missing_required_parameter")
    return RequestError(f"{param}: {first['msg']}", param=param, code="invalid_value")


def _path(location: tuple[int | str, ...]) -> str:
    """`("messages", 0, "content")` -> `messages[0].content`. Labels of union members are left out."""
    path = ""
    for part in location:
        if isinstance(part, int):
            path += f"[{part}]"
        elif part.isidentifier() and part not in _UNION_LABELS:
            path += f".{part}" if path else part
    return path


_UNION_LABELS = frozenset({"str", "int", "float", "bool", "list", "dict", "TextPart"})


def sampling_params(
    request: CompletionRequest | ChatCompletionRequest, max_tokens: int, eos_token_ids: tuple[TokenId, ...]
) -> SamplingParams:
    """For choice 0; the others differ in `choice` alone."""
    logprobs, prompt_logprobs = _logprobs(request)
    return SamplingParams(
        max_tokens=max_tokens,
        seed=secrets.randbits(63) if request.seed is None else request.seed & (2**63 - 1),
        temperature=_default(request.temperature, 1.0),
        top_p=_default(request.top_p, 1.0),
        top_k=max(0, request.top_k or 0),
        min_p=request.min_p or 0.0,
        min_tokens=request.min_tokens or 0,
        repetition_penalty=_default(request.repetition_penalty, 1.0),
        presence_penalty=request.presence_penalty or 0.0,
        frequency_penalty=request.frequency_penalty or 0.0,
        logit_bias={int(token_id): bias for token_id, bias in (request.logit_bias or {}).items()},
        eos_token_ids=eos_token_ids,
        stop_token_ids=tuple(request.stop_token_ids or ()),
        ignore_eos=request.ignore_eos,
        logprobs=logprobs,
        prompt_logprobs=prompt_logprobs,
    )


def _default(value: float | None, default: float) -> float:
    return default if value is None else value


def _logprobs(request: CompletionRequest | ChatCompletionRequest) -> tuple[int | None, int | None]:
    if isinstance(request, ChatCompletionRequest):
        return ((request.top_logprobs or 0) if request.logprobs else None), None
    return request.logprobs, (request.logprobs if request.echo else None)


def stop_strings(stop: str | list[str] | None) -> tuple[str, ...]:
    if stop is None:
        return ()
    return (stop,) if isinstance(stop, str) else tuple(stop)


def check_fields(request: CompletionRequest | ChatCompletionRequest, vocab_size: int) -> None:
    """What one field alone cannot say."""
    if request.stream_options is not None and not request.stream:
        raise RequestError("stream_options needs stream: true", param="stream_options")
    for token_id in request.logit_bias or {}:
        if not (token_id.isascii() and token_id.isdigit() and len(token_id) < 12 and int(token_id) < vocab_size):
            message = f"logit_bias: {token_id!r} is not a token id below {vocab_size}"
            raise RequestError(message, param="logit_bias")
    for index, stop_id in enumerate(request.stop_token_ids or ()):
        check_token_id(stop_id, vocab_size, f"stop_token_ids[{index}]")
    if isinstance(request, ChatCompletionRequest):
        if request.top_logprobs and not request.logprobs:
            raise RequestError("top_logprobs needs logprobs: true", param="top_logprobs")
    elif request.max_tokens == 0 and not request.echo:
        raise RequestError("max_tokens must be at least 1 unless echo is set", param="max_tokens")


def check_token_id(token_id: TokenId, vocab_size: int, param: str) -> None:
    if not 0 <= token_id < vocab_size:
        raise RequestError(f"{param}: token id {token_id} is outside the vocabulary of {vocab_size}", param=param)


def resolve_max_tokens(
    asked: int | None, num_prompt_tokens: int, max_model_len: int, min_tokens: int, prompt_param: str, param: str
) -> int:
    """`asked` None means the rest of the context. Raises RequestError where prompt + output do not fit."""
    room = max_model_len - num_prompt_tokens
    needed = 1 if asked is None else asked  # 0: a prompt that is only scored may fill the context
    if needed > room:
        wanted = f" and {asked} are asked for" if asked is not None else ""
        raise RequestError(
            f"the model's context is {max_model_len} tokens; the prompt has {num_prompt_tokens}{wanted}",
            param=prompt_param if room < min(needed, 1) else param,
            code="context_length_exceeded",
        )
    max_tokens = room if asked is None else asked
    if min_tokens > max_tokens:
        raise RequestError(f"min_tokens is {min_tokens}, above the limit of {max_tokens}", param="min_tokens")
    return max_tokens
