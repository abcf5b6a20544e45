"""Recompute a run's figures from its raw rows, with the standard library alone, and hold them against what bench wrote.

    colocate bench URL --out RUN ...             # leaves RUN/figures.json
    python benchmarks/recompute.py RUN [RUN ...]

Shares no code with colocate; of figures.json it takes the promises. Exits 1 if a figure differs by more than rounding
(1 in 10^9), and 2 at a run that was cut before its end, which it does not handle.
"""

import json
import math
import sys
from itertools import chain, pairwise
from pathlib import Path
from statistics import quantiles


def latencies(row):
    """TTFT, gaps, TPOT and E2E, in seconds from when the request was due; TPOT and E2E of what finished."""
    times, due, done = row.get("token_s", []), row["scheduled_s"], row["outcome"] == "finished"
    gaps = [later - earlier for earlier, later in pairwise(times)]
    tpot = (times[-1] - times[0]) / len(gaps) if gaps and done else None
    return times[0] - due if times else None, gaps, tpot, times[-1] - due if times and done else None


def is_good(row, slo):
    ttft, gaps, tpot, _ = latencies(row)
    longest = sorted(gaps)[-1 - len(gaps) // 100] if gaps else 0  # of each full hundred gaps one is forgiven
    promised = slo.get("ttft_s", 0) + slo.get("ttft_per_token_s", 0) * row["prompt_tokens"]
    in_time = not promised or (ttft is not None and ttft <= promised)
    steady = longest <= slo.get("itl_s", math.inf) and (tpot or 0) <= slo.get("tpot_s", math.inf)
    return row["outcome"] == "finished" and in_time and steady


def recompute(facts, rows, told):
    """(what bench wrote, what the rows say, name) of every figure."""
    start, end = facts["warmup_s"], facts["duration_s"] - facts["cooldown_s"]
    taken = [row for row in rows if row["outcome"] != "not_sent" or facts["concurrency"] is None]
    offered = [row for row in taken if row["phase"] == "measured"]
    slos = {slo["name"]: slo for slo in told["classes"]}
    good = sum(is_good(row, slos.get(row.get("slo_class"), slos.get(told["default_class"], {}))) for row in offered)
    answered = [row for row in rows if row.get("token_s")]
    prompts = sum(row["prompt_tokens"] for row in answered if start <= row["token_s"][0] < end)
    yield told["num_offered"], len(offered), "offered"
    yield told["attainment"]["value"], good / len(offered) if offered else None, "attainment"
    yield told["goodput_per_s"], good / (end - start), "goodput"
    yield told["input_tokens_per_s"], prompts / (end - start), "input throughput"
    arrived = sum(start <= at < end for row in answered for at in row["token_s"])
    yield told["output_tokens_per_s"], arrived / (end - start), "output throughput"
    ttft, gaps, tpot, e2e = zip(*map(latencies, offered), strict=True) if offered else [()] * 4
    for name, values in (("ttft_s", ttft), ("itl_s", chain(*gaps)), ("tpot_s", tpot), ("e2e_s", e2e)):
        known = [value for value in values if value is not None]
        cuts = quantiles(known * 2 if len(known) == 1 else known, n=100, method="inclusive") if known else [None] * 99
        yield from ((told[name][f"p{percent}"], cuts[percent - 1], f"{name} p{percent}") for percent in (50, 90, 99))


def is_same(theirs, mine):
    return theirs == mine or (None not in (theirs, mine) and math.isclose(theirs, mine, rel_tol=1e-9, abs_tol=1e-12))


if __name__ == "__main__":
    found = []
    for run in map(Path, sys.argv[1:]):
        facts, told = (json.loads((run / name).read_text()) for name in ("manifest.json", "figures.json"))
        if told["status"] == "partial" or not facts["elapsed_s"]:
            print(f"{run}: cut before its end: not handled", file=sys.stderr)
            sys.exit(2)
        rows = [json.loads(line) for line in (run / "requests.jsonl").read_text().splitlines()]
        found += [(run, *figure) for figure in recompute(facts, rows, told)]
    wrong = [f"{run}: {name} is {a}, recomputed {b}" for run, a, b, name in found if not is_same(a, b)]
    print(*wrong, f"{len(found)} figures recomputed, {len(wrong)} differ", sep="\n")
    sys.exit(bool(wrong) or not found)
