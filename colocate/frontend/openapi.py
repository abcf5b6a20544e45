"""The OpenAPI document. Handlers parse bodies themselves (limits, NaN, error shape), so schemas are added here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from colocate.frontend.slo import CLASS_HEADER, ITL_HEADER, MAX_TARGET_MS, MIN_TARGET_MS, TPOT_HEADER, TTFT_HEADER
from colocate.frontend.stages import STAGES_HEADER, STAGES_VALUES

_REF = "#/components/schemas/{model}"
_ERROR_REF = {"$ref": "#/components/schemas/Error"}

ERROR_SCHEMA = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"], "description": "Path of the parameter at fault."},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}

_ERRORS = {
    "400": "A parameter is wrong; `param` names it",
    "401": "No valid API key",
    "403": "The control calls are off",
    "404": "No such model or path",
    "405": "Method not allowed",
    "408": "The request did not arrive in time",
    "413": "Body too large",
    "429": "Queue full; see Retry-After",
    "500": "A bug",
    "503": "Not ready, or draining; see Retry-After",
}

# Content types of what succeeds, where it is not JSON.
_SUCCESS_TYPES = {
    "/": ["text/html"],
    "/metrics": ["text/plain"],
    "/v1/completions": ["application/json", "text/event-stream"],
    "/v1/chat/completions": ["application/json", "text/event-stream"],
}
_GENERATION_PATHS = ("/v1/completions", "/v1/chat/completions")


@dataclass(frozen=True, slots=True)
class Served:
    model_names: tuple[str, ...]
    max_model_len: int
    slo_classes: tuple[str, ...]
    keyed: bool


# Starlette's path convertor keeps the framework from finding this parameter by itself.
MODEL_ID_PARAMETER = {
    "parameters": [{"name": "model_id", "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}]
}


def documented(model: type[BaseModel]) -> dict[str, Any]:
    schema = {"$ref": _REF.format(model=model.__name__)}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def describe_api(app: FastAPI, models: list[type[BaseModel]], served: Served) -> None:
    """Makes `app.openapi` answer the whole document; it is built at the first call."""

    def build() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _document(app, models, served)
        return app.openapi_schema

    app.openapi = build  # type: ignore[method-assign]


def _document(app: FastAPI, models: list[type[BaseModel]], served: Served) -> dict[str, Any]:
    document = get_openapi(title=app.title, version=app.version, routes=app.routes)
    _, definitions = models_json_schema([(model, "validation") for model in models], ref_template=_REF)
    schemas = document.setdefault("components", {}).setdefault("schemas", {})
    schemas.update(definitions["$defs"])
    schemas["Error"] = ERROR_SCHEMA
    for model in (model for model in models if "model" in model.model_fields):
        _say_what_is_served(schemas[model.__name__], served)
    _name_classes(schemas["SloTargets"]["properties"]["name"], served)
    for path, operations in document["paths"].items():
        for operation in operations.values():
            operation["responses"] = _responses(path)
            if path in _GENERATION_PATHS:
                operation.setdefault("parameters", []).extend(_headers(served))
            if path.startswith("/control/"):
                operation["security"] = [{"admin": []}]
    schemes = {"admin": {"type": "http", "scheme": "bearer", "description": "A key given as --admin-key."}}
    if served.keyed:
        schemes["bearer"] = {"type": "http", "scheme": "bearer", "description": "A key given as --api-key."}
        document["security"] = [{"bearer": []}]
    document["components"]["securitySchemes"] = schemes
    return document


def _headers(served: Served) -> list[dict[str, Any]]:
    target = {"type": "number", "minimum": MIN_TARGET_MS, "maximum": MAX_TARGET_MS}
    headers: list[tuple[str, dict[str, Any], str]] = [
        (TTFT_HEADER, target, "This request's own target for the first token."),
        (TPOT_HEADER, target, "This request's own target for the mean time per further token."),
        (ITL_HEADER, target, "This request's own target for the 99th percentile of its gaps between tokens."),
    ]
    schema: dict[str, Any] = {"type": "string", "enum": list(STAGES_VALUES)}
    headers.append((STAGES_HEADER, schema, "1: the answer tells in `stages` where the request spent its time."))
    if served.slo_classes:
        schema = {"type": "string", "enum": list(served.slo_classes)}
        headers.append((CLASS_HEADER, schema, "The request's SLO class."))
    return [
        {"name": name, "in": "header", "required": False, "schema": schema, "description": text}
        for name, schema, text in headers
    ]


def _name_classes(schema: dict[str, Any], served: Served) -> None:
    if served.slo_classes:
        schema["enum"] = list(served.slo_classes)


def _say_what_is_served(schema: dict[str, Any], served: Served) -> None:
    """Names and limits that are known only now."""
    properties = schema["properties"]
    names: dict[str, Any] = {"type": "string", "enum": list(served.model_names)}
    properties["model"] = names if "model" in schema.get("required", ()) else {"anyOf": [names, {"type": "null"}]}
    if "slo_class" in properties:
        classes = {"type": "string", "enum": list(served.slo_classes)}
        properties["slo_class"]["anyOf"] = [*([classes] if served.slo_classes else []), {"type": "null"}]
    for field in ("max_tokens", "max_completion_tokens", "min_tokens"):
        if field in properties:
            properties[field]["anyOf"][0]["maximum"] = served.max_model_len
            properties[field]["anyOf"][0].pop("exclusiveMaximum", None)
    if "logit_bias" in properties:
        properties["logit_bias"]["anyOf"][0]["propertyNames"] = {"pattern": "^[0-9]{1,11}$"}


def _responses(path: str) -> dict[str, Any]:
    success: dict[str, Any] = {kind: {"schema": {}} for kind in _SUCCESS_TYPES.get(path, ["application/json"])}
    responses: dict[str, Any] = {"200": {"description": "Success", "content": success}}
    for status, description in _ERRORS.items():
        responses[status] = {"description": description, "content": {"application/json": {"schema": _ERROR_REF}}}
    if path == "/ready":
        responses["503"] = {"description": "Not ready", "content": {"application/json": {"schema": {}}}}
    return responses
