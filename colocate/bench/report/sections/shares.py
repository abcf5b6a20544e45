"""Share of the device against rate, and partition and scheduler apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from colocate.bench.report.collect import Evidence, attainment_of, split_of
from colocate.bench.report.curves import RATE, Curve, best, compare
from colocate.bench.report.model import TARGET_SHARE, Arm, Cell, Column, HeatChart, Section, Table
from colocate.bench.report.sections.rates import open_end
from colocate.bench.report.words import listed, number, percent

_CELLS = {
    (False, False): "neither",
    (True, False): "partition only",
    (False, True): "scheduler only",
    (True, True): "both",
}


def heat_section(evidence: Evidence) -> Section:
    """Attainment over share x rate of the static plans."""
    splits = sorted(
        ((split[1], arm) for arm in evidence.arms if arm.group == "static" and (split := split_of(arm))),
        key=lambda pair: pair[0],
    )
    rates = [rate for rate in evidence.rates if any(arm.name in evidence.at(rate) for _, arm in splits)]
    if len(splits) < 2 or not rates:
        measured = f"{splits[0][1].name} alone" if splits else "none"
        text = f"A map of share against rate needs two static plans with runs that count; there is {measured}."
        return Section("share-map", "Share against rate", (text,))
    z = tuple(
        tuple(percent(attainment_of(at[arm.name])) if arm.name in (at := evidence.at(rate)) else None for rate in rates)
        for _, arm in splits
    )
    best_of = []
    for column, rate in enumerate(rates):
        known = [(kept, units) for row, (units, _) in zip(z, splits, strict=True) if (kept := row[column]) is not None]
        if known:
            share = max(share for share, _ in known)
            units = listed([str(units) for each, units in known if each == share])
            best_of.append(f"{units} units at {rate:g} requests/s ({number(share)} %)")
    chart = HeatChart("share-heat", "Requests within SLO, %, by units of decode and offered rate",
                      f"Best share: {'; '.join(best_of)}.", "offered requests/s", "units of decode",
                      tuple(f"{rate:g}" for rate in rates), tuple(str(units) for units, _ in splits), z)  # fmt: skip
    lead = (
        f"Static plans only; framed cells keep {TARGET_SHARE * 100:g}%. The best share of decode by rate: "
        f"{'; '.join(best_of)}.",
    )
    return Section("share-map", "Share against rate", lead, (chart,))


def ablation_section(evidence: Evidence, found: Mapping[str, Curve]) -> Section:
    """Partition only, scheduler only, both: where the arms allow it."""
    cells: dict[tuple[bool, bool], list[Curve]] = {key: [] for key in _CELLS}
    for each in found.values():
        parts = parts_of(each.arm, _settings(evidence, each.arm))
        if parts is not None:
            cells[parts].append(each)
    columns = (Column("what is on"), Column("best arm"), Column("goodput@90", RATE), Column("minus neither"),
               Column("unit of the difference"))  # fmt: skip
    chosen = {key: best(of) for key, of in cells.items()}
    rows = tuple(_ablation_row(name, chosen[key], chosen[False, False]) for key, name in _CELLS.items())
    missing = [name for key, name in _CELLS.items() if chosen[key] is None]
    lead = [
        "Partition: prefill and decode have shares of their own. Scheduler: the queue is not first come, first served, "
        "or admission is throttled. Each row is the best arm of its kind, chosen with the same data as it is shown by.",
    ]
    if missing:
        lead.append(f"Missing: {listed(missing)}. Add arms such as {listed(_examples(missing))}.")
    table = Table("ablation-table", "Partition and scheduler apart: the best arm of each kind.", columns, rows)
    return Section("ablation", "Partition and scheduler apart", tuple(lead), (), (table,))


def _ablation_row(name: str, curve: Curve | None, base: Curve | None) -> tuple[Cell, ...]:
    nothing = Cell(text="-", tone="muted")
    if curve is None:
        return (Cell(text=name), Cell(text="missing", tone="muted"), nothing, nothing, nothing)
    rate = curve.found.rate_per_s
    if curve.is_below:
        value = Cell(text=f"below {number(curve.points[0].rate_per_s)}", tone="bad")
    else:
        value = open_end(rate.value, rate.low) if curve.is_open else Cell(rate.value, rate.low, rate.high)
    more, unit = nothing, nothing
    if base is not None and base is not curve:
        found = compare(curve, base)
        words = "resolved" if found.is_resolved else "not distinguishable"
        more = nothing if found.value is None else Cell(found.value, found.low, found.high, words)
        unit = Cell(text=found.unit if found.unit == RATE else f"{found.unit}, {found.what}")
    return (Cell(text=name), Cell(text=curve.arm.name), value, more, unit)


def _examples(missing: Sequence[str]) -> list[str]:
    arms = {
        "neither": "shared",
        "partition only": "slo+discipline=fcfs",
        "scheduler only": "shared+discipline=edf",
        "both": "slo+discipline=edf",
    }
    return [arms[name] for name in missing]


def _settings(evidence: Evidence, arm: Arm) -> Mapping[str, object]:
    """How its scheduler was set, by name: what the server told, else its flags."""
    for view in evidence.views:
        told = view.run.manifest.target.settings.get("config") if view.run.manifest.arm == arm.name else None
        scheduler = told.get("scheduler") if isinstance(told, Mapping) else None
        if isinstance(scheduler, Mapping):
            return scheduler
    pairs = zip(arm.flags, arm.flags[1:], strict=False)
    return {flag.removeprefix("--").replace("-", "_"): value for flag, value in pairs if flag.startswith("--")}


def parts_of(arm: Arm, settings: Mapping[str, object]) -> tuple[bool, bool] | None:
    """Whether an arm of ours has a partition, and a scheduler; None of peers and chunked arms: they have one worker."""
    if arm.group not in ("static", "shared", "dynamic"):
        return None
    is_plain = settings.get("discipline", "fcfs") == "fcfs" and settings.get("admission", "greedy") == "greedy"
    return arm.group != "shared", not is_plain
