"""SLO classes: what a class promises, and how an operator writes one.

    interactive: ttft 300 ms, tpot 50 ms
    long-prompts: ttft=0.2s ttft_per_token=1.5ms tpot=50ms
    steady: tpot 50 ms, itl 100 ms
    batch: none

A part without a name goes on with the class before it, so that a list split at its commas means the same.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from msgspec import Struct, structs

from colocate.config.serve import SchedulerSection
from colocate.errors import ConfigError

# Of a request's gaps between tokens, how many may be over `itl_s`: its 99th percentile is then within the target.
LATE_GAPS_SHARE = 0.01

MIN_TARGET_S = 1e-6
MAX_TARGET_S = 86_400.0

EXAMPLE = "for example `interactive: ttft 300 ms, tpot 50 ms`, or `batch: none`"

_FIELDS = {"ttft": "ttft_s", "tpot": "tpot_s", "ttft_per_token": "ttft_per_token_s", "itl": "itl_s"}
_UNITS_PER_S = {"ms": 1000.0, "s": 1.0}
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_NAMED = re.compile(r"(?P<name>[^:=]*):(?P<targets>.*)", re.DOTALL)
_TARGET = re.compile(
    r"(?P<measure>[A-Za-z][\w-]*)\s*[=:]?\s*(?P<number>[+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?)\s*(?P<unit>[A-Za-z]*)"
    r"(?=\s|$)\s*",
    re.IGNORECASE | re.ASCII,
)


class SloClass(Struct, frozen=True, omit_defaults=True):
    """Targets of one named class, in seconds; None promises nothing for that measure.

    `ttft_s` counts from arrival to the first token. `ttft_per_token_s` adds this much per prompt token (the
    per-input-token definition of the field); with both, their sum is the target. `tpot_s` bounds the mean time per
    output token after the first, which hides stalls; `itl_s` bounds the 99th percentile of the request's own gaps
    between tokens: at most one gap in a hundred may be longer (rounded down, so none of fewer than a hundred).
    """

    name: str
    ttft_s: float | None = None
    tpot_s: float | None = None
    ttft_per_token_s: float | None = None
    itl_s: float | None = None

    @property
    def step_s(self) -> float | None:
        """The longest a decode step may take for both per-token targets; None where neither is set."""
        targets = [target_s for target_s in (self.tpot_s, self.itl_s) if target_s is not None]
        return min(targets, default=None)

    @property
    def promises_anything(self) -> bool:
        return self.ttft_target_s(0) is not None or self.step_s is not None

    def ttft_target_s(self, num_prompt_tokens: int) -> float | None:
        """The first-token target of a prompt of this length."""
        if self.ttft_s is None and self.ttft_per_token_s is None:
            return None
        return (self.ttft_s or 0.0) + (self.ttft_per_token_s or 0.0) * num_prompt_tokens

    def with_targets(self, ttft_s: float | None, tpot_s: float | None, itl_s: float | None) -> SloClass:
        """With one request's own targets. Its `ttft_s` is the whole first-token target: nothing is added per token."""
        changed = self
        if ttft_s is not None:
            changed = structs.replace(changed, ttft_s=ttft_s, ttft_per_token_s=None)
        if tpot_s is not None:
            changed = structs.replace(changed, tpot_s=tpot_s)
        return changed if itl_s is None else structs.replace(changed, itl_s=itl_s)


def slo_classes(scheduler: SchedulerSection) -> tuple[SloClass, ...]:
    """The configured classes, the default one checked. Raises ConfigError."""
    classes = parse_slo_classes(scheduler.slo_class, "slo_class")
    default = scheduler.default_slo_class
    if default is not None and default not in [known.name for known in classes]:
        names = ", ".join(known.name for known in classes)
        remedy = f"one of {names}" if names else f"define it with slo_class, {EXAMPLE.replace('interactive', default)}"
        raise ConfigError("default_slo_class", f"there is no SLO class {default!r}", remedy)
    return classes


def as_class_texts(value: object) -> object:
    """A YAML mapping of classes as the list of texts that it means; whatever else it is, unchanged.

    `- batch: none` without quotes is a mapping to YAML, and `interactive: {ttft: 300 ms}` one of mappings.
    """
    if isinstance(value, Mapping):
        return [f"{name}: {_targets_text(targets)}" for name, targets in value.items()]
    if isinstance(value, list):
        texts: list[object] = []
        for item in value:
            many = as_class_texts(item) if isinstance(item, Mapping) else [item]
            texts += many if isinstance(many, list) else [many]
        return texts
    return value


def _targets_text(targets: object) -> str:
    if isinstance(targets, Mapping):
        return ", ".join(f"{measure} {target}" for measure, target in targets.items()) or "none"
    return "none" if targets is None else str(targets)


def parse_slo_classes(texts: Sequence[str], where: str) -> tuple[SloClass, ...]:
    """Classes in the order given. Raises ConfigError at `where`."""
    written: dict[str, list[str]] = {}
    name = ""
    for part in (part.strip() for text in texts for part in re.split("[,;]", text)):
        named = _NAMED.fullmatch(part)
        if named is None or named["name"].strip() in _FIELDS:
            if not name:
                raise ConfigError(where, f"{part!r} has no class name before a colon", EXAMPLE)
            written[name].append(part)
            continue
        name = named["name"].strip()
        if not _NAME.fullmatch(name):
            problem = f"{name!r} is not a class name: letters, digits, dots, dashes and underscores, at most 64"
            raise ConfigError(where, problem, EXAMPLE)
        if name in written:
            raise ConfigError(where, f"the class {name!r} is defined twice", "keep one of the two")
        written[name] = [named["targets"].strip()]
    return tuple(_parse_class(name, parts, where) for name, parts in written.items())


def _parse_class(name: str, parts: list[str], where: str) -> SloClass:
    if parts == ["none"]:
        return SloClass(name)
    targets: dict[str, float] = {}
    for part in parts:
        rest = part
        while rest or not part:
            found = _TARGET.match(rest)
            if found is None:
                raise ConfigError(where, f"class {name!r}: cannot read {rest!r} as a target", EXAMPLE)
            measure = found["measure"].lower().replace("-", "_")
            if measure in targets:
                raise ConfigError(where, f"class {name!r}: {measure} is given twice", "keep one of the two")
            targets[measure] = _seconds(name, measure, found, where)
            rest = rest[found.end() :]
    return SloClass(name, **{_FIELDS[measure]: seconds for measure, seconds in targets.items()})


def _seconds(name: str, measure: str, found: re.Match[str], where: str) -> float:
    written = found[0].strip()
    if measure not in _FIELDS:
        known = ", ".join(_FIELDS)
        raise ConfigError(where, f"class {name!r}: unknown measure {measure!r}, known are {known}", EXAMPLE)
    per_s = _UNITS_PER_S.get(found["unit"].lower())
    if per_s is None:
        raise ConfigError(where, f"class {name!r}: {written!r} needs a unit, ms or s", EXAMPLE)
    seconds = float(found["number"]) / per_s
    if not seconds > 0:
        problem = f"class {name!r}: a target must be above zero, {written!r} is not"
        raise ConfigError(where, problem, f"leave {measure} out to promise nothing; {EXAMPLE}")
    if not MIN_TARGET_S <= seconds <= MAX_TARGET_S:
        problem = f"class {name!r}: {written!r} is outside 0.001 ms to {MAX_TARGET_S:g} s"
        raise ConfigError(where, problem, EXAMPLE)
    return seconds
