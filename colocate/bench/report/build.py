"""Evidence to ReportModel: the one place where a report's numbers are put together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import colocate
from colocate.bench.report.collect import Evidence, attainment_of, collect
from colocate.bench.report.comparison import check_arms, comparison_sections, comparison_words
from colocate.bench.report.curves import Curve, curves, goodput_of, slo_cases
from colocate.bench.report.device import device_words
from colocate.bench.report.model import REPORT_VERSION, ReportModel, Section, SloVerdict, Verdict
from colocate.bench.report.sections.definitions import definitions_section
from colocate.bench.report.sections.latency import frontier_section, latency_section
from colocate.bench.report.sections.plans import residency_section, timeline_section
from colocate.bench.report.sections.quality import quality_section, recall_words
from colocate.bench.report.sections.rates import attainment_section, goodput_section
from colocate.bench.report.sections.server import failures_section, memory_section
from colocate.bench.report.sections.shares import ablation_section, heat_section
from colocate.bench.report.sections.trust import missing_words, reproduce_section, validity_section
from colocate.bench.report.verdict import judge
from colocate.bench.report.words import count, listed, number, percent


@dataclass(frozen=True, slots=True)
class ReportRequest:
    """What is asked. `compare`: two folders, or two arms of `results`."""

    results: tuple[Path, ...]
    title: str = ""
    slo: tuple[str, ...] = ()
    denominator: str = "colocate"
    compare: tuple[str, str] | None = None


def build_report(request: ReportRequest) -> ReportModel:
    """Raises ConfigError: results that cannot be read, an unknown SLO, denominator or arm."""
    if request.compare is not None:
        return _compare_report(request, request.compare)
    evidence = collect(request.results, request.slo, request.denominator)
    return _full_report(evidence, request.title or f"colocate report: {listed(evidence.names, 3)}")


def _full_report(evidence: Evidence, title: str) -> ReportModel:
    cases = slo_cases(evidence)
    by_case = {case.name: curves(evidence, case) for case in cases}
    verdicts = tuple(judge(case, by_case[case.name]) for case in cases)
    found = by_case[cases[0].name]
    goodput = tuple(goodput_of(case, curve) for case in cases for curve in by_case[case.name].values())
    own = [each for each in goodput if each.slo == cases[0].name]
    sections = (
        attainment_section(evidence, found),
        goodput_section(evidence, found, own),
        latency_section(evidence),
        frontier_section(evidence),
        residency_section(evidence),
        timeline_section(evidence),
        memory_section(evidence),
        failures_section(evidence),
        definitions_section(evidence, verdicts),
        heat_section(evidence),
        ablation_section(evidence, found),
        quality_section(evidence),
        validity_section(evidence),
        reproduce_section(evidence),
    )
    device = device_words([view.run.manifest for view in evidence.views])
    headline = _headline(evidence, device, verdicts[0], found)
    shown = tuple(each for each in verdicts if each.slo == cases[0].name or each.slo.startswith("class "))
    verdict = Verdict(device, headline, shown, _cautions(evidence, found))
    return ReportModel(
        REPORT_VERSION,
        title,
        colocate.__version__,
        max(view.run.manifest.created for view in evidence.views),
        evidence.rule,
        evidence.names,
        verdict,
        evidence.arms,
        goodput,
        tuple(section for section in sections if section is not None),
    )


def _headline(evidence: Evidence, device: str, verdict: SloVerdict, found: Mapping[str, Curve]) -> str:
    """The first sentence: where, under which SLO, and what came out."""
    slo = verdict.targets if verdict.slo in ("all classes", "finished") else f"{verdict.slo} ({verdict.targets})"
    start = f"Measured on {device}. Under the SLO {slo}"
    dynamic, static = verdict.best_dynamic, verdict.best_static
    if verdict.finding == "dynamic":
        return f"{start}, dynamic partitioning pays: {dynamic} beats the best static plan, {static}."
    if verdict.finding == "static":
        return f"{start}, the best static plan is enough: {static} beats {dynamic}, the best dynamic arm."
    if verdict.finding == "tie" and found[dynamic].is_open and found[static].is_open:
        return (
            f"{start}, the best static plan is enough up to the highest rate tested: {static} and {dynamic} keep 90%."
        )
    if verdict.finding == "tie":
        return (
            f"{start}, the best static plan is enough: {dynamic}, the best dynamic arm, is not distinguishable from "
            f"{static}."
        )
    if verdict.finding == "unresolved":
        return f"{start}, it is unresolved whether {dynamic} or {static} keeps more."
    if verdict.winner and found[verdict.winner].is_below:
        return f"{start}, no arm keeps 90% of the requests at its lowest rate."
    if verdict.winner:
        only = "" if len(found) > 1 else "the only arm, "
        return f"{start}, {only}{verdict.winner} has the highest goodput@90 of {count(len(found), 'arm')}."
    if found:
        at_every_rate = [curve.arm.name for curve in found.values() if curve.is_open]
        return f"{start}, {len(at_every_rate)} of {count(len(found), 'arm')} keep 90% at every rate tested."
    return f"{start}, there is no valid run at an offered rate{_closed(evidence)}."


def _closed(evidence: Evidence) -> str:
    closed = [point for point in evidence.points if point.rate is None and point.views]
    shares = [f"{point.arm} keeps {number(percent(attainment_of(point)))} % with {point.load}" for point in closed]
    return f"; in closed loop, {listed(shares, 4)}" if shares else ""


def _cautions(evidence: Evidence, found: Mapping[str, Curve]) -> tuple[str, ...]:
    """What a reader of the first screen has to know before believing it."""
    words = list(evidence.slo_notes)
    left_out = [view for view in evidence.views if not view.counts]
    empty = [f"{point.arm} at {point.load}" for point in evidence.points if not point.views]
    if empty:
        words.append(f"Failed, without a run that counts: {listed(empty, 6)}.")
    if left_out:
        words.append(f"{len(left_out)} of {count(len(evidence.views), 'run')} left out (late client, cut, or failed).")
    if evidence.unreadable:
        words.append(f"{count(len(evidence.unreadable), 'result')} could not be read.")
    words += recall_words(evidence)
    words += missing_words(evidence)
    seeds = {curve.found.rate_per_s.num_seeds for curve in found.values()}
    if seeds and min(seeds) < 3:
        words.append(f"Some arms have {count(min(seeds), 'seed')} only: intervals see little of how seeds differ.")
    if evidence.rule != "colocate":
        words.append(f"Attainment uses the denominator of {evidence.rule}, not ours (good / offered).")
    not_told = sorted({view.run.manifest.arm for view in evidence.views if not view.run.manifest.target.device})
    if not_told and len(not_told) < len(evidence.arms):
        words.append(f"These servers did not name their device: {listed(not_told, 6)}.")
    return tuple(words)


def _compare_report(request: ReportRequest, names: tuple[str, str]) -> ReportModel:
    folders = tuple(Path(name) for name in names)
    if all(folder.is_dir() for folder in folders):
        sides = tuple(collect((folder,), request.slo, request.denominator) for folder in folders)
        labels = (sides[0].names[0], sides[1].names[0])
        labels = names if labels[0] == labels[1] else labels
    else:
        every_arm = collect(request.results, request.slo, request.denominator)
        check_arms(every_arm, names)
        evidence = every_arm.only(names)
        sides, labels = (evidence, evidence), names
    pairs, sections = comparison_sections(sides[0], sides[1], labels, is_arms=sides[0] is sides[1])
    views = sides[0].views if sides[0] is sides[1] else sides[0].views + sides[1].views
    device = device_words([view.run.manifest for view in views])
    headline, sentences = comparison_words(pairs, labels, device)
    distinct = sides[:1] if sides[0] is sides[1] else sides
    cautions = list(_cautions(sides[0], {}))
    if len(distinct) > 1:
        cautions += [f"{labels[1]}: {words}" for words in recall_words(sides[1])]
    verdict = Verdict(device, headline, sentences, tuple(cautions))
    every: Sequence[Section] = (*sections, *(validity_section(side) for side in distinct))
    return ReportModel(
        REPORT_VERSION,
        request.title or f"colocate report: {labels[0]} against {labels[1]}",
        colocate.__version__,
        max(view.run.manifest.created for view in views),
        request.denominator,
        labels,
        verdict,
        sides[0].arms,
        (),
        tuple(every),
    )
