"""Recompute a run's figures from its raw rows, with nothing but the standard library, and compare.

    colocate bench --out RUN                 # writes RUN/figures.json
    python benchmarks/recompute.py RUN [RUN ...]

Takes only the targets from figures.json; shares no code with colocate. Exits 1 if a figure differs by more than
rounding (1 in 10^9).
"""

import json
import math
import sys
from itertools import chain, pairwise
from pathlib import Path
from statistics import fmean, quantiles


def latencies(row):
    """(TTFT, gaps, p99 of its gaps, TPOT, E2E); the last three of a finished answer with more than one token."""
    times, done = row.get("token_s", []), row["outcome"] == "finished"
    gaps = [later - earlier for earlier, later in pairwise(times)]
    late = sorted(gaps)[-1 - len(gaps) // 100] if gaps and done else None  # of each full hundred, one is forgiven
    tpot = (times[-1] - times[0]) / (row["output_tokens"] - 1) if gaps and done and row["output_tokens"] > 1 else None
    since = row["scheduled_s"]
    return times[0] - since if times else None, gaps, late, tpot, times[-1] - since if times and done else None


def is_good(row, slo):
    ttft, _, late, tpot, _ = latencies(row)
    has_ttft = "ttft_s" in slo or "ttft_per_token_s" in slo
    target = slo.get("ttft_s", 0) + slo.get("ttft_per_token_s", 0) * row["prompt_tokens"] if has_ttft else math.inf
    kept = not has_ttft or (ttft is not None and ttft <= target)
    kept = kept and (late or 0) <= slo.get("itl_s", math.inf) and (tpot or 0) <= slo.get("tpot_s", math.inf)
    return kept and row["outcome"] == "finished"


def recompute(run, told):
    facts = json.loads((run / "manifest.json").read_text())
    every = [json.loads(line) for line in (run / "requests.jsonl").read_text().splitlines()]
    if facts["status"] == "partial" and not facts["elapsed_s"]:  # the client was killed
        facts["elapsed_s"] = max([row.get("end_s") or row["scheduled_s"] for row in every], default=0)
    start, end = facts["warmup_s"], min(facts["duration_s"] - facts["cooldown_s"], facts["elapsed_s"])
    last = facts["elapsed_s"] if facts["concurrency"] is None else -math.inf  # what was due later, nobody offered
    per_s = 1 / (end - start) if end > start else math.nan
    rows = [row for row in every if row["phase"] == "measured"]
    rows = [row for row in rows if row["outcome"] != "not_sent" or row["scheduled_s"] < last]
    slos = {slo["name"]: slo for slo in told["classes"]}
    slo_of = [
        slos.get(row.get("slo_class") or told["default_class"], slos.get(told["default_class"], {})) for row in rows
    ]
    good = sum(map(is_good, rows, slo_of))
    tokens = sum(start <= at < end for row in every for at in row.get("token_s", []))
    prompts = [row["prompt_tokens"] for row in every if row.get("token_s") and start <= row["token_s"][0] < end]
    yield told["num_offered"], len(rows), "num_offered"
    yield told["attainment_by_denominator"]["colocate"]["value"], good / len(rows) if rows else None, "attainment"
    if told["denominator"] == "colocate":
        yield told["goodput_per_s"], good * per_s, "goodput_per_s"
    yield told["output_tokens_per_s"], tokens * per_s, "output_tokens_per_s"
    yield told["input_tokens_per_s"], sum(prompts) * per_s, "input_tokens_per_s"
    columns = zip(*map(latencies, rows), strict=True)
    for name, values in zip(("ttft_s", "itl_s", "itl_p99_s", "tpot_s", "e2e_s"), columns, strict=bool(rows)):
        known = [*chain(*values)] if name == "itl_s" else [value for value in values if value is not None]
        cuts = quantiles(known * 2 if len(known) == 1 else known, n=100, method="inclusive") if known else [None] * 99
        yield told[name]["mean"], fmean(known) if known else None, f"{name} mean"
        for percent in (50, 75, 90, 95, 99):
            yield told[name][f"p{percent}"], cuts[percent - 1], f"{name} p{percent}"


def is_same(theirs, mine):
    if theirs is None or mine is None:
        return theirs is mine or mine != mine
    return math.isclose(theirs, mine, rel_tol=1e-9, abs_tol=1e-12)


if __name__ == "__main__":
    num_checked = num_wrong = 0
    for folder in map(Path, sys.argv[1:]):
        for theirs, mine, name in recompute(folder, json.loads((folder / "figures.json").read_text())):
            num_checked += 1
            if not is_same(theirs, mine):
                num_wrong += 1
                print(f"{folder}: {name} is {theirs}, recomputed {mine}")
    print(f"{num_checked} figures recomputed, {num_wrong} differ")
    sys.exit(bool(num_wrong) or not num_checked)
