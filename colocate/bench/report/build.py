"""Evidence to ReportModel: the one place where a report's numbers are put together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from msgspec import structs

import colocate
from colocate.bench.report.collect import Evidence, RunView, collect
from colocate.bench.report.comparison import check_arms, comparison_sections, comparison_words
from colocate.bench.report.curves import Curve, curves, goodput_of, slo_cases
from colocate.bench.report.device import device_words
from colocate.bench.report.headline import headline, published_verdict
from colocate.bench.report.load import load_words, model_words
from colocate.bench.report.model import REPORT_VERSION, ReportModel, Section, Verdict
from colocate.bench.report.sections.arms import arms_section
from colocate.bench.report.sections.definitions import definitions_section
from colocate.bench.report.sections.failures import failures_section
from colocate.bench.report.sections.latency import frontier_section, latency_section
from colocate.bench.report.sections.plans import residency_section, timeline_section
from colocate.bench.report.sections.quality import quality_section, recall_words
from colocate.bench.report.sections.rates import attainment_section, goodput_section
from colocate.bench.report.sections.reproduce import reproduce_section
from colocate.bench.report.sections.server import memory_section
from colocate.bench.report.sections.shares import ablation_section, heat_section
from colocate.bench.report.sections.trust import missing_words, validity_section
from colocate.bench.report.verdict import judge
from colocate.bench.report.words import count, listed

_MIN_SEEDS = 3


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
        arms_section(evidence),
        validity_section(evidence),
        reproduce_section(evidence),
    )
    device = device_words([view.run.manifest for view in evidence.views])
    num_own = sum(not case.is_published for case in cases)
    shown = [*verdicts[:num_own], *([published_verdict(verdicts[num_own:], len(found))] if found else [])]
    first = headline(evidence, device, verdicts[0], found)
    load = (model_words(evidence.views), load_words(evidence.views, evidence.sweeps))
    verdict = Verdict(device, *load, first, tuple(shown), _cautions(evidence, found))
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


def _cautions(evidence: Evidence, found: Mapping[str, Curve]) -> tuple[str, ...]:
    """What a reader of the first screen has to know before believing it."""
    words = list(evidence.slo_notes)
    left_out = [view for view in evidence.views if not view.counts]
    empty = [f"{point.arm} at {point.load}" for point in evidence.points if not point.views]
    if empty:
        words.append(f"Failed, without a run that counts: {listed(empty, 6)}.")
    if left_out:
        words.append(_left_out_words(left_out, len(evidence.views)))
    if evidence.unreadable:
        words.append(f"{count(len(evidence.unreadable), 'result')} could not be read.")
    words += _apart_words(evidence)
    words += recall_words(evidence)
    words += missing_words(evidence)
    few = {name: curve.found.rate_per_s.num_seeds for name, curve in found.items()
           if curve.found.rate_per_s.num_seeds < _MIN_SEEDS}  # fmt: skip
    if few:
        names = "Every arm" if len(few) == len(found) else listed(list(few), 6)
        have = f"{count(min(few.values()), 'seed')} only at some rate"
        words.append(f"With {have}, intervals see little of how seeds differ: {names}.")
    if evidence.rule != "colocate":
        words.append(f"Attainment uses the denominator of {evidence.rule}, not ours (good / offered).")
    not_told = sorted({view.run.manifest.arm for view in evidence.views if not view.run.manifest.target.device})
    if not_told and len(not_told) < len(evidence.arms):
        words.append(f"These servers did not name their device: {listed(not_told, 6)}.")
    return tuple(words)


def _apart_words(evidence: Evidence) -> list[str]:
    """Arms of one sweep take turns; those of another ran at another time."""
    groups = sorted(({arm.name for arm in sweep.arms} for sweep in evidence.sweeps), key=len)
    apart = set().union(*groups[:-1]) - groups[-1] if groups else set()
    if not apart:
        return []
    their = "its" if len(apart) == 1 else "their"
    return [
        f"{listed(sorted(apart), 6)} ran in a sweep of {their} own, not in turns with the others: "
        "the machine's drift may differ."
    ]


def _left_out_words(left_out: Sequence[RunView], num_runs: int) -> str:
    """Whose runs they are matters: where client and server share cores, a server may be what makes the client late."""
    by_arm = Counter(view.run.manifest.arm for view in left_out)
    named = listed([f"{num} of {arm}" for arm, num in by_arm.most_common()], 6)
    late = " What is left may flatter an arm whose load made the client late." if any(
        view.run.status == "invalid" for view in left_out) else ""  # fmt: skip
    return f"{len(left_out)} of {count(num_runs, 'run')} left out (late client, cut, or failed): {named}.{late}"


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
    first, sentences = comparison_words(pairs, labels, device)
    load = (model_words(views), load_words(views, sides[0].sweeps))
    if sides[0] is sides[1]:
        cautions, validity = list(_cautions(sides[0], {})), [validity_section(sides[0])]
    else:
        named = list(zip("AB", sides, strict=True))
        cautions = [f"{name}: {words}" for name, side in named for words in _cautions(side, {})]
        validity = [_of_side(name, validity_section(side)) for name, side in named]
    verdict = Verdict(device, *load, first, sentences, tuple(cautions))
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
        (*sections, *validity),
    )


def _of_side(name: str, section: Section) -> Section:
    """The section of one of two folders, with ids of its own."""
    tables = tuple(structs.replace(table, id=f"{table.id}-{name}") for table in section.tables)
    return structs.replace(section, id=f"{section.id}-{name}", title=f"{section.title} of {name}", tables=tables)
