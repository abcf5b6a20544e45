"""Structured logs of the frontend: one line per event on standard error, for people or as JSON."""

from __future__ import annotations

import logging
import sys
from typing import Any

import orjson
import structlog

from colocate.config.serve import TelemetrySection


def _json(event: Any, **_: Any) -> str:
    return orjson.dumps(event, default=str).decode()


def configure_logs(telemetry: TelemetrySection) -> None:
    """`auto` is for people on a terminal and JSON elsewhere. Sets the process's logging; call once, at start."""
    stream = sys.__stderr__
    people = telemetry.log_format == "console" or (telemetry.log_format == "auto" and bool(stream and stream.isatty()))
    renderer: structlog.typing.Processor = (
        structlog.dev.ConsoleRenderer() if people else structlog.processors.JSONRenderer(serializer=_json)
    )
    processors: list[structlog.typing.Processor] = [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    if not people:
        processors.append(structlog.processors.format_exc_info)
    structlog.configure(
        processors=[*processors, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(
            logging.getLevelNamesMapping()[telemetry.log_level.upper()]
        ),
        logger_factory=structlog.PrintLoggerFactory(stream),
        cache_logger_on_first_use=True,
    )
