"""The listening TCP socket: bound before anything else starts, kept by the supervisor while frontends come and go."""

from __future__ import annotations

import errno
import os
import socket

from colocate.errors import ConfigError

# Connections the kernel completes for us while a frontend restarts.
_BACKLOG = 1024


def bind_listener(host: str, port: int) -> socket.socket:
    """A listening socket at the first address of `host`. Port 0 takes a free one. Raises ConfigError."""
    try:
        infos = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except socket.gaierror as error:
        raise ConfigError(
            "host", f"{host!r} does not resolve: {error.strerror}", "give an address such as 127.0.0.1"
        ) from None
    family, kind, proto, _, address = infos[0]
    listener = socket.socket(family, kind, proto)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise _refusal(host, port, error) from None
    return listener


def _refusal(host: str, port: int, error: OSError) -> ConfigError:
    if error.errno == errno.EADDRINUSE:
        return ConfigError("port", f"{host}:{port} is in use", "stop what listens there, or choose another --port")
    if error.errno == errno.EACCES:
        return ConfigError("port", f"no permission to listen on {host}:{port}", "choose a --port of 1024 or above")
    if error.errno == errno.EADDRNOTAVAIL:
        return ConfigError("host", f"{host} is not an address of this machine", "use 127.0.0.1 or 0.0.0.0")
    problem = f"cannot listen on {host}:{port}: {os.strerror(error.errno or 0)}"
    return ConfigError("port", problem, "choose another --host or --port")


def url_of(listener: socket.socket) -> str:
    """Where a browser on this machine finds the listener."""
    host, port = listener.getsockname()[:2]
    if host == "0.0.0.0":
        host = "127.0.0.1"
    elif host == "::":
        host = "::1"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
