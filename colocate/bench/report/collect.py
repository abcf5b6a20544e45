"""Results as a report needs them: runs grouped into points, one per arm and load, each run with its figures."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from msgspec import structs

from colocate.bench.arms import ArmFigures, arm_figures
from colocate.bench.figures import RunFigures, promises_of, run_figures
from colocate.bench.metrics.attainment import Promises
from colocate.bench.metrics.denominators import denominator
from colocate.bench.read import Run, Sweep, Unreadable, read_results
from colocate.bench.records import RecallRecord, RunManifest, SweepManifest
from colocate.bench.report.model import TARGET_SHARE, Arm, Group
from colocate.bench.slo_library import published_definitions
from colocate.config.slo import SloClass, parse_slo_classes
from colocate.errors import ConfigError

MAX_SLOTS = 8  # colours of the palette; more lines are not told apart
_DYNAMIC = ("slo", "elastic", "on-demand")
_SPLIT = re.compile(r"(?<![A-Za-z0-9])p(\d+)d(\d+)(?![0-9])")
_LEADING: tuple[Group, ...] = ("static", "dynamic", "chunked", "shared", "peer", "other")


@dataclass(frozen=True)
class RunView:
    """A run and its figures under the report's SLO and denominator."""

    run: Run
    figures: RunFigures

    @property
    def counts(self) -> bool:
        """Whether it says something about its arm. A server that failed under load does: its requests are misses. A run
        whose client was late, or that was cut, does not, and neither does one without requests."""
        return self.run.status in ("valid", "failed") and self.figures.num_offered > 0

    @property
    def why_not(self) -> str:
        reasons = "; ".join(self.run.reasons)
        if self.counts and self.run.status == "valid":
            return ""
        return reasons or (
            "no request was offered in its window" if not self.figures.num_offered else "no reason given"
        )


@dataclass(frozen=True)
class Point:
    """One arm under one load. `views` are the runs that count, one per seed; `left_out` the others."""

    arm: str
    rate: float | None  # requests per second
    concurrency: int | None
    views: tuple[RunView, ...]
    left_out: tuple[RunView, ...]
    promises: Promises
    rule: str

    @cached_property
    def figures(self) -> ArmFigures | None:
        """Over its seeds; None where no run counts."""
        if not self.views:
            return None
        runs = [view.run for view in self.views]
        return arm_figures(runs, self.promises, denominator(self.rule), valid_only=False)

    @property
    def load(self) -> str:
        return f"{self.rate:g} requests/s" if self.rate is not None else f"{self.concurrency} at once"


@dataclass(frozen=True)
class Evidence:
    """Everything that was read. Arms are in the order of the sweep, points by arm, then load."""

    names: tuple[str, ...]
    arms: tuple[Arm, ...]
    points: tuple[Point, ...]
    views: tuple[RunView, ...]
    sweeps: tuple[SweepManifest, ...]
    unreadable: tuple[Unreadable, ...]
    promises: Promises
    rule: str
    slo_notes: tuple[str, ...]
    recalls: tuple[RecallRecord, ...] = ()

    def only(self, names: Sequence[str]) -> Evidence:
        """What there is of these arms."""
        sweeps = (
            structs.replace(sweep, arms=tuple(arm for arm in sweep.arms if arm.name in names)) for sweep in self.sweeps
        )
        return replace(
            self,
            arms=tuple(arm for arm in self.arms if arm.name in names),
            points=tuple(point for point in self.points if point.arm in names),
            views=tuple(view for view in self.views if view.run.manifest.arm in names),
            sweeps=tuple(sweeps),
            recalls=tuple(record for record in self.recalls if record.arm in names),
        )

    def of_arm(self, name: str) -> list[Point]:
        """Open-loop points that have figures, by rate."""
        return [point for point in self.points if point.arm == name and point.rate is not None and point.views]

    def at(self, rate: float) -> dict[str, Point]:
        """The points of one rate by arm, in order of arms."""
        return {arm.name: point for arm in self.arms for point in self.of_arm(arm.name) if point.rate == rate}

    @cached_property
    def rates(self) -> tuple[float, ...]:
        return tuple(sorted({point.rate for point in self.points if point.rate is not None and point.views}))

    @cached_property
    def reference_rate(self) -> float | None:
        """The rate for figures of one rate: of those that most arms have, the highest at which any of them keeps the
        target share, else the lowest."""
        if not self.rates:
            return None
        num_arms = Counter(point.rate for arm in self.arms for point in self.of_arm(arm.name))
        most = [rate for rate in self.rates if num_arms[rate] == max(num_arms.values())]
        kept = [
            rate
            for rate in most
            if any((attainment_of(point) or 0) >= TARGET_SHARE for point in self.at(rate).values())
        ]
        return kept[-1] if kept else most[0]

    def leading(self) -> tuple[Arm, ...]:
        return tuple(sorted((arm for arm in self.arms if arm.slot >= 0), key=lambda arm: arm.slot))


def attainment_of(point: Point) -> float | None:
    """good / counted over all seeds, 0 to 1."""
    of = sum(view.figures.attainment.of for view in point.views)
    return sum(view.figures.attainment.good for view in point.views) / of if of else None


def collect(folders: Sequence[Path], slo: Sequence[str], rule: str) -> Evidence:
    """Read results and group them. Raises ConfigError: a folder or an SLO that cannot be read, results without a
    run, or results of which two runs have the same arm, load and seed."""
    denominator(rule)
    read = [read_results(folder) for folder in folders]
    sweeps = tuple(each.manifest for each in read if isinstance(each, Sweep))
    runs = [run for each in read for run in (each.runs if isinstance(each, Sweep) else (each,))]
    unreadable = tuple(broken for each in read if isinstance(each, Sweep) for broken in each.unreadable)
    recalls = tuple(record for each in read if isinstance(each, Sweep) for record in each.recalls)
    if not runs:
        why = f"; {unreadable[0].folder.name}: {unreadable[0].problem}" if unreadable else ""
        problem = f"holds no run that can be read{why}"
        raise ConfigError(", ".join(map(str, folders)), problem, "let the sweep do at least one run")
    promises, notes = choose_promises(runs, slo)
    views = tuple(RunView(run, run_figures(run, promises, rule)) for run in runs)
    _refuse_doubles(views)
    names = tuple(folder.resolve().name for folder in folders)
    points = _points(views, promises, rule)
    arms = _with_slots(_arms(sweeps, runs), points)
    order = {arm.name: i for i, arm in enumerate(arms)}
    points.sort(key=lambda point: (order[point.arm], point.rate or 0.0, point.concurrency or 0))
    return Evidence(names, arms, tuple(points), views, sweeps, unreadable, promises, rule, notes, recalls)


def choose_promises(runs: Sequence[Run], slo: Sequence[str]) -> tuple[Promises, tuple[str, ...]]:
    """What is judged by, and what has to be said about it. `slo`: classes as `--slo-class` writes them, or the names of
    published definitions; empty for the runs' own. Raises ConfigError."""
    if slo:
        published = {definition.name: definition.slo for definition in published_definitions()}
        classes: list[SloClass] = []
        for text in slo:
            if text in published:
                classes.append(published[text])
            elif ":" in text:
                classes += parse_slo_classes([text], "--slo")
            else:
                known = ", ".join(published)
                raise ConfigError("--slo", f"there is no published SLO {text!r}", f"one of {known}; or NAME: TARGETS")
        return Promises(classes), ()
    own = Counter((run.manifest.slo_classes, run.manifest.default_slo_class) for run in runs)
    (texts, default), num = own.most_common(1)[0]
    first = next(run for run in runs if (run.manifest.slo_classes, run.manifest.default_slo_class) == (texts, default))
    if not texts:
        return promises_of(first), ("No SLO was given: every finished request counts as good. Give one with --slo.",)
    others = len(runs) - num
    differ = f"{others} of {len(runs)} runs were made with other SLO classes; all are judged by {'; '.join(texts)}."
    return promises_of(first), (differ,) if others else ()


def _refuse_doubles(views: Sequence[RunView]) -> None:
    seen: dict[tuple[object, ...], Path] = {}
    for view in views:
        if not view.counts:
            continue
        manifest = view.run.manifest
        key = (manifest.arm, manifest.offered_rate, manifest.concurrency, manifest.seed)
        if key in seen:
            problem = f"is the same arm, load and seed ({manifest.arm}, seed {manifest.seed}) as {seen[key]}"
            raise ConfigError(str(view.run.folder), problem, "give one of the two, or ask for --compare A B")
        seen[key] = view.run.folder


def _points(views: Iterable[RunView], promises: Promises, rule: str) -> list[Point]:
    groups: dict[tuple[str, float | None, int | None], list[RunView]] = {}
    for view in sorted(views, key=lambda view: view.run.manifest.seed):
        manifest = view.run.manifest
        groups.setdefault((manifest.arm, manifest.offered_rate, manifest.concurrency), []).append(view)
    return [
        Point(
            *key,
            views=tuple(view for view in group if view.counts),
            left_out=tuple(view for view in group if not view.counts),
            promises=promises,
            rule=rule,
        )
        for key, group in groups.items()
    ]


def _arms(sweeps: Sequence[SweepManifest], runs: Sequence[Run]) -> list[Arm]:
    arms: dict[str, Arm] = {}
    for sweep in sweeps:
        for each in sweep.arms:
            arms[each.name] = Arm(each.name, as_group(each.group), each.system, each.flags, -1)
    for run in runs:
        name = run.manifest.arm
        if name not in arms:
            arms[name] = Arm(name, _group(run.manifest), run.manifest.target.system, (), -1)
    return list(arms.values())


def as_group(text: str) -> Group:
    return next((group for group in _LEADING if group == text), "other")


def _group(manifest: RunManifest) -> Group:
    if manifest.target.system not in ("colocate", "unknown", ""):
        return "peer"
    name = manifest.arm
    if name.startswith("static") or split_of(Arm(name, "other", "", (), -1)):
        return "static"
    if name.startswith(("chunked", "shared")):
        return "chunked" if name.startswith("chunked") else "shared"
    return "dynamic" if name.startswith(_DYNAMIC) else "other"


def split_of(arm: Arm) -> tuple[int, int] | None:
    """Units of prefill and decode that a static arm's name or flags tell (p92d40); None where they do not."""
    return next((found for text in (arm.name, *arm.flags) if (found := units_of(text))), None)


def units_of(plan: str) -> tuple[int, int] | None:
    """Units of prefill and decode in a plan's name."""
    found = _SPLIT.search(plan)
    return (int(found[1]), int(found[2])) if found else None


def _with_slots(arms: Sequence[Arm], points: Sequence[Point]) -> tuple[Arm, ...]:
    """The best of each group first, then the others by what they keep, as far as the palette reaches."""

    def merit(arm: Arm) -> float:
        kept = [attainment_of(point) or 0.0 for point in points if point.arm == arm.name and point.views]
        return sum(kept)

    ranked = sorted(arms, key=lambda arm: -merit(arm))
    best = [next((arm for arm in ranked if arm.group == group), None) for group in _LEADING]
    first = [arm for arm in best if arm is not None]
    rest = [arm for group in ("dynamic", "peer", "chunked", "static", "shared", "other") for arm in ranked
            if arm.group == group and arm not in first]  # fmt: skip
    slots = {arm.name: i for i, arm in enumerate((first + rest)[:MAX_SLOTS])}
    return tuple(Arm(arm.name, arm.group, arm.system, arm.flags, slots.get(arm.name, -1)) for arm in arms)
