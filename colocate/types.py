"""Identifiers and enumerations that every layer shares. No logic lives here."""

from __future__ import annotations

from enum import StrEnum
from typing import TypeAlias

# A request as the engine sees it: one choice of one HTTP request. Drawn by the frontend, unique for the life of the
# daemon: (frontend incarnation << 40) | counter.
RequestId: TypeAlias = int

# How often the row of a request was (re)created in a worker. `(RequestId, Incarnation)` names a row; a command for an
# unknown row is ignored and counted.
Incarnation: TypeAlias = int

# Index of a KV block in the pool: 0 <= block < num_blocks.
BlockId: TypeAlias = int

TokenId: TypeAlias = int


class Role(StrEnum):
    """The processes of one runtime, as they are named in messages, logs, metrics and `/state`."""

    FRONTEND = "frontend"
    KEEPER = "keeper"
    ENGINE = "engine"
    PREFILL = "prefill"
    DECODE = "decode"
    HYBRID = "hybrid"  # mode `chunked`: one worker that runs both phases in the same forward
    OWNER = "gpu-owner"  # `--single-process`: the workers of both phases as two threads of one process


WORKER_ROLES = (Role.PREFILL, Role.DECODE)


class FinishReason(StrEnum):
    """Why a request ended. `stop` and `length` are OpenAI's; the others never reach a client as a finish reason."""

    STOP = "stop"
    LENGTH = "length"
    ABORT = "abort"
    ERROR = "error"
