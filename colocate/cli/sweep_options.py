"""The options of `colocate sweep`: the same names on the command line and in a file for `--config`.

A file holds them with dashes, the settings of `colocate serve` under `serve`, and other systems under `peers`. What is
given on the command line wins.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import yaml
from msgspec import Struct, structs

from colocate.bench.plan import DRAIN_S, LATENESS_BOUND_S, TIMEOUT_S
from colocate.bench.sweep.arms import CHUNK_SIZES, DEFAULT_ARMS
from colocate.bench.sweep.estimate import parse_duration
from colocate.config.settings import SETTINGS
from colocate.errors import ConfigError
from colocate.workload.patterns import PatternShape

_USUAL = PatternShape()
Time = str | int | float  # `90`, `90s`, `10m`, `2h`

# What a sweep sets itself, or what has no meaning for servers that live for one run.
NOT_FOR_SERVERS = ("mode", "plan", "seed", "host", "port", "api_key", "admin_key", "event_log", "served_model_name")


class Sharing(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="kebab"):
    """As `PatternShape`."""

    shared_tokens: int = _USUAL.shared_tokens
    num_shared: int = _USUAL.num_shared
    num_uses: int = _USUAL.num_uses
    num_prefixes: int = _USUAL.num_prefixes
    block_tokens: int = _USUAL.block_tokens

    @property
    def shape(self) -> PatternShape:
        return PatternShape(**structs.asdict(self))


class SweepOptions(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One sweep, as asked for."""

    model: str = "demo"
    arms: tuple[str, ...] = DEFAULT_ARMS
    chunk_sizes: tuple[int, ...] = CHUNK_SIZES
    rates: tuple[float, ...] = ()
    search: str = ""  # LOW:HIGH or LOW:HIGH:STEP
    goodput_at: float = 0.9
    max_requests: int = 600
    seeds: int = 3
    first_seed: int = 0
    min_requests: int = 100
    workload: str | None = None
    lengths: tuple[str, ...] = ()
    pattern: str = "steady"
    arrivals: str = "poisson"
    duration: Time | None = None
    period: Time = 60.0
    proportion: tuple[float, ...] = ()
    sharing: Sharing = Sharing()  # of the prefix patterns
    mix: dict[str, float] = {}  # SLO classes by weight
    block_tokens: int = 512
    warmup: Time = 5.0
    cooldown: Time = 0.0
    endpoint: str = "completions"
    timeout: Time = TIMEOUT_S
    drain: Time = DRAIN_S
    lateness_bound: Time = LATENESS_BOUND_S
    keep_server: bool = False
    order_seed: int = 0
    budget: Time | None = None
    ready_timeout: Time = 600.0
    recall: int = 0  # questions for each arm
    out: str | None = None
    serve: dict[str, Any] = {}
    peers: dict[str, Any] = {}

    def seconds(self, name: str) -> float:
        """Of an option that is a time. Raises ConfigError."""
        value = getattr(self, name)
        if isinstance(value, str):
            return parse_duration(value, "--" + name.replace("_", "-"))
        return float(value)


def read_options(file: Path | None, given: Mapping[str, object], flags: Mapping[str, object]) -> SweepOptions:
    """The file with the command line on top: `given` are this command's options, `flags` settings of servers, both
    without those that were not given. Raises ConfigError with the key."""
    document = {} if file is None else _document(file)
    merged: dict[str, object] = {**document, **given}
    in_file, flagged = document.get("sharing"), given.get("sharing")
    if isinstance(in_file, dict) and isinstance(flagged, dict):
        merged["sharing"] = {**in_file, **flagged}
    where = str(file) if file is not None else "colocate sweep"
    serve = merged.get("serve") or {}
    if not isinstance(serve, dict):
        raise ConfigError(f"{where}: serve", "is not a mapping", "settings of `colocate serve`, for example `units: 2`")
    for name in ("slo_class", "default_slo_class"):  # the sweep's as much as the servers'
        if name in merged:
            serve = {**serve, name: merged.pop(name)}
    settings = {_setting(f"{where}: serve", key): value for key, value in serve.items()}
    merged["serve"] = {**settings, **flags}
    try:
        return msgspec.convert(merged, SweepOptions)
    except msgspec.ValidationError as error:
        raise ConfigError(where, str(error), "see `colocate sweep --help` and configs/bench for the names") from None


def _document(file: Path) -> dict[str, object]:
    try:
        document = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(str(file), f"cannot be read: {error.strerror}", "name an existing file") from None
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(str(file), f"is not YAML: {' '.join(str(error).split())}", "see configs/bench") from None
    if document is None:
        return {}
    if not isinstance(document, dict):
        raise ConfigError(str(file), "must hold `key: value` lines", "see configs/bench")
    return {str(key).replace("-", "_"): value for key, value in document.items()}


def _setting(where: str, key: object) -> str:
    name = str(key).replace("-", "_")
    if name in NOT_FOR_SERVERS:
        raise ConfigError(f"{where}: {key}", "is set by the sweep", "leave it out; arms say mode and plan")
    if name not in SETTINGS:
        raise ConfigError(f"{where}: {key}", "is no setting of `colocate serve`", "see `colocate serve --help`")
    return name
