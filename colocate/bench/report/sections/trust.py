"""What may be wrong with the figures."""

from __future__ import annotations

from colocate.bench.report.collect import Evidence
from colocate.bench.report.model import Cell, Column, Section, Table
from colocate.bench.report.words import count, listed


def validity_section(evidence: Evidence) -> Section:
    """Runs that do not count, and why; the client's own lateness; whether arms saw the same requests."""
    left_out = [view for view in evidence.views if not view.counts]
    failed = [view for view in evidence.views if view.counts and view.run.status != "valid"]
    lead = [f"{len(evidence.views) - len(left_out)} of {count(len(evidence.views), 'run')} count."]
    lead += list(evidence.slo_notes)
    if left_out:
        lead.append(f"{count(len(left_out), 'run')} left out, listed below: a late client, a cut run or a failed start "
                    "measures nothing of the server.")  # fmt: skip
    if failed:
        lead.append(f"{count(len(failed), 'run')} of a server that failed under load count: its requests are misses.")
    lead += missing_words(evidence) + _differences(evidence)
    unknown = sorted({name for view in evidence.views for name in view.figures.unknown_classes})
    if unknown:
        lead.append(f"Requests of classes without targets ({listed(unknown)}) were judged by the default class.")
    tables = [_left_out_table(evidence)] if left_out or failed or evidence.unreadable else []
    tables.append(_lateness_table(evidence))
    return Section("validity", "Validity", tuple(lead), (), tuple(tables))


def missing_words(evidence: Evidence) -> list[str]:
    """What sweeps set out to do and have no run of."""
    done = {(view.run.manifest.arm, view.run.manifest.offered_rate, view.run.manifest.seed) for view in evidence.views}
    missing = [
        f"{arm.name} at {rate:g}/s, seed {seed}"
        for sweep in evidence.sweeps
        for arm in sweep.arms
        for rate in sweep.rates
        for seed in sweep.seeds
        if (arm.name, rate, seed) not in done
    ]
    return [f"{count(len(missing), 'run')} of the sweep missing: {listed(missing, 6)}."] if missing else []


def _differences(evidence: Evidence) -> list[str]:
    """Whether what should be one thing is one thing."""
    loads: dict[tuple[object, ...], set[str]] = {}
    for view in evidence.views:
        manifest = view.run.manifest
        key = (manifest.offered_rate, manifest.concurrency, manifest.seed)
        loads.setdefault(key, set()).add(manifest.workload_sha256)
    words = []
    differing = [key for key, hashes in loads.items() if len(hashes) > 1]
    if differing:
        words.append(
            f"Arms did not see the same requests in {len(differing)} of {count(len(loads), 'pair')} of load and seed."
        )
    hosts = {str(view.run.manifest.host.get("processor")) for view in evidence.views}
    commits = {f"{view.run.manifest.git.get('commit', 'unknown')}" for view in evidence.views}
    if len(hosts) > 1:
        words.append(f"Runs come from different processors: {listed(sorted(hosts))}.")
    if len(commits) > 1:
        words.append(f"Runs come from different commits: {listed(sorted(commits))}.")
    return words


def _left_out_table(evidence: Evidence) -> Table:
    columns = (Column("run"), Column("arm"), Column("load"), Column("seed"), Column("status"), Column("counts"),
               Column("why"))  # fmt: skip
    rows = []
    for view in evidence.views:
        if view.counts and view.run.status == "valid":
            continue
        manifest = view.run.manifest
        load = (
            f"{manifest.concurrency} at once"
            if manifest.offered_rate is None
            else f"{manifest.offered_rate:g} requests/s"
        )
        rows.append((Cell(text=manifest.run_id), Cell(text=manifest.arm), Cell(text=load), Cell(manifest.seed),
                     Cell(text=view.run.status, tone="bad"), Cell(text="yes" if view.counts else "no"),
                     Cell(text=view.why_not)))  # fmt: skip
    for broken in evidence.unreadable:
        rows.append((Cell(text=broken.folder.name), Cell(text="-"), Cell(text="-"), Cell(text="-"),
                     Cell(text="unreadable", tone="bad"), Cell(text="no"), Cell(text=broken.problem)))  # fmt: skip
    return Table("left-out", "Runs that failed, were cut, or whose client was late.", columns, tuple(rows))


def _lateness_table(evidence: Evidence) -> Table:
    columns = (Column("arm"), Column("runs"), Column("client late p99, worst run", "ms"), Column("bound", "ms"),
               Column("tokens counted by"))  # fmt: skip
    rows = []
    for arm in evidence.arms:
        views = [view for view in evidence.views if view.run.manifest.arm == arm.name]
        late = [view.figures.lateness_s.p99 for view in views if view.figures.lateness_s.p99 is not None]
        bounds = {
            bound for view in views if isinstance(bound := view.run.manifest.client.get("lateness_bound_s"), float)
        }
        sources = sorted({source for view in views for source in view.figures.token_sources})
        rows.append(
            (
                Cell(text=arm.name),
                Cell(len(views)),
                Cell(max(late) * 1e3) if late else Cell(text="-"),
                Cell(min(bounds) * 1e3) if bounds else Cell(text="-"),
                Cell(text=listed(sources) or "-"),
            )
        )
    return Table("lateness", "How late the client itself was: sent minus scheduled.", columns, tuple(rows))
