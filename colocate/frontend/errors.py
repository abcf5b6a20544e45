"""JSON answers, and errors in OpenAI's shape."""

from __future__ import annotations

import math
from typing import Any

import orjson
from starlette.responses import Response

from colocate.errors import RequestError


def json_response(value: Any, status: int = 200) -> Response:
    return Response(orjson.dumps(value), status_code=status, media_type="application/json")


def error_body(error: RequestError) -> dict[str, Any]:
    return {"message": error.message, "type": error.type, "param": error.param, "code": error.code}


def error_response(error: RequestError, headers: dict[str, str] | None = None) -> Response:
    answer_headers = dict(headers or {})
    if error.retry_after_s is not None:
        answer_headers["retry-after"] = str(max(1, math.ceil(error.retry_after_s)))
    if error.status == 401:
        answer_headers["www-authenticate"] = "Bearer"
    content = orjson.dumps({"error": error_body(error)})
    return Response(content, status_code=error.status, headers=answer_headers, media_type="application/json")
