"""What was in force, when it changed, and what waited meanwhile."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

from colocate.bench.metrics.window import window
from colocate.bench.records import ServerSample, Switch
from colocate.bench.report.collect import Evidence, Point, RunView, units_of
from colocate.bench.report.model import (
    Arm,
    Band,
    BarChart,
    Cell,
    Chart,
    Column,
    LineChart,
    Panel,
    Section,
    Series,
    Table,
    TimelineChart,
)
from colocate.bench.report.words import listed, number
from colocate.telemetry.quantiles import quantile

_MAX_POINTS = 240  # of one line over time
_LISTED = 200  # switches in the table
_NAMED = 6  # arms in a sentence
_MAX_PARTS = 8  # plans that a bar tells apart; what is left is one part
_WHOLE = ("all-prefill", "all-decode")  # lent: the other phase has no unit
_LAST = ("shared", "(switching)")  # not on the scale of units


def residency_section(evidence: Evidence) -> Section:
    """How long each plan was truly in force, and what a switch took."""
    points = [point for point in evidence.points if any(view.run.manifest.residency for view in point.views)]
    if not points:
        text = "No server told which plan was in force, so there is no residency to show."
        return Section("residency", "Residency and switches", (text,))
    moving = [point for point in points if len(_residency([point])) > 1]
    still = [arm.name for arm in evidence.arms if arm.name in {point.arm for point in points}
             and arm.name not in {point.arm for point in moving}]  # fmt: skip
    if not moving:
        return Section("residency", "Residency and switches", (f"No arm changed its plan: {listed(still, _NAMED)}.",))
    chosen = _at_reference(evidence, moving)
    parts = _largest(_residency(chosen))
    names = tuple(point.arm for point in chosen)
    gist = "; ".join(
        f"{name}: " + ", ".join(f"{plan} {number(values[i])} %" for plan, values in parts if values[i] >= 1)
        for i, name in enumerate(names)
    )
    title = f"Share of phase-active time by plan, {chosen[0].load}"
    charts: list[Chart] = [BarChart("residency-bars", title, f"{gist}.", "% of phase-active time", names, parts, 100.0,
                                    is_ordered=True)]  # fmt: skip
    switching = [
        (_arm(evidence, point.arm), point.views[0]) for point in chosen if point.views[0].run.manifest.switches
    ]
    if switching:
        charts.append(_switches_over_time(switching))
    lead = [
        "Residency is the share of the time in which a phase was active that a plan was truly in force; plans are in "
        "order of decode's units. all-prefill and all-decode: one phase was idle, and the other had its units.",
    ]
    lead += [f"{listed(still, _NAMED)} had one plan all the time."] if still else []
    tables = (_ledger(moving), *([_switch_list(switching)] if switching else []))
    return Section("residency", "Residency and switches", tuple(lead), tuple(charts), tables)


def _at_reference(evidence: Evidence, points: Sequence[Point]) -> list[Point]:
    found = [point for point in points if point.rate is not None and point.rate == evidence.reference_rate]
    if found:
        return found
    last = points[-1]
    return [point for point in points if (point.rate, point.concurrency) == (last.rate, last.concurrency)]


def _arm(evidence: Evidence, name: str) -> Arm:
    return next(arm for arm in evidence.arms if arm.name == name)


def _residency(points: Sequence[Point]) -> tuple[tuple[str, tuple[float, ...]], ...]:
    shares: list[dict[str, float]] = []
    for point in points:
        told = [view.run.manifest.residency for view in point.views if view.run.manifest.residency]
        plans = {plan for each in told for plan in each}
        shares.append({plan: sum(each.get(plan, 0.0) for each in told) / len(told) * 100 for plan in plans})
    ordered = sorted({plan for each in shares for plan in each}, key=_by_decode_units)
    return tuple((plan, tuple(each.get(plan, 0.0) for each in shares)) for plan in ordered)


def _by_decode_units(plan: str) -> tuple[float, str]:
    units = units_of(plan)
    places = {"all-prefill": -1.0, "all-decode": 1e9, **dict.fromkeys(_LAST, 2e9)}
    return (float(units[1]) if units else places.get(plan, 3e9), plan)


def _largest(parts: tuple[tuple[str, tuple[float, ...]], ...]) -> tuple[tuple[str, tuple[float, ...]], ...]:
    """As many plans as a bar can show; the others as one."""
    if len(parts) <= _MAX_PARTS:
        return parts
    ranked = sorted(parts, key=lambda part: -max(part[1]))
    kept = {plan for plan, _ in ranked[: _MAX_PARTS - 1]}
    others = [values for plan, values in parts if plan not in kept]
    rest = (f"{len(others)} other plans", tuple(map(sum, zip(*others, strict=True))))
    return (*(part for part in parts if part[0] in kept), rest)


def _applied_ms(switch: Switch) -> float | None:
    """From decided to in force in both workers; None where one never acknowledged."""
    if switch.prefill_applied_s is None or switch.decode_applied_s is None:
        return None
    return (max(switch.prefill_applied_s, switch.decode_applied_s) - switch.decided_s) * 1e3


def _ledger(points: Sequence[Point]) -> Table:
    columns = (Column("arm"), Column("load"), Column("switches", "per run"), Column("applied after p50", "ms"),
               Column("applied after p99", "ms"), Column("never acknowledged", "switches"),
               Column("most in force"), Column("its share", "%"))  # fmt: skip
    rows: list[tuple[Cell, ...]] = []
    for point in points:
        switches = [switch for view in point.views for switch in view.run.manifest.switches]
        applied = sorted(value for switch in switches if (value := _applied_ms(switch)) is not None)
        ((plan, share),) = (max(((plan, values[0]) for plan, values in _residency([point])), key=lambda kept: kept[1]),)
        rows.append((
            Cell(text=point.arm), Cell(text=point.load), Cell(len(switches) / len(point.views)),
            Cell(quantile(applied, 0.5)) if applied else Cell(text="-"),
            Cell(quantile(applied, 0.99)) if applied else Cell(text="-"),
            Cell(len(switches) - len(applied)), Cell(text=plan), Cell(share),
        ))  # fmt: skip
    caption = "Ledger of switches: from the decision until both workers had applied it, over all seeds."
    return Table("ledger", caption, columns, tuple(rows), is_long=len(rows) > 12)


def _switches_over_time(switching: Sequence[tuple[Arm, RunView]]) -> LineChart:
    series: list[Series] = []
    words: list[str] = []
    for arm, view in switching:
        at = [switch.decided_s for switch in view.run.manifest.switches]
        keep = range(0, len(at), max(1, len(at) // _MAX_POINTS))
        x = (0.0, *(at[i] for i in keep), view.run.manifest.elapsed_s)
        y = (0.0, *(float(i + 1) for i in keep), float(len(at)))
        series.append(Series(arm.name, arm.slot, x, y, has_marker=False, is_step=True))
        words.append(f"{arm.name}, seed {view.run.manifest.seed}: {len(at)} in {number(view.run.manifest.elapsed_s)} s")
    return LineChart("switches", "Switches decided so far", "; ".join(words) + ".", "s", "switches",
                     (Panel("", tuple(series)),))  # fmt: skip


def _switch_list(switching: Sequence[tuple[Arm, RunView]]) -> Table:
    columns = (
        Column("arm"),
        Column("seed"),
        Column("decided at", "s"),
        Column("from"),
        Column("to"),
        Column("prefill applied after", "ms"),
        Column("decode applied after", "ms"),
        Column("reason"),
    )
    rows: list[tuple[Cell, ...]] = []
    for arm, view in switching:
        for switch in view.run.manifest.switches[: _LISTED // len(switching)]:
            after = [None if at is None else (at - switch.decided_s) * 1e3
                     for at in (switch.prefill_applied_s, switch.decode_applied_s)]  # fmt: skip
            rows.append((
                Cell(text=arm.name), Cell(view.run.manifest.seed), Cell(switch.decided_s), Cell(text=switch.source),
                Cell(text=switch.target), *(Cell(text="never") if each is None else Cell(each) for each in after),
                Cell(text=switch.reason),
            ))  # fmt: skip
    total = sum(len(view.run.manifest.switches) for _, view in switching)
    caption = f"Switches of one run per arm: the first {len(rows)} of {total}."
    return Table("switch-list", caption, columns, tuple(rows), is_long=True)


def timeline_section(evidence: Evidence) -> Section:
    """One run of each dynamic arm: the partition as bands, with queues and KV."""
    charts: list[Chart] = []
    for arm in evidence.arms:
        points = [point for point in evidence.points if point.arm == arm.name and point.views]
        if arm.group != "dynamic" or not points:
            continue
        at = [point for point in points if point.rate == evidence.reference_rate] or points
        view = next((view for view in at[-1].views if view.run.samples), at[-1].views[0])
        if view.run.samples or view.run.manifest.switches:
            charts.append(_timeline(arm, at[-1], view))
    if not charts:
        text = "No dynamic arm has a run whose server told its plan, so there is no timeline."
        return Section("timeline", "Partition over time", (text,))
    lead = (
        "One run per dynamic arm. Bands are the units of decode (below, hatched) and prefill (above). Dotted vertical "
        "lines bound the measured window.",
    )
    return Section("timeline", "Partition over time", lead, tuple(charts))


def _timeline(arm: Arm, point: Point, view: RunView) -> TimelineChart:
    manifest, samples = view.run.manifest, view.run.samples
    bands = bands_of(manifest.switches, samples, manifest.elapsed_s, _num_units(view))
    queues = tuple(
        line
        for line in (
            _line("waiting", 1, samples, "waiting"),
            _line("prefilling", 2, samples, "prefill_running"),
            _line("decoding", 0, samples, "decode_running"),
        )
        if line
    )
    kv = _line("KV in use", 4, samples, "kv_usage", 100.0)
    alt = (
        f"{len(manifest.switches)} switches in {number(manifest.elapsed_s)} s among "
        f"{len({band.plan for band in bands})} plans"
    )
    alt += "".join(f"; {line.label} at most {number(max(y for y in line.y if y is not None))}" for line in queues)
    alt += f"; KV at most {number(max(y for y in kv.y if y is not None))} %" if kv else ""
    seconds = window(manifest)
    return TimelineChart(
        f"timeline-{arm.name}",
        f"{arm.name}, {point.load}, seed {manifest.seed}",
        alt + ".",
        bands,
        queues,
        kv,
        (seconds.start_s, seconds.end_s),
    )


def _num_units(view: RunView) -> int | None:
    """Units of the device, as the server told."""
    facts = view.run.manifest.target.settings.get("device")
    units = facts.get("units") if isinstance(facts, Mapping) else None
    return units if isinstance(units, int) else None


def bands_of(
    switches: Sequence[Switch], samples: Sequence[ServerSample], end_s: float, num_units: int | None = None
) -> tuple[Band, ...]:
    """Plans in force one after another: from switches, by when the last worker applied them (decided, where none
    acknowledged); without switches, from what the samples saw. `num_units` of the device, where it is known, are what
    one phase has under a plan that lends it everything."""
    changes: list[tuple[float, str]] = []
    if switches:
        changes.append((0.0, switches[0].source))
        for switch in switches:
            applied = [at for at in (switch.prefill_applied_s, switch.decode_applied_s) if at is not None]
            changes.append((max(applied, default=switch.decided_s), switch.target))
    else:
        told = [sample for sample in samples if sample.plan]
        changes += [(0.0, told[0].plan)] if told else []
        changes += [(b.at_s, b.plan) for a, b in itertools.pairwise(told) if a.plan != b.plan]
    ends = [start for start, _ in changes[1:]] + [end_s]
    bands: list[Band] = []
    for (start, plan), end in zip(changes, ends, strict=True):
        units = units_of(plan)
        if units is None and num_units is not None and plan in _WHOLE:
            units = (num_units, 0) if plan == "all-prefill" else (0, num_units)
        if end > start:
            bands.append(Band(start, end, plan, units and units[0], units and units[1]))
    return tuple(bands)


def _line(label: str, slot: int, samples: Sequence[ServerSample], name: str, scale: float = 1.0) -> Series | None:
    told = [(sample.at_s, getattr(sample, name)) for sample in samples if getattr(sample, name) is not None]
    if not told:
        return None
    kept = told[:: max(1, len(told) // _MAX_POINTS)]
    return Series(label, slot, tuple(at for at, _ in kept), tuple(float(value) * scale for _, value in kept),
                  has_marker=False, is_step=True)  # fmt: skip
