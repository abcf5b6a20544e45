"""Both generation calls as clients use them: the official `openai` client against a frontend on a loopback port."""

from __future__ import annotations

import json
from collections.abc import Iterator

import httpx
import openai
import pytest

from tests.byte_tokenizer import BOS, EOS, write_model_dir
from tests.frontend_harness import MODEL, RunningFrontend, start_frontend, wait_until
from tests.limits import LIMIT_S
from tests.scripted_engine import LOGPROB, Script, fixed_text

USER = [{"role": "user", "content": "hi"}]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningFrontend]:
    frontend = start_frontend(write_model_dir(tmp_path_factory.mktemp("model")))
    yield frontend
    frontend.stop()


@pytest.fixture
def frontend(shared: RunningFrontend) -> RunningFrontend:
    shared.engine.script = Script()
    shared.engine.submits.clear()
    shared.engine.aborted.clear()
    return shared


@pytest.fixture
def client(frontend: RunningFrontend) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{frontend.url}/v1", api_key="none", max_retries=0) as made:
        yield made


def post(frontend: RunningFrontend, path: str, **body: object) -> httpx.Response:
    return httpx.post(f"{frontend.url}{path}", json={"model": MODEL, **body}, timeout=LIMIT_S)


def complete(frontend: RunningFrontend, **body: object) -> dict[str, object]:
    response = post(frontend, "/v1/completions", **body)
    assert response.status_code == 200, response.text
    answer: dict[str, object] = response.json()
    return answer


def events(response: httpx.Response) -> list[dict[str, object]]:
    lines = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line.startswith("data: ")]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def usage_of(num_prompt_tokens: int, num_output_tokens: int, num_cached_tokens: int = 0) -> dict[str, object]:
    return {
        "prompt_tokens": num_prompt_tokens,
        "completion_tokens": num_output_tokens,
        "total_tokens": num_prompt_tokens + num_output_tokens,
        "prompt_tokens_details": {"cached_tokens": num_cached_tokens},
    }


class TestCachedTokens:
    """They come with the first token, long before the usage is rendered."""

    @pytest.mark.parametrize("stream", [False, True])
    @pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
    def test_in_both_calls_streamed_and_whole(self, frontend: RunningFrontend, path: str, stream: bool) -> None:
        frontend.script.num_cached_tokens = 2
        asks = {"prompt": [1, 2, 3]} if path == "/v1/completions" else {"messages": USER}
        extra = {"stream": True, "stream_options": {"include_usage": True}} if stream else {}
        response = post(frontend, path, max_tokens=4, **asks, **extra)
        usage = events(response)[-1]["usage"] if stream else response.json()["usage"]
        assert usage["prompt_tokens_details"] == {"cached_tokens": 2}  # type: ignore[index]

    def test_each_prompt_counts_once(self, frontend: RunningFrontend) -> None:
        frontend.script.num_cached_tokens = 2
        answer = complete(frontend, prompt=[[1, 2, 3], [1]], n=3, max_tokens=2)
        assert answer["usage"] == usage_of(4, 12, num_cached_tokens=2 + 1)

    def test_the_official_client_reads_them(self, frontend: RunningFrontend, client: openai.OpenAI) -> None:
        frontend.script.num_cached_tokens = 3
        answer = client.completions.create(model=MODEL, prompt="hello", max_tokens=2)
        assert answer.usage is not None and answer.usage.prompt_tokens_details is not None
        assert answer.usage.prompt_tokens_details.cached_tokens == 3


class TestCompletions:
    def test_plain(self, client: openai.OpenAI) -> None:
        answer = client.completions.create(model=MODEL, prompt="hello", max_tokens=5)
        assert answer.choices[0].text == "ghijk" and answer.choices[0].finish_reason == "length"
        assert answer.usage is not None
        assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (6, 5, 11)
        assert answer.object == "text_completion" and answer.id.startswith("cmpl-")

    def test_sixteen_tokens_by_default(self, frontend: RunningFrontend) -> None:
        assert complete(frontend, prompt="a")["usage"]["completion_tokens"] == 16  # type: ignore[index]

    def test_stream_equals_plain(self, frontend: RunningFrontend, client: openai.OpenAI) -> None:
        frontend.script.hold_after = 8
        stream = client.completions.create(model=MODEL, prompt=[1, 2, 3], max_tokens=20, stream=True)
        chunks = []
        while sum(len(chunk.choices[0].text) for chunk in chunks) < 8:  # what there is comes before the rest exists
            chunks.append(next(stream))
        frontend.engine.release()
        chunks += list(stream)
        assert "".join(chunk.choices[0].text for chunk in chunks) == "defghijklmnopqrstuvw"
        assert [chunk.choices[0].finish_reason for chunk in chunks][-1] == "length"
        assert all(chunk.choices[0].finish_reason is None for chunk in chunks[:-1])

    @pytest.mark.parametrize("stream", [False, True])
    def test_batches_of_prompts_times_n(self, frontend: RunningFrontend, stream: bool) -> None:
        response = post(frontend, "/v1/completions", prompt=[[1], [1, 2]], n=2, max_tokens=3, stream=stream)
        texts = {0: "", 1: "", 2: "", 3: ""}
        bodies = events(response) if stream else [response.json()]
        for body in bodies:
            for choice in body["choices"]:
                texts[choice["index"]] += choice["text"]
        assert texts == {0: "bcd", 1: "bcd", 2: "cde", 3: "cde"}
        assert sorted(submit.params.choice for submit in frontend.engine.submits) == [0, 0, 1, 1]
        if not stream:
            assert response.json()["usage"] == usage_of(3, 12)

    def test_usage_chunk_comes_last_and_alone(self, frontend: RunningFrontend) -> None:
        options = {"include_usage": True}
        response = post(frontend, "/v1/completions", prompt="hi", max_tokens=4, stream=True, stream_options=options)
        *chunks, usage = events(response)
        assert usage["choices"] == [] and usage["usage"] == usage_of(3, 4)
        assert all(chunk["usage"] is None for chunk in chunks)

    def test_running_usage_counts_each_choice_so_far(self, frontend: RunningFrontend) -> None:
        frontend.script.token_gap_s = 0.001
        options = {"include_usage": True, "continuous_usage_stats": True}
        fields = {"max_tokens": 5, "n": 2, "stream": True, "stream_options": options, "return_token_ids": True}
        for path, prompt in (("/v1/completions", {"prompt": "hi"}), ("/v1/chat/completions", {"messages": USER})):
            *chunks, last = events(post(frontend, path, **prompt, **fields))
            counted = [0, 0]
            for chunk in chunks:
                choice = chunk["choices"][0]
                counted[choice["index"]] += len(choice.get("token_ids") or ())
                told = chunk["usage"]
                assert told["completion_tokens"] == counted[choice["index"]]
                assert told["total_tokens"] - told["completion_tokens"] == last["usage"]["prompt_tokens"]
            assert counted == [5, 5] and last["usage"]["completion_tokens"] == 10

    def test_running_usage_needs_usage(self, frontend: RunningFrontend) -> None:
        options = {"continuous_usage_stats": True}
        chunks = events(post(frontend, "/v1/completions", prompt="hi", stream=True, stream_options=options))
        assert not any("usage" in chunk for chunk in chunks)

    def test_characters_of_several_tokens_are_whole(self, frontend: RunningFrontend) -> None:
        text = "🙂 日本 é!"
        frontend.script.token = fixed_text(text)
        frontend.script.token_gap_s = 0.001
        response = post(frontend, "/v1/completions", prompt="hi", max_tokens=100, stream=True)
        pieces = [chunk["choices"][0]["text"] for chunk in events(response)]  # type: ignore[index]
        assert "".join(pieces) == text and not any("\ufffd" in piece for piece in pieces)
        assert events(response)[-1]["choices"][0]["finish_reason"] == "stop"  # type: ignore[index]

    def test_eos_is_counted_but_not_shown(self, frontend: RunningFrontend) -> None:
        frontend.script.token = fixed_text("ab")
        answer = complete(frontend, prompt="x", max_tokens=9, return_token_ids=True)
        choice = answer["choices"][0]  # type: ignore[index]
        assert choice["text"] == "ab" and choice["finish_reason"] == "stop" and choice["stop_reason"] is None
        assert choice["token_ids"] == [97, 98, EOS] and choice["prompt_token_ids"] == [BOS, ord("x")]
        assert answer["usage"]["completion_tokens"] == 3  # type: ignore[index]

    def test_special_tokens_shown_on_demand(self, frontend: RunningFrontend) -> None:
        frontend.script.token = fixed_text("ab")
        answer = complete(frontend, prompt="x", max_tokens=4, ignore_eos=True, skip_special_tokens=False)
        assert answer["choices"][0]["text"] == "ab</s></s>"  # type: ignore[index]

    @pytest.mark.parametrize("stream", [False, True])
    @pytest.mark.parametrize("tokens_per_item", [1, 3, 50])
    def test_stop_string(self, frontend: RunningFrontend, stream: bool, tokens_per_item: int) -> None:
        frontend.script.token = fixed_text("one two three four " * 20)
        frontend.script.tokens_per_item = tokens_per_item
        frontend.script.token_gap_s = 0.002
        for include, expected in ((False, "one two"), (True, "one two thr")):
            frontend.engine.aborted.clear()
            response = post(
                frontend,
                "/v1/completions",
                prompt="x",
                max_tokens=300,
                stop=["never", " thr"],
                include_stop_str_in_output=include,
                stream=stream,
            )
            bodies = events(response) if stream else [response.json()]
            assert "".join(body["choices"][0]["text"] for body in bodies) == expected
            assert bodies[-1]["choices"][0]["finish_reason"] == "stop"
            wait_until(lambda: len(frontend.engine.aborted) == 1)
            assert frontend.engine.num_running == 0

    def test_text_held_for_a_stop_string_is_sent_at_the_end(self, frontend: RunningFrontend) -> None:
        frontend.script.token = fixed_text("ab##")
        answer = complete(frontend, prompt="x", stop="##!")
        assert answer["choices"][0]["text"] == "ab##"  # type: ignore[index]

    def test_stop_token_id_is_reported_and_hidden(self, frontend: RunningFrontend) -> None:
        frontend.script.token = fixed_text("abcdef")
        choice = complete(frontend, prompt="x", stop_token_ids=[ord("d")])["choices"][0]  # type: ignore[index]
        assert choice["text"] == "abc" and choice["stop_reason"] == ord("d")

    def test_parameters_reach_the_engine(self, frontend: RunningFrontend) -> None:
        complete(
            frontend, prompt=[5], max_tokens=7, temperature=0.5, top_p=0.9, top_k=3, min_p=0.1, seed=11, min_tokens=2,
            repetition_penalty=1.1, presence_penalty=0.2, frequency_penalty=0.3, logit_bias={"5": -1}, ignore_eos=True,
            stop_token_ids=[9], priority=4, user="me",
        )  # fmt: skip
        submit = frontend.engine.submits[-1]
        params = submit.params
        assert (params.max_tokens, params.temperature, params.top_p, params.top_k, params.min_p) == (
            7,
            0.5,
            0.9,
            3,
            0.1,
        )
        assert (params.seed, params.min_tokens, params.ignore_eos, params.stop_token_ids) == (11, 2, True, (9,))
        assert (params.repetition_penalty, params.presence_penalty, params.frequency_penalty) == (1.1, 0.2, 0.3)
        assert params.logit_bias == {5: -1.0} and params.eos_token_ids == (EOS,) and submit.priority == 4
        assert submit.request_id >> 40 == 1


class TestLogprobs:
    def test_completion_shape(self, client: openai.OpenAI) -> None:
        answer = client.completions.create(model=MODEL, prompt=[1], max_tokens=3, logprobs=2)
        logprobs = answer.choices[0].logprobs
        assert logprobs is not None
        assert logprobs.tokens == ["b", "c", "d"] and logprobs.token_logprobs == [LOGPROB] * 3
        assert logprobs.top_logprobs == [{"b": -0.5, "c": -1.5}, {"c": -0.5, "d": -1.5}, {"d": -0.5, "e": -1.5}]
        assert logprobs.text_offset == [0, 1, 2]

    @pytest.mark.parametrize("stream", [False, True])
    def test_echo_scores_the_prompt(self, frontend: RunningFrontend, stream: bool) -> None:
        response = post(frontend, "/v1/completions", prompt="hey", max_tokens=2, echo=True, logprobs=1, stream=stream)
        bodies = events(response) if stream else [response.json()]
        choices = [body["choices"][0] for body in bodies]  # type: ignore[index]
        assert "".join(choice["text"] for choice in choices) == "heyef"
        joined = {
            key: [entry for choice in choices for entry in choice["logprobs"][key]]
            for key in ("tokens", "token_logprobs", "top_logprobs", "text_offset")
        }
        assert joined["tokens"] == ["<s>", "h", "e", "y", "e", "f"]
        assert joined["token_logprobs"] == [None, *[LOGPROB] * 5]
        assert joined["top_logprobs"][:2] == [None, {"h": LOGPROB}]
        assert joined["text_offset"] == [0, 0, 1, 2, 3, 4]  # BOS is not in the text

    def test_scoring_alone_generates_nothing(self, frontend: RunningFrontend) -> None:
        answer = complete(frontend, prompt=[104, 101], max_tokens=0, echo=True, logprobs=0)
        choice = answer["choices"][0]  # type: ignore[index]
        assert choice["text"] == "he" and choice["logprobs"]["token_logprobs"] == [None, LOGPROB]
        assert choice["finish_reason"] == "length"
        assert answer["usage"]["completion_tokens"] == 0  # type: ignore[index]
        assert frontend.engine.submits[0].params.max_tokens == 0

    @pytest.mark.parametrize("stream", [False, True])
    def test_a_prompt_that_fills_the_context_is_scored(self, frontend: RunningFrontend, stream: bool) -> None:
        frontend.script.token = fixed_text("")  # EOS would be next
        prompt = [104] * 512
        fields = {"prompt": prompt, "max_tokens": 0, "echo": True, "logprobs": 1, "stream": stream}
        response = post(frontend, "/v1/completions", **fields)
        choice = (events(response)[-1] if stream else response.json())["choices"][0]  # type: ignore[index]
        assert choice["finish_reason"] == "length" and choice["text"] == "h" * 512
        assert len(choice["logprobs"]["token_logprobs"]) == 512
        response = post(frontend, "/v1/completions", prompt=[*prompt, 1], max_tokens=0, echo=True)
        assert response.status_code == 400 and response.json()["error"]["param"] == "prompt"

    @pytest.mark.parametrize("stream", [False, True])
    def test_chat_shape(self, frontend: RunningFrontend, stream: bool) -> None:
        frontend.script.token = fixed_text("é")
        response = post(
            frontend, "/v1/chat/completions", messages=USER, logprobs=True, top_logprobs=1, max_tokens=2, stream=stream
        )
        bodies = events(response) if stream else [response.json()]
        entries = [
            entry
            for body in bodies
            if body["choices"][0]["logprobs"]  # type: ignore[index]
            for entry in body["choices"][0]["logprobs"]["content"]  # type: ignore[index]
        ]
        assert [entry["bytes"] for entry in entries] == [[0xC3], [0xA9]]
        assert entries[0]["logprob"] == LOGPROB and entries[0]["top_logprobs"][0]["bytes"] == [0xC3]


class TestChat:
    def test_plain(self, frontend: RunningFrontend, client: openai.OpenAI) -> None:
        frontend.script.token = fixed_text("Hello.")
        answer = client.chat.completions.create(model=MODEL, messages=USER)  # type: ignore[arg-type]
        assert answer.choices[0].message.content == "Hello." and answer.choices[0].message.role == "assistant"
        assert answer.choices[0].finish_reason == "stop" and answer.object == "chat.completion"
        submit = frontend.engine.submits[-1]
        assert submit.prompt_token_ids == [BOS, *b"[user]hi\n[assistant]"]  # the template's BOS, and no other
        assert submit.params.max_tokens == 512 - len(submit.prompt_token_ids)

    def test_stream_begins_with_the_role(self, frontend: RunningFrontend, client: openai.OpenAI) -> None:
        frontend.script.token = fixed_text("Hello.")
        stream = client.chat.completions.create(
            model=MODEL,
            messages=USER,  # type: ignore[arg-type]
            stream=True,
            n=2,
            stream_options={"include_usage": True},
        )
        first, second, *rest, last = list(stream)
        for index, chunk in enumerate((first, second)):
            assert chunk.choices[0].index == index and chunk.choices[0].delta.role == "assistant"
        texts = ["", ""]
        for chunk in rest:
            texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
        assert texts == ["Hello.", "Hello."]
        assert last.usage is not None and last.usage.completion_tokens == 14

    async def test_async_client(self, frontend: RunningFrontend) -> None:
        async with openai.AsyncOpenAI(base_url=f"{frontend.url}/v1", api_key="none") as client:
            stream = await client.chat.completions.create(
                model=MODEL,
                messages=USER,  # type: ignore[arg-type]
                max_completion_tokens=6,
                stream=True,
            )
            text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
            plain = await client.chat.completions.create(model=MODEL, messages=USER, max_tokens=6)  # type: ignore[arg-type]
        assert text == plain.choices[0].message.content and len(text) == 6

    def test_content_parts_and_an_answer_given_back(self, frontend: RunningFrontend, client: openai.OpenAI) -> None:
        first = client.chat.completions.create(model=MODEL, messages=USER, max_tokens=2)  # type: ignore[arg-type]
        parts = {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}
        messages = [{"role": "developer", "content": "be"}, *USER, first.choices[0].message, parts]
        client.chat.completions.create(model=MODEL, messages=messages, max_tokens=1)  # type: ignore[arg-type]
        prompt = bytes(frontend.engine.submits[-1].prompt_token_ids[1:]).decode()
        assert prompt == f"[system]be\n[user]hi\n[assistant]{first.choices[0].message.content}\n[user]a\nb\n[assistant]"

    def test_token_ids_on_demand(self, frontend: RunningFrontend) -> None:
        response = post(
            frontend, "/v1/chat/completions", messages=USER, max_tokens=3, return_token_ids=True, stream=True
        )
        chunks = events(response)
        assert chunks[0]["prompt_token_ids"] == frontend.engine.submits[-1].prompt_token_ids
        token_ids = [token for chunk in chunks[1:] for token in chunk["choices"][0]["token_ids"]]  # type: ignore[index]
        assert len(token_ids) == 3


def test_request_ids(frontend: RunningFrontend) -> None:
    response = httpx.post(
        f"{frontend.url}/v1/completions",
        json={"model": MODEL, "prompt": "x", "max_tokens": 1},
        headers={"x-request-id": "mine-1"},
        timeout=LIMIT_S,
    )
    assert response.headers["x-request-id"] == "mine-1" and response.json()["id"] == "cmpl-mine-1"
    named = complete(frontend, prompt="x", max_tokens=1, request_id="body-2")
    assert named["id"] == "cmpl-body-2"
    assert len(httpx.get(f"{frontend.url}/health", timeout=LIMIT_S).headers["x-request-id"]) == 32


def test_tokenize_and_back(frontend: RunningFrontend) -> None:
    answer = post(frontend, "/tokenize", prompt="hé", return_token_strs=True).json()
    assert answer["tokens"] == [BOS, *"hé".encode()] and answer["count"] == 4 and answer["max_model_len"] == 512
    assert answer["token_strs"][:2] == ["<s>", "h"]
    assert post(frontend, "/tokenize", messages=USER).json()["tokens"] == [BOS, *b"[user]hi\n[assistant]"]
    back = post(frontend, "/detokenize", tokens=answer["tokens"][1:]).json()
    assert back == {"prompt": "hé"}
