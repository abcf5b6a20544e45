"""Whether an arm still says what it should: its tokens beside another arm's, and what it recalls of its prompt."""

from __future__ import annotations

from collections.abc import Sequence

from colocate.bench.quality import agreement
from colocate.bench.records import RecallRecord
from colocate.bench.report.collect import Evidence, RunView
from colocate.bench.report.device import is_emulated
from colocate.bench.report.model import Cell, Column, Section, Table
from colocate.bench.report.words import listed, percent
from colocate.bench.statistics import proportion

_LISTED = 6


def quality_section(evidence: Evidence) -> Section | None:
    """None where no two arms kept token ids and none was asked for recall."""
    lead: list[str] = []
    tables: list[Table] = []
    same = _identical_table(evidence)
    if same is not None:
        tables.append(same)
        lead.append(
            "Comparable where requests are greedy. Without --deterministic, sums are made in another order under "
            "another plan, so close candidates may change places, and everything behind them."
        )
    if evidence.recalls:
        tables.append(_recall_table(evidence))
        lead.append(_recall_lead(evidence))
        lead += recall_words(evidence)
    return Section("quality", "Quality", tuple(lead), (), tuple(tables)) if tables else None


def recall_words(evidence: Evidence) -> list[str]:
    """Of arms that did not recall everything, or could not be asked; empty where all did."""
    words = []
    if short := [record for record in evidence.recalls if record.right < record.asked]:
        named = listed([f"{record.arm} ({record.right} of {record.asked})" for record in short], _LISTED)
        words.append(
            f"Not every value that stood in the prompt was recalled by {named}: what they compute may be wrong."
        )
    if failed := [record.arm for record in evidence.recalls if record.failure]:
        words.append(f"The recall of {listed(failed, _LISTED)} is not known: no server answered.")
    return words


def _identical_table(evidence: Evidence) -> Table | None:
    """Tokens equal to those of the first arm that kept them, request by request. None where fewer than two arms did."""
    by_load: dict[tuple[object, ...], dict[str, RunView]] = {}
    for view in evidence.views:
        manifest = view.run.manifest
        if not view.counts or is_emulated(manifest):  # its tokens come from a formula: no answers to compare
            continue
        if any(row.token_ids is not None and row.outcome == "finished" for row in view.run.rows):
            key = (manifest.workload_sha256, manifest.seed, manifest.offered_rate, manifest.concurrency)
            by_load.setdefault(key, {})[manifest.arm] = view
    names = [arm.name for arm in evidence.arms if any(arm.name in views for views in by_load.values())]
    if len(names) < 2:
        return None
    reference, *others = names
    rows = tuple(_identical_row(name, reference, list(by_load.values())) for name in others)
    columns = (Column("arm"), Column("compared", "requests"), Column("identical", "requests"),
               Column("identical answers", "%"), Column("tokens before the first difference", "%"),
               Column("earliest difference", "position"))  # fmt: skip
    caption = f"Answers of finished requests against those that {reference} gave to the same requests, token by token."
    return Table("identical", caption, columns, rows)


def _identical_row(name: str, reference: str, loads: Sequence[dict[str, RunView]]) -> tuple[Cell, ...]:
    found = [
        agreement(views[name].run, views[reference].run)
        for views in loads
        if reference in views
        and name in views
        and views[name].run.manifest.target.model == views[reference].run.manifest.target.model
    ]
    compared, same, tokens, equal = (
        sum(getattr(each, what) for each in found) for what in ("compared", "identical", "tokens", "equal_tokens")
    )
    firsts = [each.first_difference for each in found if each.first_difference is not None]
    shares = (same / compared if compared else None, equal / tokens if tokens else None)
    shown = (Cell(text="-") if share is None else Cell(percent(share)) for share in shares)
    first = Cell(min(firsts)) if firsts else Cell(text="none")
    return (Cell(text=name), Cell(compared), Cell(same), *shown, first)


def _recall_table(evidence: Evidence) -> Table:
    order = {arm.name: place for place, arm in enumerate(evidence.arms)}
    records = sorted(evidence.recalls, key=lambda record: order.get(record.arm, len(order)))
    columns = (Column("arm"), Column("right", "questions"), Column("asked", "questions"), Column("recalled", "%"),
               Column("model"), Column("pairs in a prompt"), Column("note"))  # fmt: skip
    caption = "Recall: values that stand in the prompt, asked of the embedded model under the flags of each arm."
    return Table("recall", caption, columns, tuple(_recall_row(record) for record in records))


def _recall_row(record: RecallRecord) -> tuple[Cell, ...]:
    if record.failure:
        none, note = Cell(text="-"), Cell(text=f"failed: {record.failure}", tone="bad")
        return (Cell(text=record.arm), none, none, none, Cell(text=record.model), Cell(record.pairs), note)
    found = proportion(record.right, record.asked)
    is_short = record.right < record.asked
    share = Cell(percent(found.value), percent(found.low), percent(found.high), tone="bad" if is_short else "")
    note = Cell(text="not all: what it computes may be wrong" if is_short else "", tone="bad" if is_short else "")
    numbers = (Cell(record.right), Cell(record.asked), share)
    return (Cell(text=record.arm), *numbers, Cell(text=record.model), Cell(record.pairs), note)


def _recall_lead(evidence: Evidence) -> str:
    asked = {record.arm for record in evidence.recalls}
    others = [arm.name for arm in evidence.arms if arm.name not in asked]
    left = f" Not asked: {listed(others, _LISTED)}." if others else ""
    return (
        "Recall was asked once per arm, of the embedded model, which finds every value where its KV is right; it says "
        f"nothing about the model of the runs, and other systems are not asked.{left}"
    )
