"""What stands below the first screen, section by section, against the rows it was made from."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest

from colocate.bench.records import Switch
from colocate.bench.report.build import ReportRequest, build_report
from colocate.bench.report.model import BarChart, DotChart, ReportModel
from colocate.bench.report.sections.plans import bands_of
from tests.report_world import FAR, SMALL, TPOT_S, TTFT_S, dynamic, raw, row, section, small, static, table


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return SMALL.write(tmp_path_factory.mktemp("world") / "sweep")


@pytest.fixture(scope="module")
def report(folder: Path) -> ReportModel:
    return build_report(ReportRequest((folder,)))


def test_broken_promises_by_another_path(report: ReportModel, folder: Path) -> None:
    found = row(table(report, "missed-table"), "chunked:256", "6 requests/s")
    kinds = dict.fromkeys(("did not finish", "TTFT only", "TPOT only", "TTFT and TPOT"), 0)
    for line in raw(folder, "chunked-256_6"):
        if line["outcome"] != "finished":
            kinds["did not finish"] += 1
            continue
        times, due = line["token_s"], line["scheduled_s"]
        assert isinstance(times, list) and isinstance(due, float)
        late, slow = times[0] - due > TTFT_S, (times[-1] - times[0]) / (len(times) - 1) > TPOT_S
        if late or slow:
            kinds["TTFT and TPOT" if late and slow else "TTFT only" if late else "TPOT only"] += 1
    assert {kind: found[kind].value for kind in kinds} == kinds
    assert kinds["TPOT only"] > 0 and found["no good"].value == sum(kinds.values())
    points = row(table(report, "points"), "chunked:256", "6 requests/s")
    assert (points["counted"].value or 0) - (points["good"].value or 0) == sum(kinds.values())


def test_lent_units_are_drawn_as_units() -> None:
    switches = (Switch(1.0, "all-decode", "p92d40", "", 1.1, 1.2), Switch(2.0, "p92d40", "all-prefill", "", 2.1, 2.0))
    bands = bands_of(switches, (), 3.0, 132)
    assert [(band.start_s, band.prefill_units, band.decode_units) for band in bands] == [
        (0.0, 0, 132), (1.2, 92, 40), (2.1, 132, 0),
    ]  # fmt: skip
    assert bands_of(switches, (), 3.0)[0].decode_units is None


def test_plans_too_many_for_a_bar_are_one_part(tmp_path: Path) -> None:
    folder = small(tmp_path)
    spent = {f"p{132 - units}d{units}": 0.02 for units in range(8, 104, 8)} | {"all-decode": 0.4, "(switching)": 0.36}
    for path in (folder / "runs").glob("slo_*/manifest.json"):
        path.write_text(json.dumps({**json.loads(path.read_text()), "residency": spent}))
    (chart, *_) = section(build_report(ReportRequest((folder,))), "residency").charts
    assert isinstance(chart, BarChart)
    names = [name for name, _ in chart.parts]
    assert len(names) == 8 and names[-3:] == ["all-decode", "(switching)", "7 other plans"]
    assert sum(values[0] for _, values in chart.parts) == pytest.approx(100)


def test_memory_is_what_the_sweep_saw_of_all_processes(tmp_path: Path) -> None:
    folder = small(tmp_path)
    for path in (folder / "runs").glob("slo_*/manifest.json"):
        told = json.loads(path.read_text())
        told["figures"] = {"server_resident_bytes": (3 + told["seed"]) * 2**30, "server_start_s": 4.5}
        path.write_text(json.dumps(told))
    model = build_report(ReportRequest((folder,)))
    found = row(table(model, "memory-table"), "slo", "4 requests/s")
    assert (found["memory"].value, found["start"].value) == (4, 4.5)
    other = row(table(model, "memory-table"), "static:p92d40", "4 requests/s")
    assert other["memory"].value == pytest.approx(1.5e9 / 2**30) and other["start"].value is None


def test_shares_of_the_best_static_plan_only_where_it_is_bounded(tmp_path: Path) -> None:
    bounded = small(tmp_path / "a", static(40, 2.5), dynamic("slo", FAR), num_requests=60)
    rows = table(build_report(ReportRequest((bounded,))), "goodput-table")
    assert row(rows, "slo")["of the best static plan"].text == "at least"
    assert (row(rows, "slo")["of the best static plan"].value or 0) > 100
    assert row(rows, "static:p92d40")["of the best static plan"].value == 100
    unbounded = small(tmp_path / "b", static(40, FAR), dynamic("slo", 2.5), num_requests=60)
    rows = table(build_report(ReportRequest((unbounded,))), "goodput-table")
    assert row(rows, "slo")["of the best static plan"].value is None


def test_one_rate_has_a_picture_too(tmp_path: Path) -> None:
    model = build_report(ReportRequest((small(tmp_path, rates=(2.0,)),)))
    (chart,) = section(model, "attainment").charts
    assert isinstance(chart, DotChart) and chart.level == 90
    shares = {mark.label: mark.x for mark in chart.marks}
    assert shares["slo"] == row(table(model, "points"), "slo", "2 requests/s")["attainment"].value


def test_the_scheduler_of_an_arm_is_what_its_server_told(tmp_path: Path) -> None:
    """A setting of the whole sweep is in no arm's flags."""
    folder = small(tmp_path)
    for path in (folder / "runs").glob("*/manifest.json"):
        told = json.loads(path.read_text())
        told["target"]["settings"]["config"] = {"scheduler": {"discipline": "edf", "admission": "greedy"}}
        path.write_text(json.dumps(told))
    rows = table(build_report(ReportRequest((folder,))), "ablation-table").rows
    assert [cells[1].text == "missing" for cells in rows] == [True, True, True, False]


def test_what_was_compared(report: ReportModel) -> None:
    words = {cells[0].text: cells[1].text for cells in table(report, "arms-table").rows}
    assert words["static:p92d40"].startswith("two workers, 92 units for prefill and 40 for decode")
    assert words["vllm"] == "another system: vllm" and "measured" not in words["slo"]
    (lead,) = section(report, "arms").lead
    assert "model demo, prompts of 203 and answers of 8 tokens (medians), Poisson arrivals, 3 seeds" in lead


def test_failures_by_another_path(report: ReportModel, folder: Path) -> None:
    broken = [line for line in raw(folder, "vllm_6") if line["outcome"] == "failed"]
    assert len(broken) == 60
    found = row(table(report, "failure-table"), "vllm", "6 requests/s")
    assert found["failed: reset"].value == len(broken)


def test_residency_and_bands(report: ReportModel) -> None:
    ledger = row(table(report, "ledger"), "slo", "4 requests/s")
    assert ledger["switches"].value == 6
    assert ledger["applied after p50"].value == pytest.approx(4.0)
    (chart,) = section(report, "timeline").charts
    bands = chart.bands  # type: ignore[union-attr]
    assert [band.plan for band in bands[:3]] == ["p92d40", "p68d64", "p116d16"]
    assert bands[0].start_s == 0 and bands[0].decode_units == 40
    assert all(a.end_s == b.start_s for a, b in pairwise(bands))


def test_the_share_map_holds_the_points(report: ReportModel) -> None:
    (chart,) = section(report, "share-map").charts
    points = table(report, "points")
    assert chart.rows == ("40", "96")  # type: ignore[union-attr]
    for units, values in zip((40, 96), chart.z, strict=True):  # type: ignore[union-attr]
        for rate, value in zip((2, 4, 6, 8), values, strict=True):
            assert value == row(points, f"static:p{132 - units}d{units}", f"{rate} requests/s")["attainment"].value


def test_ablation_names_what_is_missing(report: ReportModel) -> None:
    rows = table(report, "ablation-table").rows
    assert [cells[0].text for cells in rows] == ["neither", "partition only", "scheduler only", "both"]
    assert rows[0][1].text == "shared" and rows[1][1].text == "slo" and rows[2][1].text == "missing"
    assert any("Missing: scheduler only and both" in text for text in section(report, "ablation").lead)


def test_denominators_differ_where_requests_failed(report: ReportModel) -> None:
    found = table(report, "denominators")
    at = {
        cells[0].text: dict(zip((each.label for each in found.columns), cells, strict=True))["vllm"]
        for cells in found.rows
    }
    assert at["colocate"].text == "of 120" and at["vllm"].text != "of 120"
    ours, theirs = at["colocate"].value, at["vllm"].value
    assert ours is not None and theirs is not None and ours < theirs


def test_identical_answers(tmp_path: Path) -> None:
    emulated = build_report(ReportRequest((small(tmp_path / "emulated", keep_token_ids=True),)))
    assert "quality" not in {part.id for part in emulated.sections}, "it draws its tokens from a formula"
    folder = small(tmp_path, keep_token_ids=True, kind="cpu", device="Example CPU")
    path = folder / "runs" / "slo_2_0" / "requests.jsonl"
    first, *rest = path.read_text().splitlines()
    changed = json.loads(first)
    changed["token_ids"][-1] += 1
    path.write_text("\n".join([json.dumps(changed), *rest]) + "\n")
    found = row(table(build_report(ReportRequest((folder,))), "identical"), "slo")
    compared, same = found["compared"].value, found["identical"].value
    assert compared is not None and same == compared - 1
    assert found["earliest difference"].value == 7
    assert found["tokens before the first difference"].value == pytest.approx(100 - 100 / (compared * 8))


def test_an_arm_of_another_sweep_is_named_for_what_it_is(tmp_path: Path) -> None:
    folder = small(tmp_path)
    later = small(tmp_path / "later", dynamic("on-demand", 3.0))
    alone, both = (build_report(ReportRequest(folders)).verdict.cautions for folders in ((folder,), (folder, later)))
    assert not any("of its own" in caution for caution in alone)
    (found,) = [caution for caution in both if "of its own" in caution]
    assert found.startswith("on-demand ran in a sweep of its own")
