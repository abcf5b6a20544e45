"""The settings as data: every key of `ServeConfig` with its section, type, default and limits.

Flags, environment variables and YAML keys are all made from this list, so that a name means one thing everywhere:
`max_num_seqs` in the source is `--max-num-seqs`, `COLOCATE_MAX_NUM_SEQS` and `max_num_seqs:` (or `max-num-seqs:`).
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Iterator
from dataclasses import MISSING, dataclass
from typing import Any, Literal

from colocate.config.serve import ServeConfig
from colocate.config.sizes import format_size

# Inclusive limits; None is open. A value outside is refused wherever it comes from.
LIMITS: dict[str, tuple[float | None, float | None]] = {
    "max_model_len": (2, None),
    "seed": (0, 2**63 - 1),
    "units": (1, 4096),
    "kv_memory": (1, None),
    "gpu": (0, 255),
    "gpu_memory_utilization": (0.05, 1),
    "graph_memory": (0, None),
    "block_size": (1, 1024),
    "max_num_seqs": (1, 65536),
    "max_num_batched_tokens": (1, None),
    "max_queue": (0, None),
    "max_slice_ms": (0.1, None),
    "port": (0, 65535),
    "max_body_bytes": (1024, None),
    "header_timeout_s": (0.01, None),
    "stream_buffer_bytes": (1024, None),
    "slow_client_timeout_s": (0.01, None),
    "keepalive_s": (0.01, None),
    "drain_timeout_s": (0, None),
    "start_timeout_s": (0.1, None),
    "heartbeat_timeout_s": (0.2, None),
    "progress_factor": (1, None),
    "progress_floor_s": (0.05, None),
    "max_restarts": (0, None),
    "restart_window_s": (0.1, None),
}


@dataclass(frozen=True, slots=True)
class Setting:
    """One key. `kind` is the plain type; `choices` the legal words of a Literal, for a list those of each item;
    `optional` allows null."""

    name: str
    section: str
    kind: type
    default: Any
    choices: tuple[str, ...] = ()
    optional: bool = False
    is_list: bool = False

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")

    @property
    def env(self) -> str:
        return "COLOCATE_" + self.name.upper()

    @property
    def is_size(self) -> bool:
        return self.kind is int and (self.name.endswith("_bytes") or self.name in ("kv_memory", "graph_memory"))

    @property
    def expected(self) -> str:
        """What a value must be, for error messages."""
        if self.choices:
            return "one of " + ", ".join(self.choices) + (", or none" if self.is_list else "")
        if self.is_list:
            return "a string or a list of strings"
        if self.is_size:
            return "a size such as 512MiB or 2GiB"
        return {bool: "true or false", int: "a whole number", float: "a number", str: "a string"}[self.kind]

    @property
    def default_text(self) -> str:
        """The default as `--help` shows it; empty where there is nothing to show."""
        if self.default is None or self.default == ():
            return ""
        if self.is_size:
            return format_size(self.default)
        if self.is_list:
            return ", ".join(self.default)
        return str(self.default).lower() if self.kind is bool else str(self.default)


def _setting(section: str, field: dataclasses.Field[Any], hint: Any) -> Setting:
    optional = False
    if isinstance(hint, types.UnionType):
        (hint,) = (part for part in typing.get_args(hint) if part is not type(None))
        optional = True
    choices: tuple[str, ...] = ()
    is_list = typing.get_origin(hint) is tuple
    if is_list:
        hint = typing.get_args(hint)[0]
    if typing.get_origin(hint) is Literal:
        choices = tuple(typing.get_args(hint))
    kind = str if is_list or choices else hint
    default = field.default if field.default is not MISSING else None
    return Setting(field.name, section, kind, default, choices, optional, is_list)


def _all_settings() -> Iterator[Setting]:
    sections = typing.get_type_hints(ServeConfig)
    for section, cls in sections.items():
        hints = typing.get_type_hints(cls)
        for field in dataclasses.fields(cls):
            yield _setting(section, field, hints[field.name])


SETTINGS: dict[str, Setting] = {setting.name: setting for setting in _all_settings()}
