"""Who is there: what system, which model, and how it wants to be asked. Everything is found out before the load."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NoReturn

import orjson

from colocate.bench.http import Address, Answer, HttpError, ask, exchange, parse_url, request_bytes, resolve
from colocate.bench.plan import BenchPlan, Endpoint
from colocate.bench.records import TargetFacts
from colocate.bench.stream import StreamSink, message_of
from colocate.errors import ConfigError

PATHS: Mapping[Endpoint, str] = {"completions": "/v1/completions", "chat": "/v1/chat/completions"}
STAGES_HEADER = "x-colocate-stages"
_OWNERS = {
    "colocate": "colocate",
    "vllm": "vllm",
    "sglang": "sglang",
    "llamacpp": "llama.cpp",
    "llama.cpp": "llama.cpp",
}
_RUNNING_COUNT = {"include_usage": True, "continuous_usage_stats": True}
# Body fields by system: an answer of exactly its length, and events that say how many tokens they hold.
_FIELDS: Mapping[str, Mapping[str, object]] = {
    "colocate": {"ignore_eos": True, "return_token_ids": True, "stream_options": {"include_usage": True}},
    "vllm": {"ignore_eos": True, "stream_options": _RUNNING_COUNT},
    "sglang": {"ignore_eos": True, "stream_options": _RUNNING_COUNT},
    "llama.cpp": {"ignore_eos": True, "stream_options": {"include_usage": True}},
}
_UNKNOWN_FIELDS = {"ignore_eos": True, "stream_options": _RUNNING_COUNT}
_LONGEST_SETTING = 2000  # characters: a chat template is no figure
PROBE_IDS = tuple(range(300, 308))
PROBE_TOKENS = 2
PROBE_TIMEOUT_S = 120.0  # a first request may compile kernels or load the model


@dataclass(frozen=True, slots=True)
class Target:
    """A server that has answered one request. `fields` go into every body."""

    address: Address
    headers: Mapping[str, str]
    endpoint: Endpoint
    facts: TargetFacts
    fields: Mapping[str, object]
    takes_ids: bool  # prompts as token ids
    needs_done: bool = True  # its streams end with [DONE]
    dropped: tuple[str, ...] = ()  # fields that it refused
    vocab_size: int | None = None
    slo_classes: frozenset[str] = frozenset()  # that it knows by name
    probe: Mapping[str, object] = field(default_factory=dict)  # what the first request looked like

    @property
    def model(self) -> str:
        return self.facts.model

    @property
    def system(self) -> str:
        return self.facts.system

    def body(self, prompt: Mapping[str, object], max_tokens: int, extra: Mapping[str, object]) -> bytes:
        """A streamed, greedy request. `prompt` is the field that holds it; `extra` is laid over everything."""
        body: dict[str, object] = {
            "model": self.model,
            **prompt,
            "max_tokens": max_tokens,
            "temperature": 0,
            "stream": True,
            **self.fields,
            **extra,
        }
        return orjson.dumps(body)

    def request(self, body: bytes, headers: Mapping[str, str]) -> bytes:
        path = PATHS[self.endpoint]
        return request_bytes(self.address, "POST", path, body, {**self.headers, **headers}, "text/event-stream")


async def find_target(plan: BenchPlan) -> Target:
    """Raises ConfigError: unreachable, wrong key, unknown model, no OpenAI server, or a first request that fails."""
    address = await resolve(parse_url(plan.url))
    headers = {STAGES_HEADER: "1", **plan.headers}
    if plan.api_key is not None:
        headers["Authorization"] = f"Bearer {plan.api_key}"
    offered, server = await _models(address, headers)
    system = plan.system or await _system(address, headers, offered, server)
    model = _chosen(plan, system, offered)
    version, device, settings = await _about(address, headers, system)
    facts = TargetFacts(
        url=address.url,
        system=system,
        model=model,
        version=version,
        command=plan.server_command,
        device=device,
        settings=settings,
    )
    fields = dict(_FIELDS.get(system, _UNKNOWN_FIELDS))
    # Ids of answers cost the server an echo of the prompt's: only where something is made of them.
    if system == "vllm" and (plan.keep_token_ids or any(row.session for row in plan.workload.rows)):
        fields["return_token_ids"] = True
    target = Target(
        address=address,
        headers=headers,
        endpoint=plan.endpoint,
        facts=facts,
        fields=fields,
        takes_ids=plan.endpoint == "completions" and plan.prompts != "text",
        vocab_size=_inside(settings, "model", "vocab_size"),
        slo_classes=frozenset(known["name"] for known in _inside(settings, "slo", "classes") or ()),
    )
    return await _introduce(target, plan)


async def _models(address: Address, headers: Mapping[str, str]) -> tuple[list[dict[str, Any]], str]:
    try:
        answer = await ask(address, "GET", "/v1/models", headers)
    except HttpError as error:
        remedy = "start the server, or check --url; colocate serve prints its address when it is ready"
        raise ConfigError(address.url, f"nobody answers there: {error}", remedy) from None
    _check_key(answer, headers)
    try:
        models = orjson.loads(bytes(answer.content))["data"]
        if answer.status == 200 and all(isinstance(model["id"], str) for model in models):
            return models, answer.headers.get("server", "")
    except (orjson.JSONDecodeError, TypeError, KeyError):
        pass
    if answer.status == 503:
        said = message_of(bytes(answer.content)) or "no more than that"
        raise ConfigError(address.url, f"the server is not ready (503: {said})", "wait until it is, and try again")
    problem = f"GET /v1/models answers {answer.status} and no list of models: no OpenAI-compatible server"
    raise ConfigError(address.url, problem, "name the address of the API, without a path or with /v1")


def _check_key(answer: Answer, headers: Mapping[str, str]) -> None:
    if answer.status in (401, 403):
        said = message_of(bytes(answer.content))
        given = "refuses this key" if "Authorization" in headers else "wants a key"
        raise ConfigError("--api-key", f"the server {given} ({answer.status}: {said})", "give the server's own key")


async def _system(address: Address, headers: Mapping[str, str], offered: list[dict[str, Any]], server: str) -> str:
    for model in offered:
        if (owner := str(model.get("owned_by", "")).lower()) in _OWNERS:
            return _OWNERS[owner]
    if server.lower().startswith("llama.cpp"):
        return "llama.cpp"
    paths = (await _json(address, headers, "/openapi.json")).get("paths") or {}
    return "transformers" if "/load_model" in paths else "unknown"


def _chosen(plan: BenchPlan, system: str, offered: list[dict[str, Any]]) -> str:
    names = [model["id"] for model in offered]
    if plan.model is None:
        if names:
            return str(names[0])
        raise ConfigError("--model", "is missing and the server lists none", "name the model that it serves")
    if plan.model not in names and names and system != "transformers":  # which loads whatever it is asked for
        few = ", ".join(names[:8])
        raise ConfigError("--model", f"the server has no model {plan.model!r}", f"it has: {few}")
    return plan.model


async def _about(address: Address, headers: Mapping[str, str], system: str) -> tuple[str, str, dict[str, Any]]:
    """Version, device, and what it says about its own settings."""
    paths = {"colocate": "/server_info", "sglang": "/get_server_info", "llama.cpp": "/props"}
    settings = await _json(address, headers, paths[system]) if system in paths else {}
    version = settings.get("version") or settings.get("build_info") or ""
    if not version and system in ("vllm", "unknown"):
        version = (await _json(address, headers, "/version")).get("version") or ""
    device = _inside(settings, "device", "name") or ""
    short = {key: value for key, value in settings.items() if len(str(value)) <= _LONGEST_SETTING or key == "config"}
    return str(version), str(device), short


def _inside(settings: Mapping[str, Any], *keys: str) -> Any:
    value: Any = settings
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


async def _json(address: Address, headers: Mapping[str, str], path: str) -> dict[str, Any]:
    """Empty where there is no such thing."""
    try:
        answer = await ask(address, "GET", path, headers)
        value = orjson.loads(bytes(answer.content)) if answer.status == 200 else {}
    except (HttpError, orjson.JSONDecodeError):
        return {}
    return value if isinstance(value, dict) else {}


async def _introduce(target: Target, plan: BenchPlan) -> Target:
    """One short request. Where the server refuses it, with less: prompts as text, then without this and that field."""
    refused = ""
    while True:
        sink = await _try(target, plan)
        if sink.error is None or sink.error_kind == "cut_stream":
            break
        refused = refused or str(sink.error)
        target = _with_less(target, plan, sink) or _complain(target, sink, refused)
    needs_done = sink.is_done
    if sink.error is not None and (needs_done or sink.finish_reason is None):
        _complain(target, sink, str(sink.error))
    probe = {
        "prompt_tokens": sink.prompt_tokens,
        "completion_tokens": sink.completion_tokens,
        "events": len(sink.event_s),
        "token_source": sink.tokens()[1],
    }
    return replace(target, needs_done=needs_done, probe=probe)


async def _try(target: Target, plan: BenchPlan) -> StreamSink:
    sink = StreamSink()
    prompt = probe_prompt(target)
    request = target.request(target.body(prompt, PROBE_TOKENS, plan.extra_body), {})
    try:
        await exchange(target.address, request, sink, min(PROBE_TIMEOUT_S, plan.timeout_s))
        sink.settle()
    except HttpError as error:
        sink.broke(error)
    return sink


def probe_prompt(target: Target) -> dict[str, object]:
    text = "one two three four five six seven eight"
    if target.endpoint == "chat":
        return {"messages": [{"role": "user", "content": text}]}
    if not target.takes_ids:
        return {"prompt": text}
    if target.vocab_size is not None and target.vocab_size <= PROBE_IDS[-1]:
        return {"prompt": [index % target.vocab_size for index in PROBE_IDS]}
    return {"prompt": list(PROBE_IDS)}


def _with_less(target: Target, plan: BenchPlan, sink: StreamSink) -> Target | None:
    """The next thing to try after a refusal; None where nothing is left to leave out."""
    if sink.status not in (400, 422, 500):
        return None
    said = str(sink.error)
    named = [name for name in target.fields if name in said or name.split("_")[0] + "_usage" in said]
    if "continuous_usage_stats" in said:
        named = ["stream_options"]
    if not named and target.takes_ids and plan.prompts == "auto":
        return replace(target, takes_ids=False)
    name = next(iter([*named, *target.fields]), None)
    if name is None:
        return None
    if name == "stream_options" and target.fields[name] == _RUNNING_COUNT:
        return replace(target, fields={**target.fields, name: {"include_usage": True}})
    kept = {key: value for key, value in target.fields.items() if key != name}
    return replace(target, fields=kept, dropped=(*target.dropped, name))


def _complain(target: Target, sink: StreamSink, said: str) -> NoReturn:
    if sink.status in (401, 403):
        raise ConfigError("--api-key", f"the server refuses it: {said}", "give the server's own key")
    if sink.status == 404:
        remedy = "check --model and --endpoint; some servers have only one of completions and chat"
        raise ConfigError(f"{target.address.url}{PATHS[target.endpoint]}", f"is not there: {said}", remedy)
    where = f"{target.address.url}{PATHS[target.endpoint]}"
    remedy = "look at the server's log; try another --endpoint, or what --extra-body adds"
    raise ConfigError(where, f"a first request of {PROBE_TOKENS} tokens fails: {sink.error_kind}: {said}", remedy)
