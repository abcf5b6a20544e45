"""The HTTP application: routes, and every error in OpenAI's shape."""

from __future__ import annotations

import time
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from fastapi import FastAPI
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

import colocate
from colocate.config.serve import ServeConfig
from colocate.errors import RequestError
from colocate.frontend.body import read_body
from colocate.frontend.control import ControlCalls
from colocate.frontend.engine_client import EngineClient
from colocate.frontend.errors import error_response, json_response
from colocate.frontend.gate import Gate
from colocate.frontend.generate_calls import GenerateCalls
from colocate.frontend.openapi import MODEL_ID_PARAMETER, Served, describe_api, documented
from colocate.frontend.prompts import PromptReader
from colocate.frontend.schemas import (
    ChatCompletionRequest,
    CompletionRequest,
    DetokenizeRequest,
    PlanPin,
    SloChange,
    TokenizeRequest,
)
from colocate.frontend.state_view import server_info, state_view
from colocate.frontend.status import DaemonStatus
from colocate.messages.spec import RuntimeFacts

# An engine that is well answers within a step; a scrape must not wait for one that is not.
STATE_TIMEOUT_S = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Api:
    """Every handler but the two that generate."""

    config: ServeConfig
    facts: RuntimeFacts
    calls: GenerateCalls
    control: ControlCalls
    reader: PromptReader
    client: EngineClient
    status: DaemonStatus
    registry: CollectorRegistry
    started_s: int

    async def page(self, request: Request) -> Response:
        page = files("colocate.frontend").joinpath("static/index.html").read_bytes()
        return Response(page, media_type="text/html; charset=utf-8")

    async def health(self, request: Request) -> Response:
        """The process lives and its event loop turns."""
        return json_response({"status": "ok"})

    async def ready(self, request: Request) -> Response:
        body = {"ready": self.status.ready, "phase": self.status.phase}
        return json_response(body, 200 if self.status.ready else 503)

    async def version(self, request: Request) -> Response:
        return json_response({"version": colocate.__version__})

    async def models(self, request: Request) -> Response:
        return json_response({"object": "list", "data": [self._model(name) for name in self.calls.model_names]})

    async def model(self, request: Request) -> Response:
        name = request.path_params["model_id"]
        self.calls.check_model(name)
        return json_response(self._model(name))

    def _model(self, name: str) -> dict[str, Any]:
        return {
            "id": name,
            "object": "model",
            "created": self.started_s,
            "owned_by": "colocate",
            "root": self.facts.model_name,
            "max_model_len": self.facts.max_model_len,
        }

    async def metrics(self, request: Request) -> Response:
        await self.client.query_state(STATE_TIMEOUT_S)
        return Response(generate_latest(self.registry), headers={"content-type": CONTENT_TYPE_LATEST})

    async def state(self, request: Request) -> Response:
        state = await self.client.query_state(STATE_TIMEOUT_S) or self.client.state
        if state is None:
            raise RequestError(
                f"the engine has not answered yet; phase: {self.status.phase}",
                status=503,
                type="service_unavailable_error",
                retry_after_s=1.0,
            )
        age_s = time.monotonic() - self.client.state_at_s
        counts = self.calls.measures.slo
        return json_response(state_view(state, age_s, self.status, self.facts, self.calls.slo, counts))

    async def server_info(self, request: Request) -> Response:
        state = await self.client.query_state(STATE_TIMEOUT_S) or self.client.state
        return json_response(server_info(self.status, self.facts, self.config, state, self.calls.slo))

    async def _body(self, request: Request) -> bytes:
        return await read_body(request, self.config.http.max_body_bytes)

    async def tokenize(self, request: Request) -> Response:
        parsed = await self.reader.parse(await self._body(request), TokenizeRequest)
        if parsed.model is not None:
            self.calls.check_model(parsed.model)
        if (parsed.prompt is None) == (parsed.messages is None):
            raise RequestError("give either prompt or messages", param="prompt")
        if parsed.messages is not None:
            extra = parsed.chat_template_kwargs
            token_ids = (await self.reader.chat(parsed.messages, parsed.add_generation_prompt, extra)).token_ids
        elif parsed.prompt:
            [token_ids] = await self.reader.encode([parsed.prompt], ["prompt"], parsed.add_special_tokens)
        else:
            token_ids = []
        answer: dict[str, Any] = {
            "count": len(token_ids),
            "max_model_len": self.facts.max_model_len,
            "tokens": token_ids,
            "token_strs": None,
        }
        if parsed.return_token_strs:
            answer["token_strs"] = [self.reader.tokenizer.token_text(token_id) for token_id in token_ids]
        return json_response(answer)

    async def detokenize(self, request: Request) -> Response:
        parsed = await self.reader.parse(await self._body(request), DetokenizeRequest)
        if parsed.model is not None:
            self.calls.check_model(parsed.model)
        text = await self.reader.decode(parsed.tokens, parsed.skip_special_tokens)
        return json_response({"prompt": text})


def build_app(api: Api) -> FastAPI:
    app = FastAPI(title="colocate", version=colocate.__version__, docs_url=None, redoc_url=None)
    calls = api.calls
    get = [
        ("/", api.page, "A page that chats with the model and shows the plan at work"),
        ("/health", api.health, "Alive"),
        ("/ready", api.ready, "Able to serve; else 503 and the phase"),
        ("/version", api.version, "Version"),
        ("/metrics", api.metrics, "Prometheus metrics"),
        ("/state", api.state, "Plan, queue, KV pool, workers, switches"),
        ("/server_info", api.server_info, "Start-up phases, versions, settings"),
        ("/control/plans", api.control.plans, "Plans, which is in force, and why"),
        ("/v1/models", api.models, "Models served"),
        ("/v1/models/{model_id:path}", api.model, "One model"),
    ]
    for path, handler, summary in get:
        extra = MODEL_ID_PARAMETER if "model_id" in path else None
        app.add_api_route(path, handler, methods=["GET"], summary=summary, response_class=Response, openapi_extra=extra)
    post: list[tuple[str, Any, type[BaseModel], str]] = [
        ("/v1/completions", calls.completions, CompletionRequest, "Continue text"),
        ("/v1/chat/completions", calls.chat_completions, ChatCompletionRequest, "Answer a chat"),
        ("/tokenize", api.tokenize, TokenizeRequest, "Text or a chat as token ids"),
        ("/detokenize", api.detokenize, DetokenizeRequest, "Token ids as text"),
        ("/control/plan", api.control.plan, PlanPin, "Pin a plan, or release it"),
        ("/control/slo", api.control.change_slo, SloChange, "Change targets of SLO classes"),
    ]
    for path, handler, model, summary in post:
        extra = documented(model)
        app.add_api_route(
            path, handler, methods=["POST"], summary=summary, response_class=Response, openapi_extra=extra
        )
    served = Served(
        calls.model_names,
        api.facts.max_model_len,
        tuple(known.name for known in calls.slo.classes),
        keyed=bool(api.config.http.api_key),
    )
    describe_api(app, [entry[2] for entry in post], served)
    app.add_exception_handler(RequestError, _request_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_middleware(Gate, api_keys=api.config.http.api_key, admin_keys=api.config.http.admin_key)
    return app


async def _request_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestError)
    return error_response(error)


async def _http_error(request: Request, error: Exception) -> Response:
    """Routing errors of the framework: 404, 405."""
    assert isinstance(error, HTTPException)
    message = f"{request.method} {request.url.path}: {error.detail}"
    code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code)
    return error_response(
        RequestError(message, status=error.status_code, code=code), dict(error.headers) if error.headers else None
    )
