"""Typed access to the JSON files of a model directory: every error names the file and the key."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from colocate.errors import ConfigError

DOWNLOAD_AGAIN = "the file is damaged or was changed: download the model again"


@dataclass(frozen=True, slots=True)
class JsonFields:
    """One JSON object. A key that is absent or null takes the default; without a default it must be there."""

    where: str
    values: Mapping[str, Any]

    def integer(self, key: str, default: int | None = None) -> int:
        value = self.values.get(key)
        if value is None and default is not None:
            return default
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ConfigError(f"{self.where}: {key}", f"must be a positive integer, is {value!r}", DOWNLOAD_AGAIN)
        return value

    def number(self, key: str, default: float | None = None) -> float:
        value = self.values.get(key)
        if value is None and default is not None:
            return default
        if not isinstance(value, int | float) or isinstance(value, bool) or not value > 0:
            raise ConfigError(f"{self.where}: {key}", f"must be a positive number, is {value!r}", DOWNLOAD_AGAIN)
        return float(value)

    def flag(self, key: str, default: bool = False) -> bool:
        value = self.values.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise ConfigError(f"{self.where}: {key}", f"must be true or false, is {value!r}", DOWNLOAD_AGAIN)
        return value


def read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise ConfigError(str(path), "is missing", "a model directory needs config.json beside its weights") from None
    except (OSError, ValueError) as error:
        raise ConfigError(str(path), f"cannot be read: {error}", "download the model again") from None
    if not isinstance(value, dict):
        raise ConfigError(str(path), "must hold a JSON object", DOWNLOAD_AGAIN)
    return value
