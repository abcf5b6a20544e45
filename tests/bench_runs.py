"""Loads for the bench client, plans against a golden server, and what a run has written."""

from __future__ import annotations

from pathlib import Path

import msgspec

from colocate.bench.plan import BenchPlan
from colocate.bench.records import RequestRow, RunManifest
from colocate.workload.rows import Workload, WorkloadRow, make_workload
from tests.golden_server import (
    GoldenProcess,
)
from tests.limits import LIMIT_S

NEVER_LATE_S = 3600.0  # where a test is not about lateness: it may run on a machine that is busy


def load_of(*rows: WorkloadRow, duration_s: float | None = None) -> Workload:
    return make_workload("rows", rows, duration_s)


def same_rows(number: int, gap_s: float = 0.0, prompt_tokens: int = 6, output_tokens: int = 4) -> Workload:
    rows = [WorkloadRow(index * gap_s, prompt_tokens, output_tokens) for index in range(number)]
    return make_workload("same", rows, max(number * gap_s, 0.05))


def plan_for(golden: GoldenProcess, out: Path, workload: Workload, **more: object) -> BenchPlan:
    settings = {"lateness_bound_s": NEVER_LATE_S, "drain_s": LIMIT_S, **more}
    return BenchPlan(url=golden.url, workload=workload, out=out, **settings)  # type: ignore[arg-type]


def rows_in(out: Path) -> list[RequestRow]:
    return [msgspec.json.decode(line, type=RequestRow) for line in (out / "requests.jsonl").read_bytes().splitlines()]


def manifest_in(out: Path) -> RunManifest:
    return msgspec.json.decode((out / "manifest.json").read_bytes(), type=RunManifest)
