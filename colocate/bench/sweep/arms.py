"""Names of arms, as `--arms` gives them, and the flags that each stands for.

| name | what runs | group |
|---|---|---|
| `static` | every split of the device, each an arm `static:PLAN` | static |
| `static:PLAN` | that split for good | static |
| `shared` | two workers, no partition | shared |
| `chunked` | one worker, once for each of the chunk sizes | chunked |
| `chunked:N` | chunks of N tokens, decode's rows included | chunked |
| `elastic`, `elastic:SPLIT`, `slo`, `on-demand` | the policies | dynamic |
| `peer:NAME`, `peer:NAME:VARIANT`, `peer:NAME:*` | another system, from `peers` of the configuration file | peer |

`+setting=value`, any number of times, changes a setting of `colocate serve` in that arm: `slo+discipline=edf`,
`elastic+guards=none`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from colocate.bench.records import SweepArm
from colocate.bench.systems.command import PeerEntry
from colocate.config.load import load_config
from colocate.config.settings import SETTINGS
from colocate.errors import ConfigError

DEFAULT_ARMS = ("static", "shared", "chunked", "elastic", "slo", "on-demand")
CHUNK_SIZES = (256, 512, 1024, 2048)
OURS = "colocate"

_POLICIES = ("elastic", "slo", "on-demand")
_EXAMPLES = (
    "for example static, static:p1d1, shared, chunked:512, elastic, slo, on-demand, peer:vllm, slo+discipline=edf"
)


@dataclass(frozen=True, slots=True)
class Grounds:
    """What names are resolved with. `static_plans` are the device's splits, empty where nobody asked for all of them;
    `max_num_seqs` is that of every arm."""

    static_plans: tuple[str, ...] = ()
    chunk_sizes: tuple[int, ...] = CHUNK_SIZES
    max_num_seqs: int = 64
    peers: Mapping[str, PeerEntry] | None = None


def wants_every_plan(names: Sequence[str]) -> bool:
    """Whether the device has to be asked for its plans."""
    return any(name.partition("+")[0] == "static" for name in names)


def resolve_arms(names: Sequence[str], grounds: Grounds) -> tuple[SweepArm, ...]:
    """The arms in the order given. Raises ConfigError: an unknown name, an arm twice, nothing to run."""
    arms: dict[str, SweepArm] = {}
    for name in names:
        for arm in _arms_of(name.strip(), grounds):
            if arm.name in arms:
                raise ConfigError("--arms", f"{arm.name!r} is named twice", "name each arm once")
            arms[arm.name] = arm
    if not arms:
        raise ConfigError("--arms", "leaves nothing to run", _EXAMPLES)
    return tuple(arms.values())


def _arms_of(name: str, grounds: Grounds) -> Iterator[SweepArm]:
    base, *changes = name.split("+")
    if base.startswith("peer:"):
        if changes:
            raise ConfigError(
                "--arms", f"{name!r} changes settings of colocate in a peer", "write a variant of the peer"
            )
        yield from _peer_arms(base, grounds.peers or {})
        return
    extra = tuple(flag for change in changes for flag in _change(name, change))
    suffix = "".join(f"+{change}" for change in changes)
    for arm_name, group, flags in _our_arms(base, grounds):
        yield SweepArm(arm_name + suffix, group, OURS, (*flags, *extra))


def _our_arms(base: str, grounds: Grounds) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    kind, _, rest = base.partition(":")
    if base == "shared":
        yield base, "shared", ("--mode", "shared")
    elif kind == "static":
        for plan in (rest,) if rest else grounds.static_plans:
            yield f"static:{plan}", "static", ("--mode", "colocated", "--plan", f"static:{plan}")
    elif kind == "chunked":
        for size in (_chunk_size(base, rest),) if rest else grounds.chunk_sizes:
            yield f"chunked:{size}", "chunked", _chunked(size, grounds.max_num_seqs)
    elif base in _POLICIES or (kind == "elastic" and rest):
        yield base, "dynamic", ("--mode", "colocated", "--plan", base)
    else:
        raise ConfigError("--arms", f"no arm is named {base!r}", _EXAMPLES)


def _chunked(size: int, max_num_seqs: int) -> tuple[str, ...]:
    """Rows take their place in the chunk, so there are never more of them than it has tokens."""
    rows = ("--max-num-seqs", str(size)) if size < max_num_seqs else ()
    return ("--mode", "chunked", "--max-num-batched-tokens", str(size), *rows)


def _chunk_size(name: str, text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise ConfigError("--arms", f"{name!r}: {text!r} is not a number of tokens", "for example chunked:512")
    return int(text)


def _change(name: str, change: str) -> tuple[str, ...]:
    key, equals, value = change.partition("=")
    setting = SETTINGS.get(key.strip().replace("-", "_"))
    if setting is None or not equals:
        problem = f"{name!r}: {change!r} is not a setting of `colocate serve` with a value"
        raise ConfigError("--arms", problem, "for example slo+discipline=edf")
    load_config(flags={setting.name: value})  # raises for a value that does not fit
    return as_flags({setting.name: value})


def as_flags(settings: Mapping[str, object]) -> tuple[str, ...]:
    """Settings by name, values as text, as `colocate serve` takes them on its command line."""
    flags: list[str] = []
    for name, value in settings.items():
        flag = SETTINGS[name].flag
        if SETTINGS[name].kind is bool:
            is_on = value is True or str(value).lower() in ("1", "true", "yes", "on")
            flags.append(flag if is_on else f"--no-{flag[2:]}")
        elif isinstance(value, list | tuple):
            for item in value:
                flags += [flag, str(item)]
        else:
            flags += [flag, str(value)]
    return tuple(flags)


def _peer_arms(base: str, peers: Mapping[str, PeerEntry]) -> Iterator[SweepArm]:
    _, name, variant = (*base.split(":", 2), "")[:3]
    if name not in peers:
        known = f"known are {', '.join(peers)}" if peers else "no peer is described"
        raise ConfigError("--arms", f"no peer is named {name!r}", f"{known}: add it under `peers` in the --config file")
    variants = peers[name].variants
    if variant == "*" and variants:
        chosen = tuple(variants)
    elif variant and variant not in variants:
        known = ", ".join(variants) or "none"
        raise ConfigError("--arms", f"peer {name!r} has no variant {variant!r}", f"it has: {known}")
    else:
        chosen = (variant or next(iter(variants), ""),)
    for each in chosen:
        yield SweepArm(f"{name}:{each}" if each else name, "peer", name, variants.get(each, ()))
