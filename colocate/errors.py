"""One error tree, split by who can act.

    ColocateError
    |-- ConfigError        the operator: a flag, a file, a model, this machine. `serve` exits with code 2.
    |-- RequestError       the client: carries an HTTP status, OpenAI's `type`, `param` and `code`.
    |   `-- Overloaded     the client, later: 429 with a retry hint.
    |-- DeviceLost         a memory fault of the GPU: nobody who shares it can go on. The supervisor acts.
    |-- ChannelClosed      a peer is gone or its stream of messages has a gap. The supervisor acts.
    `-- InvariantError     a bug: carries the story of the object that moved illegally.
        `-- FrameTooLarge  a message that no channel carries: whoever made it so large pays for it.

No foreign exception reaches an HTTP client.
"""

from __future__ import annotations


class ColocateError(Exception):
    """Root of every error this package raises on purpose."""


class ConfigError(ColocateError):
    """Something the operator can mend. `where` is the key's path or the file, `remedy` what to do about it."""

    def __init__(self, where: str, problem: str, remedy: str = "") -> None:
        self.where = where
        self.problem = problem
        self.remedy = remedy
        super().__init__(f"{where}: {problem}" + (f" ({remedy})" if remedy else ""))


class RequestError(ColocateError):
    """Something the client can mend; rendered in OpenAI's error shape."""

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        type: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        self.message = message
        self.status = status
        self.type = type
        self.param = param
        self.code = code
        self.retry_after_s = retry_after_s
        super().__init__(message)


class Overloaded(RequestError):
    """The queue is full or the daemon drains; `retry_after_s` comes from the measured drain rate."""

    def __init__(self, message: str, *, retry_after_s: float, status: int = 429) -> None:
        kind = "rate_limit_error" if status == 429 else "service_unavailable_error"
        super().__init__(message, status=status, type=kind, code="overloaded", retry_after_s=retry_after_s)


class ChannelClosed(ColocateError):
    """The peer of a channel is gone, or a sequence number is missing: nothing more can be trusted from it."""


class DeviceLost(ColocateError):
    """The GPU has faulted: this process can do nothing more with it, and neither can another that shares it. It is no
    failure of a batch: loops let it through, the process ends, and the supervisor replaces every worker."""


class MeasuringFailed(ColocateError):
    """A worker was lost or a forward raised while it was being measured: there is no result."""


class InvariantError(ColocateError):
    """An illegal transition or a broken invariant: a bug. `story` is the object's own history, newest last."""

    def __init__(self, message: str, story: tuple[str, ...] = ()) -> None:
        self.story = story
        super().__init__(message + "".join(f"\n  {line}" for line in story))


class FrameTooLarge(InvariantError):
    """A message over the frame limit. Nothing was sent; the channel is as it was."""
