"""Published SLO definitions by name, each judged as its source judges it, all from one log (configs/slo/*.yaml).

    source: Bullet (ASPLOS'26, arXiv 2504.19516)
    definitions:
      bullet-sharegpt:
        targets: ttft_per_token 3 ms, tpot 150 ms
        judged: p90

| judged | the run keeps it if | over |
|---|---|---|
| attainment | at least 90% of the requests meet every target | what the denominator counts |
| p90 | P90 of TTFT (or of TTFT per prompt token) and P90 of TPOT meet their targets | finished requests |
| p99-tbt | P99 of all gaps between tokens meets the `itl` target | every gap of every offered request |
"""

from __future__ import annotations

import sysconfig
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Literal

import msgspec
import yaml
from msgspec import Struct

from colocate.bench.metrics.attainment import OURS, Promises, attainment
from colocate.bench.metrics.denominators import Denominator
from colocate.bench.metrics.latency import itl_s, tpot_s, ttft_per_token_s, ttft_s
from colocate.bench.records import RequestRow
from colocate.bench.statistics import Proportion
from colocate.config.slo import SloClass, parse_slo_classes
from colocate.errors import ConfigError
from colocate.telemetry.quantiles import quantile

Judged = Literal["attainment", "p90", "p99-tbt"]
TARGET_ATTAINMENT = 0.9


class Definition(Struct, frozen=True):
    """One published SLO. `slo` has the definition's name."""

    name: str
    slo: SloClass
    judged: Judged
    source: str
    note: str = ""


class DefinitionFigure(Struct, frozen=True):
    """One run under one definition. `is_met` by the source's own statistic, None where there is nothing to judge;
    `statistics` are the values it looked at, in seconds (an attainment has no unit). `attainment` is the share of
    requests that meet all its targets, under the chosen denominator, whatever the source judges."""

    name: str
    judged: Judged
    source: str
    is_met: bool | None
    attainment: Proportion
    statistics: dict[str, float | None]
    targets: dict[str, float]


class _Entry(Struct, frozen=True, forbid_unknown_fields=True):
    targets: str
    judged: Judged
    note: str = ""


class _File(Struct, frozen=True, forbid_unknown_fields=True):
    source: str
    definitions: dict[str, _Entry]


def evaluate(definition: Definition, rows: Sequence[RequestRow], rule: Denominator = OURS) -> DefinitionFigure:
    """Offered rows under one definition; the classes of the requests play no part."""
    share = attainment(rows, Promises((definition.slo,)), rule)
    statistics, targets = _statistics(definition, rows, share)
    met = [None if value is None else _keeps(name, value, targets[name]) for name, value in statistics.items()]
    is_met = None if None in met or not met else all(met)
    return DefinitionFigure(definition.name, definition.judged, definition.source, is_met, share, statistics, targets)


def _keeps(name: str, value: float, target: float) -> bool:
    return value >= target if name == "attainment" else value <= target


def _statistics(
    definition: Definition, rows: Sequence[RequestRow], share: Proportion
) -> tuple[dict[str, float | None], dict[str, float]]:
    slo = definition.slo
    if definition.judged == "attainment":
        return {"attainment": share.value}, {"attainment": TARGET_ATTAINMENT}
    if definition.judged == "p99-tbt":
        gaps = [gap_s for row in rows for gap_s in itl_s(row)]
        return {"itl_p99_s": _quantile(gaps, 0.99)}, {"itl_p99_s": slo.itl_s or 0.0}
    finished = [row for row in rows if row.outcome == "finished"]
    wanted = (
        ("ttft_p90_s", slo.ttft_s, ttft_s),
        ("ttft_per_token_p90_s", slo.ttft_per_token_s, ttft_per_token_s),
        ("tpot_p90_s", slo.tpot_s, tpot_s),
    )
    targets = {name: target_s for name, target_s, _ in wanted if target_s is not None}
    return {name: _quantile(map(of, finished), 0.9) for name, _, of in wanted if name in targets}, targets


def _quantile(values: Iterable[float | None], share: float) -> float | None:
    known = sorted(value for value in values if value is not None)
    return quantile(known, share) if known else None


def read_definitions(path: Path) -> tuple[Definition, ...]:
    """Of one YAML file, in its order. Raises ConfigError."""
    example = "write source: and definitions: as configs/slo/bullet.yaml does"
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
        file = msgspec.convert(document, _File)
    except OSError as error:
        raise ConfigError(str(path), f"cannot be read: {error.strerror}", "name an existing file") from None
    except UnicodeDecodeError:
        raise ConfigError(str(path), "is not UTF-8 text", "save it as UTF-8") from None
    except yaml.YAMLError as error:
        raise ConfigError(str(path), f"is not valid YAML: {' '.join(str(error).split())}", example) from None
    except msgspec.ValidationError as error:
        raise ConfigError(str(path), str(error), example) from None
    return tuple(_definition(path, name, entry, file.source) for name, entry in file.definitions.items())


def _definition(path: Path, name: str, entry: _Entry, source: str) -> Definition:
    where = f"{path}: {name}"
    (slo,) = parse_slo_classes([f"{name}: {entry.targets}"], where)
    if entry.judged == "p99-tbt" and slo.itl_s is None:
        raise ConfigError(where, "p99-tbt judges gaps, and it has no itl target", "add itl, for example itl 50 ms")
    if entry.judged == "p90" and slo.ttft_s is not None and slo.ttft_per_token_s is not None:
        raise ConfigError(where, "p90 judges TTFT or TTFT per prompt token, not their sum", "keep one of the two")
    if entry.judged == "p90" and slo.itl_s is not None:
        raise ConfigError(where, "p90 judges ttft and tpot, and it has an itl target", "take itl out, or judge p99-tbt")
    if not slo.promises_anything:
        raise ConfigError(where, "promises nothing", "give it a target, for example tpot 50 ms")
    return Definition(name, slo, entry.judged, source, entry.note)


@cache
def published_definitions() -> tuple[Definition, ...]:
    """Those that come with colocate. Raises ConfigError where an installation lost them."""
    known: dict[str, Definition] = {}
    for path in sorted(library_folder().glob("*.yaml")):
        for definition in read_definitions(path):
            if definition.name in known:
                raise ConfigError(f"{path}: {definition.name}", "is defined in two files", "rename one of the two")
            known[definition.name] = definition
    return tuple(known.values())


def library_folder() -> Path:
    """configs/slo of the checkout, or of the installation."""
    checkout = Path(__file__).resolve().parents[2] / "configs" / "slo"
    installed = Path(sysconfig.get_path("data")) / "share" / "colocate" / "slo"
    for folder in (checkout, installed):
        if folder.is_dir():
            return folder
    problem = "the published SLO definitions are not there"
    raise ConfigError(str(installed), problem, "install colocate again, or run from a checkout")
