"""Bodies and parameters: what is refused, with which name, and what a request without extras means."""

from __future__ import annotations

import json

import pytest

from colocate.errors import RequestError
from colocate.frontend.parameters import check_fields, parse_request, resolve_max_tokens, sampling_params, stop_strings
from colocate.frontend.schemas import ChatCompletionRequest, CompletionRequest

VOCAB = 258


def completion(**fields: object) -> CompletionRequest:
    return parse_request(json.dumps({"model": "m", "prompt": "hi", **fields}).encode(), CompletionRequest)


def chat(**fields: object) -> ChatCompletionRequest:
    messages = [{"role": "user", "content": "hi"}]
    return parse_request(json.dumps({"model": "m", "messages": messages, **fields}).encode(), ChatCompletionRequest)


def refused_param(call: object, **fields: object) -> str | None:
    with pytest.raises(RequestError) as caught:
        call(**fields)  # type: ignore[operator]
    assert caught.value.status == 400
    return caught.value.param


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[1]", b'"text"', b'{"model": "\xff"}', b'{"temperature": NaN}', b"[" * 5000]
)
def test_a_body_that_is_no_json_object(body: bytes) -> None:
    with pytest.raises(RequestError) as caught:
        parse_request(body, CompletionRequest)
    assert caught.value.status == 400 and caught.value.code == "invalid_json"


@pytest.mark.parametrize(
    "prompt", ["", [], [[]], [""], ["a", 1], [1, "a"], [1.5], [None], {"a": 1}, None, True, [True]]
)
def test_prompts_that_are_refused(prompt: object) -> None:
    param = refused_param(completion, prompt=prompt)
    assert param is not None and param.startswith("prompt")


@pytest.mark.parametrize(
    ("prompt", "parsed"),
    [("a", ["a"]), (["a", "b"], ["a", "b"]), ([1, 2.0], [[1, 2]]), ([[1], [2, 3]], [[1], [2, 3]])],
)
def test_prompts_of_every_form(prompt: object, parsed: object) -> None:
    assert completion(prompt=prompt).prompt == parsed


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -1),
        ("temperature", "0.5"),
        ("top_p", 0),
        ("top_p", 1.5),
        ("min_p", -0.1),
        ("top_k", -2),
        ("n", 0),
        ("n", 1000),
        ("max_tokens", -1),
        ("max_tokens", 1.5),
        ("presence_penalty", 3),
        ("repetition_penalty", 0),
        ("repetition_penalty", 1e-310),
        ("repetition_penalty", 101),
        ("logprobs", 21),
        ("seed", 1 << 70),
        ("stop", ["x"] * 100),
        ("stop", ""),
        ("stream", "yes"),
        ("logit_bias", {"5": 101}),
        ("logit_bias", {str(token_id): 1 for token_id in range(1025)}),
        ("request_id", "a b"),
        ("no_such_parameter", 1),
        ("model", 5),
    ],
)
def test_the_parameter_is_named(name: str, value: object) -> None:
    param = refused_param(completion, **{name: value})
    assert param is not None and param.split("[")[0].split(".")[0] == name


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("tools", [{"type": "function"}]),
        ("tool_choice", "auto"),
        ("functions", [{}]),
        ("response_format", {"type": "json_object"}),
        ("best_of", 3),
        ("suffix", "end"),
        ("modalities", ["text", "audio"]),
        ("audio", {}),
    ],
)
def test_unsupported_parameters_are_refused_by_name(name: str, value: object) -> None:
    assert refused_param(chat, **{name: value}) == name


def test_unsupported_parameters_that_ask_for_nothing_pass() -> None:
    chat(tools=None, tool_choice="none", response_format={"type": "text"}, parallel_tool_calls=True)
    completion(best_of=1, suffix=None)
    assert refused_param(completion, best_of=True) == "best_of"


def test_paths_point_into_messages() -> None:
    assert refused_param(chat, messages=[]) == "messages"
    assert refused_param(chat, messages=[{"role": "user"}, {"role": "x", "content": "a"}]) == "messages[1].role"
    image = [{"type": "image_url", "image_url": {"url": "x"}}]
    param = refused_param(chat, messages=[{"role": "user", "content": image}])
    assert param is not None and param.startswith("messages[0].content")


def test_fields_against_the_model() -> None:
    for fields, param in (
        ({"logit_bias": {"258": 1}}, "logit_bias"),
        ({"logit_bias": {"a": 1}}, "logit_bias"),
        ({"stop_token_ids": [5, 300]}, "stop_token_ids[1]"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
    ):
        with pytest.raises(RequestError) as caught:
            check_fields(completion(**fields), VOCAB)
        assert caught.value.param == param
    check_fields(completion(max_tokens=0, echo=True), VOCAB)
    with pytest.raises(RequestError, match="needs logprobs"):
        check_fields(chat(top_logprobs=2), VOCAB)


def test_defaults_are_openais() -> None:
    params = sampling_params(completion(), 16, (257,))
    assert (params.temperature, params.top_p, params.top_k, params.logprobs) == (1.0, 1.0, 0, None)
    assert completion().max_tokens == 16 and chat().max_tokens is None
    assert sampling_params(completion(seed=-1), 16, ()).seed >= 0
    assert sampling_params(completion(temperature=0, top_k=-1, logit_bias={"7": -100}), 16, ()).logit_bias == {7: -100}
    assert sampling_params(completion(echo=True, logprobs=2), 16, ()).prompt_logprobs == 2
    assert sampling_params(chat(logprobs=True, top_logprobs=3), 16, ()).logprobs == 3
    assert sampling_params(completion(), 1, ()).seed != sampling_params(completion(), 1, ()).seed
    assert stop_strings("a") == ("a",) and stop_strings(None) == () and stop_strings(["a", "b"]) == ("a", "b")


def test_length_of_prompt_and_output() -> None:
    assert resolve_max_tokens(None, 10, 64, 0, "messages", "max_tokens") == 54
    assert resolve_max_tokens(54, 10, 64, 0, "prompt", "max_tokens") == 54
    assert resolve_max_tokens(0, 64, 64, 0, "prompt", "max_tokens") == 0
    cases = ((55, 10, "max_tokens"), (1, 64, "prompt"), (None, 64, "prompt"), (0, 65, "prompt"))
    for asked, num_prompt, param in cases:
        with pytest.raises(RequestError) as caught:
            resolve_max_tokens(asked, num_prompt, 64, 0, "prompt", "max_tokens")
        assert caught.value.param == param and caught.value.code == "context_length_exceeded"
    with pytest.raises(RequestError, match="min_tokens"):
        resolve_max_tokens(4, 10, 64, 5, "prompt", "max_tokens")
