"""A point that could not be measured: a run folder like any other, whose manifest says why. Nothing was sent."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime

from colocate.bench.folder import RunFolder
from colocate.bench.manifest import git_facts, host_facts, versions, written_command
from colocate.bench.records import SCHEMA_VERSION, Phase, RequestRow, RunManifest, TargetFacts
from colocate.bench.sweep.order import RunSpec
from colocate.bench.sweep.plan import SweepPlan
from colocate.workload.rows import Workload, to_jsonl

KIND = "no_server"


def write_failed(
    folder: RunFolder,
    plan: SweepPlan,
    spec: RunSpec,
    system: str,
    workload: Workload,
    reason: str,
    command: tuple[str, ...] = (),
) -> None:
    """Every request of the load with outcome `not_sent`, and a manifest of status `failed`. Raises ConfigError where
    the disk does not take it."""
    load = plan.load
    for index, row in enumerate(workload.rows):
        is_warm_up = row.arrival_s < load.warmup_s
        is_over = row.arrival_s >= workload.duration_s - load.cooldown_s
        phase: Phase = "warmup" if is_warm_up else "cooldown" if is_over else "measured"
        folder.add_row(
            RequestRow(
                index=index,
                scheduled_s=row.arrival_s,
                phase=phase,
                prompt_tokens=row.prompt_tokens,
                max_tokens=row.output_tokens,
                outcome="not_sent",
                error="there was no server to send it to",
                error_kind=KIND,
                slo_class=row.slo_class,
                session=row.session,
            )
        )
    folder.close()
    folder.write_manifest(
        RunManifest(
            schema_version=SCHEMA_VERSION,
            run_id=spec.run_id,
            status="failed",
            reasons=(reason,),
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            command=plan.command or written_command(),
            arm=spec.arm,
            seed=plan.run_seed(spec.seed, spec.level),
            offered_rate=spec.rate,
            concurrency=None,
            workload=workload.name,
            workload_sha256=hashlib.sha256(to_jsonl(workload)).hexdigest(),
            duration_s=workload.duration_s,
            warmup_s=load.warmup_s,
            cooldown_s=load.cooldown_s,
            elapsed_s=0.0,
            target=TargetFacts(url="", system=system, model=plan.model, command=command),
            slo_classes=plan.slo_classes,
            default_slo_class=plan.default_slo_class,
            client={"versions": versions()},
            host=host_facts(),
            git=git_facts(),
        )
    )
