"""The outermost layer of the application: request ids, API and admin keys, and errors no one else has answered."""

from __future__ import annotations

import hmac
import re
import secrets

import structlog
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from colocate.errors import RequestError
from colocate.frontend.errors import error_response

REQUEST_ID_KEY = "colocate.request_id"  # in the ASGI scope
OPEN_PATHS = frozenset({"/", "/health", "/ready", "/metrics", "/version", "/openapi.json"})

CONTROL_PATH = "/control"

_SAFE_ID = re.compile(rb"^[\x21-\x7e]{1,128}$")
_log = structlog.get_logger("colocate.frontend")


class Gate:
    """`x-request-id` is taken from the client where it is printable, else drawn; every answer echoes it.

    Admin keys open the control calls and nothing else; API keys everything else.
    """

    def __init__(self, app: ASGIApp, api_keys: tuple[str, ...], admin_keys: tuple[str, ...]) -> None:
        self._app = app
        self._api_keys = [key.encode() for key in api_keys]
        self._admin_keys = [key.encode() for key in admin_keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        request_id = headers.get(b"x-request-id", b"")
        if not _SAFE_ID.match(request_id):
            request_id = secrets.token_hex(16).encode()
        scope[REQUEST_ID_KEY] = request_id.decode("ascii")
        started = False

        async def send_with_id(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                message["headers"] = [*message["headers"], (b"x-request-id", request_id)]
            await send(message)

        refusal = self._refusal(scope["path"], headers.get(b"authorization", b""))
        if refusal is not None:
            await error_response(refusal)(scope, receive, send_with_id)
            return
        try:
            await self._app(scope, receive, send_with_id)
        except Exception:
            _log.exception("unhandled error", path=scope["path"], request_id=scope[REQUEST_ID_KEY])
            if started:
                raise
            error = RequestError("internal error; the server's log has the details", status=500, type="server_error")
            await error_response(error)(scope, receive, send_with_id)

    def _refusal(self, path: str, header: bytes) -> RequestError | None:
        if path == CONTROL_PATH or path.startswith(CONTROL_PATH + "/"):
            if not self._admin_keys:
                message = "the control calls are off: start the server with --admin-key KEY"
                return RequestError(message, status=403, type="permission_error", code="control_is_off")
            if not _opens(self._admin_keys, header):
                message = "a valid admin key is required: Authorization: Bearer KEY"
                return RequestError(message, status=401, code="invalid_admin_key")
        elif self._api_keys and path not in OPEN_PATHS and not _opens(self._api_keys, header):
            message = "a valid API key is required: Authorization: Bearer KEY"
            return RequestError(message, status=401, code="invalid_api_key")
        return None


def _opens(keys: list[bytes], header: bytes) -> bool:
    scheme, _, key = header.partition(b" ")
    key = key.strip()
    # every key is compared, in constant time each: how long it takes tells nothing
    matches = [hmac.compare_digest(key, known) for known in keys]
    return scheme.lower() == b"bearer" and any(matches)
