"""Reads a request body, no further than its limit."""

from __future__ import annotations

from starlette.requests import ClientDisconnect, Request

from colocate.errors import RequestError


async def read_body(request: Request, max_bytes: int) -> bytes:
    """Raises RequestError 413 as soon as the limit is passed, by the announced length or by what arrived."""
    announced = request.headers.get("content-length", "")
    if announced.isdigit() and int(announced) > max_bytes:
        raise _too_large(max_bytes)
    parts: list[bytes] = []
    size = 0
    try:
        async for part in request.stream():
            size += len(part)
            if size > max_bytes:
                raise _too_large(max_bytes)
            parts.append(part)
    except ClientDisconnect:
        raise RequestError("the client went away while sending the body", status=400) from None
    return b"".join(parts)


def _too_large(max_bytes: int) -> RequestError:
    return RequestError(f"the body is larger than {max_bytes} bytes", status=413, code="body_too_large")
