"""What the two scripts print."""

from __future__ import annotations

from collections.abc import Sequence

from live_study.compare import FIGURES, TARGET, Comparison, Order, median_distances
from live_study.host import num_cores

_SHORT = {
    "ttft_p50_s": ("TTFT p50 ms", 1e3),
    "ttft_p99_s": ("TTFT p99 ms", 1e3),
    "tpot_p50_s": ("TPOT p50 ms", 1e3),
    "tpot_p99_s": ("TPOT p99 ms", 1e3),
    "itl_p99_s": ("ITL p99 ms", 1e3),
    "goodput": ("goodput /s", 1.0),
}


def print_comparisons(comparisons: Sequence[Comparison]) -> None:
    """One line per run: live / simulated, and the distance."""
    width = max(len(_name(each)) for each in comparisons) + 2
    print(f"{'':{width}}" + "".join(f"{_SHORT[name][0]:>27}" for name in FIGURES) + f"{'attainment':>34}")
    for each in comparisons:
        cells = "".join(f"{_cell(each, name):>27}" for name in FIGURES)
        low, high = each.attainment_range
        shares = f"{each.attainment:.3f} / {each.attainment_simulated:.3f} ({low:.3f} to {high:.3f})"
        print(f"{_name(each):{width}}{cells}{shares:>34}")


def _name(each: Comparison) -> str:
    return f"{each.load} {each.seed} {each.arm}"


def _cell(each: Comparison, name: str) -> str:
    figure, scale = each.figures.get(name), _SHORT[name][1]
    if figure is None:
        return "-"
    return f"{figure.live * scale:.4g} / {figure.simulated * scale:.4g} {figure.distance:+7.1%}"


def print_distances(comparisons: Sequence[Comparison]) -> None:
    print(f"\n|simulated / live - 1| over {len(comparisons)} runs; target {TARGET:.0%} on medians")
    print(f"{'':14}{'mean':>9}{'max':>9}{'within 10%':>12}{'on the engine clock: mean':>28}{'max':>9}")
    for name, found in median_distances(comparisons).items():
        print(
            f"{_SHORT[name][0]:14}{found['mean']:9.1%}{found['max']:9.1%}{found['within_target']:12.0%}"
            f"{found['engine_mean']:28.1%}{found['engine_max']:9.1%}"
        )


def print_orders(load: str, found: Sequence[Order]) -> None:
    for each in found:
        verdict = "agree" if not each.opposed else "OPPOSED: " + ", ".join(each.opposed)
        print(f"{load}, by {each.figure}: {each.agreeing} pairs agree, {each.close} too close to call, {verdict}")
        print(f"    live      {', '.join(each.live)}")
        print(f"    simulated {', '.join(each.simulated)}")


def print_host(comparisons: Sequence[Comparison]) -> None:
    """Cores in use on average over all runs, and in the busiest one."""
    names = sorted({name for each in comparisons for name in each.live.cores})
    means = {name: _mean([each.live.cores.get(name, 0.0) for each in comparisons]) for name in names}
    ours = [sum(used for name, used in each.live.cores.items() if name != "others") for each in comparisons]
    late = max((each.live.late_s.p99 or 0.0) for each in comparisons)
    print(
        f"\nhost: {_mean(ours):.2f} of {num_cores()} cores on average, {max(ours):.2f} in the busiest run ("
        + ", ".join(f"{name} {used:.2f}" for name, used in means.items())
        + f"); sent late by {late * 1e3:.1f} ms at p99 in the worst run; "
        f"{sum(each.live.num_errors for each in comparisons)} requests failed"
    )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
