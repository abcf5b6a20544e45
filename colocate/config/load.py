"""Settings from a YAML file, the environment and flags into one frozen `ServeConfig`.

Flags win over the environment, the environment over the file, the file over the defaults. The file is flat: its keys
are the flags' names, with dashes or underscores. Whatever is unknown or ill-typed is refused with the name of the key,
where it stands, and what would be right.
"""

from __future__ import annotations

import difflib
import math
import typing
from collections.abc import Mapping
from pathlib import Path

import yaml

from colocate.config.serve import ServeConfig
from colocate.config.settings import LIMITS, SETTINGS, Setting
from colocate.config.sizes import parse_size
from colocate.config.slo import as_class_texts, parse_slo_classes, slo_classes
from colocate.errors import ConfigError

_PREFIX = "COLOCATE_"
# Read where they are used (model/native.py, device/cuda/fake.py), not settings of a run: no flag, no key in a file.
OTHER_VARIABLES = (
    "COLOCATE_NATIVE",
    "COLOCATE_CACHE_DIR",
    "COLOCATE_FAKE_CUDA",
    "COLOCATE_FAKE_CUDA_SMS",
    "COLOCATE_FAKE_CUDA_BYTES",
    "COLOCATE_FAKE_CUDA_MPS",
    "COLOCATE_FAKE_CUDA_BREAK",
    "COLOCATE_FAKE_MPS",
)
_TRUE = ("1", "true", "yes", "on")
_FALSE = ("0", "false", "no", "off")


def load_config(
    file: Path | None = None,
    environ: Mapping[str, str] | None = None,
    flags: Mapping[str, object] | None = None,
) -> ServeConfig:
    """Merge the sources. `flags` holds only what was given, by setting name; strings are parsed like environment
    values. Raises ConfigError."""
    values: dict[str, object] = {}
    if file is not None:
        values.update(_from_file(file))
    values.update(_from_environ(environ or {}))
    for name, value in (flags or {}).items():
        values[name] = _convert(SETTINGS[name], value, SETTINGS[name].flag, from_text=True)
    sections: dict[str, dict[str, object]] = {section: {} for section in typing.get_type_hints(ServeConfig)}
    for name, value in values.items():
        sections[SETTINGS[name].section][name] = value
    classes = typing.get_type_hints(ServeConfig)
    config = ServeConfig(**{section: classes[section](**given) for section, given in sections.items()})
    slo_classes(config.scheduler)  # each text was checked where it stands; the default one needs them all
    return config


def _from_file(file: Path) -> dict[str, object]:
    try:
        document = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            str(file), f"cannot be read: {error.strerror}", "name an existing file with --config"
        ) from None
    except UnicodeDecodeError:
        raise ConfigError(str(file), "is not UTF-8 text", "save it as UTF-8") from None
    except yaml.YAMLError as error:
        problem = f"is not valid YAML: {' '.join(str(error).split())}"
        raise ConfigError(str(file), problem, "write lines such as `port: 8000`") from None
    if document is None:
        return {}
    if not isinstance(document, dict):
        raise ConfigError(str(file), "must hold `key: value` lines", "for example `port: 8000`")
    values: dict[str, object] = {}
    for key, value in document.items():
        where = f"{file}: {key}"
        name = str(key).replace("-", "_")
        if name not in SETTINGS:
            raise ConfigError(where, "unknown key", _did_you_mean(name, dict.fromkeys(SETTINGS)))
        if name in values:
            raise ConfigError(where, "is given twice, with dashes and with underscores", "keep one of the two lines")
        values[name] = _convert(SETTINGS[name], value, where, from_text=False)
    return values


def _from_environ(environ: Mapping[str, str]) -> dict[str, object]:
    by_env = {setting.env: setting for setting in SETTINGS.values()}
    values: dict[str, object] = {}
    for key in sorted(environ):
        if not key.startswith(_PREFIX) or key in OTHER_VARIABLES or _is_service_link(key, environ[key]):
            continue
        if key not in by_env:
            raise ConfigError(
                f"environment: {key}", "unknown setting", _did_you_mean(key, dict.fromkeys([*by_env, *OTHER_VARIABLES]))
            )
        values[by_env[key].name] = _convert(by_env[key], environ[key], f"environment: {key}", from_text=True)
    return values


def _is_service_link(key: str, value: str) -> bool:
    """Kubernetes puts the addresses of a service named `colocate` under our prefix; those are not settings."""
    rest = key.removeprefix(_PREFIX)
    return rest.startswith(("SERVICE_HOST", "SERVICE_PORT", "PORT_")) or (rest == "PORT" and "://" in value)


def _did_you_mean(name: str, known: Mapping[str, object]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"did you mean {close[0]!r}?" if close else "see `colocate serve --help` for the names"


def _choice_meant(setting: Setting, word: str) -> str:
    """A remedy naming one of the setting's choices; empty where it has none."""
    return _did_you_mean(word, dict.fromkeys(setting.choices)) if setting.choices else ""


def _convert(setting: Setting, value: object, where: str, *, from_text: bool) -> object:
    """A value of the setting's type, or ConfigError at `where`."""
    if value is None:
        if setting.optional:
            return None
        raise ConfigError(where, "has no value", f"give {setting.expected}, or leave the key out")
    if setting.is_list:
        return _list_of_text(setting, value, where, from_text=from_text)
    converted = _scalar(setting, value, from_text=from_text)
    if converted is None:
        problem = f"{value!r} is not {setting.expected}"
        raise ConfigError(where, problem, _choice_meant(setting, str(value)))
    _check_limits(setting, converted, where)
    return converted


def _list_of_text(setting: Setting, value: object, where: str, *, from_text: bool) -> tuple[str, ...]:
    if setting.name == "slo_class":
        value = as_class_texts(value)
    if isinstance(value, str):
        items: list[object] = [part.strip() for part in value.split(",")] if from_text else [value]
    elif isinstance(value, list | tuple):
        items = list(value)
    else:
        items = [value]
    if setting.choices and "none" in items:
        others = [repr(item) for item in items if item != "none"]
        if others:
            raise ConfigError(where, f"'none' is given beside {', '.join(others)}", "give none alone, or leave it out")
        return ()
    for item in items:
        if not isinstance(item, str) or not item:
            raise ConfigError(where, f"{item!r} is not a string", f"give {setting.expected}; quote numbers")
        if setting.choices and item not in setting.choices:
            raise ConfigError(where, f"{item!r} is not {setting.expected}", _choice_meant(setting, item))
    texts = tuple(str(item) for item in items)
    if setting.name == "slo_class":
        parse_slo_classes(texts, where)
    return texts


def _scalar(setting: Setting, value: object, *, from_text: bool) -> object | None:
    """The value in the setting's type, None where it does not fit."""
    if setting.choices:
        return str(value) if value in setting.choices else None
    if setting.is_size:
        return _size(value)
    if setting.kind is str:
        return value if isinstance(value, str) and value else None
    if setting.kind is bool:
        return _boolean(value, from_text=from_text)
    return _number(setting.kind, value, from_text=from_text)


def _size(value: object) -> int | None:
    if isinstance(value, bool) or not isinstance(value, int | str):
        return None
    try:
        return value if isinstance(value, int) else parse_size(value)
    except ValueError:
        return None


def _boolean(value: object, *, from_text: bool) -> bool | None:
    if isinstance(value, bool):
        return value
    if from_text and isinstance(value, str) and value.lower() in (*_TRUE, *_FALSE):
        return value.lower() in _TRUE
    return None


def _number(kind: type, value: object, *, from_text: bool) -> int | float | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, str):
        if not from_text:
            return None
        try:
            value = int(value) if kind is int else float(value)
        except ValueError:
            return None
    if kind is int:
        return value if isinstance(value, int) else None
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _check_limits(setting: Setting, value: object, where: str) -> None:
    low, high = LIMITS.get(setting.name, (None, None))
    if not isinstance(value, int | float):
        return
    if low is not None and value < low:
        raise ConfigError(where, f"{value} is too small", f"at least {low:g}")
    if high is not None and value > high:
        raise ConfigError(where, f"{value} is too large", f"at most {high:g}")
