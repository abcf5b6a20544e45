"""What the study found, in words and tables: goodput per load, each arm against the best that has no controller."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

BOOTSTRAP = 2000
BASELINES = ("static", "elastic", "shared", "chunked")


@dataclass(frozen=True, slots=True)
class Ratio:
    """Goodput over all seeds against the reference on the same seeds, with a 95% bootstrap interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.2f} [{self.low:.2f}, {self.high:.2f}]"


def ratio(rates: Sequence[float], reference: Sequence[float]) -> Ratio:
    """Ratio of the means. Seeds are resampled in pairs, so that a hard draw counts for both; a seed on which nothing
    passed counts as 0."""
    pairs = list(zip(rates, reference, strict=True))
    rng = random.Random(0)
    draws = [rng.choices(pairs, k=len(pairs)) for _ in range(BOOTSTRAP)]
    ratios = sorted(_of_means(draw) for draw in draws)
    return Ratio(_of_means(pairs), ratios[int(BOOTSTRAP * 0.025)], ratios[int(BOOTSTRAP * 0.975) - 1])


def _of_means(pairs: Sequence[tuple[float, float]]) -> float:
    own, other = (sum(each) for each in zip(*pairs, strict=True))
    return own / other if other else (math.inf if own else 1.0)


class Table:
    """Points of one load: rate by arm and seed."""

    def __init__(self, points: Sequence[dict[str, Any]], groups: dict[str, str]) -> None:
        self.rates: dict[str, dict[int, float]] = {}
        for point in points:
            self.rates.setdefault(point["arm"], {})[point["seed"]] = point["rate"]
        self.groups = groups

    def seeds(self, arm: str) -> int:
        return len(self.rates.get(arm, {}))

    def mean(self, arm: str, seeds: int | None = None) -> float:
        """Over all its seeds, or the first few."""
        rates = [rate for seed, rate in self.rates[arm].items() if seeds is None or seed < seeds]
        return sum(rates) / len(rates)

    def best(self, group: str, num_seeds: int) -> str | None:
        """The arm of a group with the highest mean, among those run on every seed. It is chosen with knowledge of the
        result, which favours the baselines."""
        members = [arm for arm in self.rates if self.groups[arm] == group and self.seeds(arm) == num_seeds]
        return max(members, key=self.mean, default=None)

    def against(self, arm: str, reference: str) -> Ratio:
        seeds = sorted(set(self.rates[arm]) & set(self.rates[reference]))
        return ratio([self.rates[arm][seed] for seed in seeds], [self.rates[reference][seed] for seed in seeds])


def markdown(results: dict[str, Any]) -> str:
    """The report. `results` is what `benchmarks/policies.py` writes as JSON."""
    lines = ["# Policies against every baseline", "", *_preface(results), ""]
    groups = {arm["name"]: arm["group"] for arm in results["arms"]}
    tables = {
        load["name"]: Table([point for point in results["points"] if point["load"] == load["name"]], groups)
        for load in results["loads"]
    }
    lines += _verdict(results, tables)
    lines += _main_table(results, tables)
    lines += _one_for_all(results, tables)
    lines += _ablation(results, tables)
    lines += _sensitivity(results, tables)
    lines += _loads(results)
    return "\n".join(lines) + "\n"


def _preface(results: dict[str, Any]) -> list[str]:
    notes = [
        f"Simulated: the engine's own core under a virtual clock, profile `{results['profile']}` "
        f"({results['source']}), {results['seeds']} seeds. Made by `python benchmarks/policies.py`.",
        "",
        "Goodput is the highest rate (requests/s, on a grid of 4% steps) at which at least 90% of the offered requests "
        "meet their SLO; one step down is 0.96. Ratios are of means over seeds; brackets are 95% bootstrap intervals, "
        "seeds resampled in pairs. The best of each family is chosen after the fact, which favours the baselines.",
    ]
    if results["kind"] != "measured":
        notes += [
            "",
            "**The profile is a roofline prior, not a measurement: this carries no verdict about a real device.**",
        ]
    return notes


def _reference(table: Table, seeds: int) -> str:
    """The best arm without a controller."""
    found = [arm for group in BASELINES if (arm := table.best(group, seeds)) is not None]
    return max(found, key=table.mean)


def _verdict(results: dict[str, Any], tables: dict[str, Table]) -> list[str]:
    lines = ["## In words", ""]
    for load in results["loads"]:
        table, seeds = tables[load["name"]], results["seeds"]
        reference = _reference(table, seeds)
        dynamic = table.best("dynamic", seeds)
        static = table.best("static", seeds)
        assert dynamic is not None and static is not None
        against, over_static = table.against(dynamic, reference), table.against(dynamic, static)
        if against.low > 1:
            word = "dynamic control wins"
        elif against.high < 1:
            word = f"dynamic control loses to `{reference}`"
        else:
            word = f"dynamic control and `{reference}` cannot be told apart"
        lines.append(
            f"* **{load['name']}** ({load['kind']}): {word}. `{dynamic}` reaches {against} of the best baseline "
            f"(`{reference}`) and {over_static} of the best static plan (`{static}`)."
        )
    return [*lines, ""]


def _main_table(results: dict[str, Any], tables: dict[str, Table]) -> list[str]:
    seeds = results["seeds"]
    lines = [
        "## Goodput, requests/s",
        "",
        "| load | best static | best elastic | shared | best chunked | slo | on-demand | bound | best dynamic / best "
        "baseline |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for load in results["loads"]:
        table = tables[load["name"]]
        cells = []
        for group in BASELINES:
            arm = table.best(group, seeds)
            cells.append("-" if arm is None else f"{table.mean(arm):.2f} ({arm.partition(':')[2] or arm})")
        cells += [f"{table.mean(arm):.2f}" for arm in ("slo", "on-demand")]
        bound = table.best("bound", seeds)
        cells.append("-" if bound is None else f"{table.mean(bound):.2f}")
        dynamic = table.best("dynamic", seeds)
        assert dynamic is not None
        cells.append(f"{table.against(dynamic, _reference(table, seeds))} ({dynamic})")
        lines.append(f"| {load['name']} | " + " | ".join(cells) + " |")
    return [*lines, ""]


def _one_for_all(results: dict[str, Any], tables: dict[str, Table]) -> list[str]:
    """Nobody knows the load in advance: what each arm reaches of the best baseline if it serves them all."""
    lines = [
        "## One setting for every load",
        "",
        "Of the best baseline of each load, which is another one on most loads: geometric mean and worst case over the "
        "loads, on seed 0, where every arm ran. The best eight.",
        "",
        "| arm | geometric mean | worst load |",
        "|---|---|---|",
    ]
    names = [arm["name"] for arm in results["arms"] if arm["group"] in (*BASELINES, "dynamic")]
    found: list[tuple[float, str, float, str]] = []
    for name in names:
        shares = []
        for load, table in tables.items():
            best = max(rates[0] for arm, rates in table.rates.items() if table.groups[arm] in BASELINES)
            if best:
                shares.append((table.rates[name][0] / best, load))
        worst, load = min(shares)
        mean = math.exp(sum(math.log(max(share, 1e-3)) for share, _ in shares) / len(shares))
        found.append((mean, name, worst, load))
    for mean, name, worst, load in sorted(found, reverse=True)[:8]:
        lines.append(f"| {name} | {mean:.2f} | {worst:.2f} ({load}) |")
    return [*lines, ""]


def _ablation(results: dict[str, Any], tables: dict[str, Table]) -> list[str]:
    arms = [arm for arm in results["arms"] if arm["group"] == "ablation"]
    loads = [load for load in results["loads"] if any(tables[load["name"]].seeds(arm["name"]) for arm in arms)]
    if not loads:
        return []
    lines = [
        "## Ablation",
        "",
        "Goodput against the same arm with all guards, true predictions and `fcfs`.",
        "",
        "| arm | " + " | ".join(load["name"] for load in loads) + " |",
        "|---|" + "---|" * len(loads),
    ]
    for arm in arms:
        whole = arm["name"].partition(",")[0]
        cells = [
            str(tables[load["name"]].against(arm["name"], whole)) if tables[load["name"]].seeds(arm["name"]) else "-"
            for load in loads
        ]
        lines.append(f"| {arm['name']} | " + " | ".join(cells) + " |")
    return [*lines, ""]


def _sensitivity(results: dict[str, Any], tables: dict[str, Table]) -> list[str]:
    """Contention is assumed by the prior. Chunked runs nothing side by side, so it does not depend on it."""
    names = [arm["name"] for arm in results["arms"] if arm["group"] == "sensitivity"]
    scales = sorted({name.rpartition(" x")[2] for name in names}, key=float)
    whole = list(dict.fromkeys(name.partition(" @")[0] for name in names))
    loads = [load["name"] for load in results["loads"] if any(tables[load["name"]].seeds(name) for name in names)]
    if not loads:
        return []
    lines = [
        "## If contention is not what the prior assumes",
        "",
        "Goodput, requests/s, where co-running work costs half, as much as, and twice what the profile says.",
        "",
        "| arm | " + " | ".join(f"{load}: x0.5 / x1 / x2" for load in loads) + " |",
        "|---|" + "---|" * len(loads),
    ]
    assert scales == ["0.5", "2"]
    for arm in whole:
        cells = []
        for load in loads:
            table = tables[load]
            columns = [f"{arm} @ contention x0.5", arm, f"{arm} @ contention x2"]
            seeds = table.seeds(columns[0])
            cells.append(" / ".join(f"{table.mean(name, seeds):.2f}" if table.seeds(name) else "-" for name in columns))
        lines.append(f"| {arm} | " + " | ".join(cells) + " |")
    return [*lines, ""]


def _loads(results: dict[str, Any]) -> list[str]:
    lines = ["## Loads", "", "| load | kind | SLO | rate at scale 1 | what |", "|---|---|---|---|---|"]
    for load in results["loads"]:
        lines.append(f"| {load['name']} | {load['kind']} | {load['slo']} | {load['rate']:g} | {load['about']} |")
    return lines
