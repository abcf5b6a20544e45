"""What was compared: each arm in words and by the settings it was started with, and the load that all of them had."""

from __future__ import annotations

import shlex

from colocate.bench.report.collect import Evidence, split_of
from colocate.bench.report.load import load_words, model_words
from colocate.bench.report.model import Arm, Cell, Column, Section, Table
from colocate.bench.report.words import count, listed

_POLICIES = {
    "elastic": "two workers and one split; a phase that has nothing to do lends its units to the other",
    "slo": "two workers; decode gets the least that keeps its targets by the latency model, behind guards",
    "on-demand": "two workers; split only when a miss is predicted",
}


def arms_section(evidence: Evidence) -> Section:
    """Names a reader may not know, explained once."""
    counted = [view for view in evidence.views if view.counts]
    rates = listed([f"{rate:g}" for rate in evidence.rates])
    at = f" at {rates} requests/s" if evidence.rates else ""
    lead = (
        f"{count(len(evidence.arms), 'arm')}{at}, {count(len(counted), 'run')} that count. "
        f"The load: {model_words(evidence.views)}, {load_words(evidence.views, evidence.sweeps)}. "
        "Each arm got the same requests at the same times, unless Validity says otherwise.",
    )
    columns = (Column("arm"), Column("what it is"), Column("its settings"))
    rows = tuple(
        (Cell(text=arm.name), Cell(text=arm_words(arm)), Cell(text=shlex.join(arm.flags) or "-"))
        for arm in evidence.arms
    )
    return Section("arms", "What was compared", lead, (), (Table("arms-table", "The arms.", columns, rows),))


def arm_words(arm: Arm) -> str:
    """One line for a reader who has not seen `colocate serve`."""
    split = split_of(arm)
    words = {
        "static": f"two workers, {count(split[0], 'unit')} for prefill and {split[1]} for decode, all the time"
        if split
        else "",
        "shared": "two workers that share all units, without a partition",
        "chunked": "one worker; prompts are cut into chunks that run together with decode",
        "dynamic": _POLICIES.get(arm.name.partition("+")[0].partition(":")[0], "the partition follows the load"),
        "peer": f"another system: {arm.system}",
    }
    return words.get(arm.group, "") or arm.group
