"""From result folders to the report's numbers: the truth of a made world, and figures recomputed by another path."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from colocate.bench.report.build import ReportRequest, build_report
from colocate.bench.report.model import LineChart, ReportModel
from colocate.bench.report.verdict import amount
from colocate.bench.report.words import number
from colocate.errors import ConfigError
from tests.report_world import ARMS, FAR, SMALL, TPOT_S, TTFT_S, Truth, World, raw, row, section, small, static, table


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return SMALL.write(tmp_path_factory.mktemp("world") / "sweep")


@pytest.fixture(scope="module")
def report(folder: Path) -> ReportModel:
    return build_report(ReportRequest((folder,)))


def test_each_bracket_holds_the_truth(report: ReportModel) -> None:
    truths = {truth.name: truth.goodput for truth in ARMS}
    own = [each for each in report.goodput if each.slo == "chat"]
    assert {each.arm for each in own} == set(truths)
    for each in own:
        assert each.above is not None and each.below is not None
        # Where a rate lies within a tenth of the truth, which side it falls on is chance.
        assert each.above * 0.9 <= truths[each.arm] <= each.below * 1.1, each


def test_the_first_sentence_names_the_device_and_the_winner(report: ReportModel) -> None:
    assert report.verdict.headline.startswith("Measured on an emulated device (emulated H200, 132 units)")
    own, published = report.verdict.by_slo
    assert own.finding == "dynamic" and own.difference is not None and own.lead is not None
    more, above = amount(own.difference), amount(own.lead)
    assert f"slo keeps 90% up to {number(own_goodput(report, 'slo'))}" in report.verdict.headline
    assert f", {above} more than {own.lead.b}, the next. Dynamic partitioning pays" in report.verdict.headline
    assert f"pays: slo keeps {more} more than the best static plan, static:p92d40." in report.verdict.headline
    named = " ".join(published.sentences)
    assert all(name in named for name in ("muxwise-8b", "semi-pd-8b-sharegpt", "bullet-arxiv", "chat-tight"))


def own_goodput(model: ReportModel, arm: str) -> float | None:
    return next(each.value for each in model.goodput if (each.slo, each.arm) == ("chat", arm))


@pytest.mark.parametrize(("arm", "files"), [("slo", "slo_6"), ("chunked:256", "chunked-256_4"), ("vllm", "vllm_8")])
def test_a_point_by_another_path(report: ReportModel, folder: Path, arm: str, files: str) -> None:
    good = of = 0
    ttfts: list[float] = []
    for line in raw(folder, files):
        of += 1
        times = line.get("token_s", [])
        assert isinstance(times, list)
        if times:
            ttfts.append(times[0] - line["scheduled_s"])
        if line["outcome"] == "finished":
            tpot = (times[-1] - times[0]) / (len(times) - 1)
            good += times[0] - line["scheduled_s"] <= TTFT_S and tpot <= TPOT_S
    found = row(table(report, "points"), arm, f"{files.rpartition('_')[2]} requests/s")
    assert (found["good"].value, found["counted"].value) == (good, of)
    assert found["attainment"].value == pytest.approx(good / of * 100)
    assert found["TTFT p90"].value == pytest.approx(float(np.quantile(ttfts, 0.9)) * 1e3)


def test_runs_that_do_not_count_are_listed_and_left_out(tmp_path: Path) -> None:
    statuses = {
        ("slo", 2.0, 0): "invalid",
        ("slo", 4.0, 0): "failed",
        ("slo", 4.0, 1): "failed",
        ("slo", 2.0, 1): "partial",
    }
    folder = small(tmp_path, statuses=statuses, missing=[("static:p92d40", 4.0, 1)])
    model = build_report(ReportRequest((folder,)))
    listed = {cells[0].text: cells for cells in table(model, "left-out").rows}
    assert set(listed) == {"slo_2_0", "slo_4_0", "slo_4_1", "slo_2_1"}
    assert "lateness 31 ms" in listed["slo_2_0"][6].text and "did not start" in listed["slo_4_0"][6].text
    point = row(table(model, "points"), "slo", "4 requests/s")
    assert point["counted"].text.startswith("failed: the server did not start")
    assert model.verdict.by_slo[0].finding == "unknown"
    words = " ".join(model.verdict.cautions)
    assert "left out (late client, cut, or failed): 4 of slo. What is left may flatter" in words
    assert "slo at 4 requests/s" in words and "1 run of the sweep missing: static:p92d40 at 4/s, seed 1" in words


def test_a_broken_run_does_not_hide_the_others(tmp_path: Path) -> None:
    folder = small(tmp_path)
    manifest = folder / "runs" / "slo_2_1" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"schema_version":1', '"schema_version":99'))
    model = build_report(ReportRequest((folder,)))
    broken = next(cells for cells in table(model, "left-out").rows if cells[0].text == "slo_2_1")
    assert "schema version 99" in broken[6].text
    assert any("could not be read" in text for text in model.verdict.cautions)


def test_an_empty_sweep_says_so(tmp_path: Path) -> None:
    folder = small(tmp_path, seeds=())
    with pytest.raises(ConfigError, match="holds no run that can be read"):
        build_report(ReportRequest((folder,)))


def test_the_same_run_twice_is_refused(tmp_path: Path) -> None:
    folder = small(tmp_path)
    with pytest.raises(ConfigError, match="the same arm, load and seed"):
        build_report(ReportRequest((folder, folder)))


def test_other_slos(tmp_path: Path) -> None:
    folder = small(tmp_path)
    easy = build_report(ReportRequest((folder,), slo=("all: ttft 60 s",)))
    assert all(cells[5].value == 100 for cells in table(easy, "points").rows)
    named = build_report(ReportRequest((folder,), slo=("semi-pd-8b-sharegpt",)))
    assert named.verdict.by_slo[0].targets == "TTFT 300 ms, TPOT 150 ms"
    names = [cells[0].text for cells in table(named, "winners").rows]
    assert len(names) == len(set(names)) and names[0] == "semi-pd-8b-sharegpt"
    with pytest.raises(ConfigError, match="no published SLO 'nonsense'"):
        build_report(ReportRequest((folder,), slo=("nonsense",)))
    with pytest.raises(ConfigError, match="no rule"):
        build_report(ReportRequest((folder,), denominator="mine"))


def test_classes_have_verdicts_of_their_own(tmp_path: Path) -> None:
    folder = small(tmp_path, slo=("chat: ttft 300 ms, tpot 50 ms", "batch: ttft 10 s"))
    model = build_report(ReportRequest((folder,)))
    names = [each.slo for each in model.verdict.by_slo]
    assert names == ["all classes", "class chat", "class batch", "Published SLOs"]
    shown = {cells[0].text: cells for cells in table(model, "published").rows}
    assert list(shown)[:3] == names[:3] and shown["class batch"][3].value == 100
    assert model.verdict.by_slo[2].finding == "tie"


def test_without_an_slo_every_finished_request_is_good(tmp_path: Path) -> None:
    model = build_report(ReportRequest((small(tmp_path, static(40, FAR), slo=()),)))
    assert any("No SLO was given" in text for text in model.verdict.cautions)
    assert all(cells[5].value == 100 for cells in table(model, "points").rows)


def test_several_arms_that_never_break(tmp_path: Path) -> None:
    arms = (static(40, FAR), Truth("shared", "shared", FAR, flags=("--mode", "shared")))
    model = build_report(ReportRequest((small(tmp_path, *arms),)))
    assert model.verdict.headline.endswith("2 of 2 arms keep 90% at every rate tested.")
    assert row(table(model, "goodput-table"), "shared")["goodput@90"].text == "at least"


def test_one_run_alone(tmp_path: Path) -> None:
    run = World((), num_requests=20).write_run(tmp_path / "run", static(40, 4.0, tells=False), 2.0, 0)
    model = build_report(ReportRequest((run,)))
    assert [arm.group for arm in model.arms] == ["static"]
    assert "a device that the server did not name; the client ran on 2 cores of Example CPU" in model.verdict.headline
    assert any("With 1 seed only" in text for text in model.verdict.cautions)
    assert section(model, "memory").lead == ("No server told its KV use or its memory, so there is nothing to show.",)


def test_closed_loop(tmp_path: Path) -> None:
    model = build_report(ReportRequest((small(tmp_path, closed=True),)))
    assert "there is no valid run at an offered rate; in closed loop" in model.verdict.headline
    assert row(table(model, "points"), "slo", "4 at once")["counted"].value == 40


@pytest.mark.parametrize(
    ("kind", "name", "words"),
    [
        ("cpu", "Example CPU", "Measured on 132 CPU cores (Example CPU)."),
        ("cuda", "NVIDIA H200", "Measured on a GPU (NVIDIA H200, 132 SMs)."),
        ("cuda", "fake device", "Measured on a fake CUDA driver (fake device): no GPU was there."),
        ("simulated", "toy", "Measured on a simulated device (toy): no process ran."),
    ],
)
def test_the_device_in_words(tmp_path: Path, kind: str, name: str, words: str) -> None:
    folder = small(tmp_path, static(40, 4.0), rates=(2.0,), seeds=(0,), device=name, kind=kind)
    assert build_report(ReportRequest((folder,))).verdict.headline.startswith(words)


def test_a_against_b(folder: Path, tmp_path: Path) -> None:
    arms = build_report(ReportRequest((folder,), compare=("slo", "static:p92d40")))
    figures = {(cells[0].text, cells[1].text): cells for cells in table(arms, "differences").rows}
    points = table(build_report(ReportRequest((folder,))), "points")
    a, b = (row(points, name, "6 requests/s")["attainment"].value for name in ("slo", "static:p92d40"))
    assert a is not None and b is not None
    found = figures["6 requests/s", "attainment"]
    assert (found[3].value, found[4].value) == (pytest.approx(a), pytest.approx(b))
    assert found[5].value == pytest.approx(a - b) and found[7].text == "A is better"
    assert figures["6 requests/s", "TTFT p90"][7].text == "A is better"
    assert figures["6 requests/s", "TTFT p90"][5].value < 0  # type: ignore[operator]
    shares = [cells for (_, figure), cells in figures.items() if figure == "attainment"]
    better = sum(cells[5].low is not None and cells[5].low > 0 for cells in shares)
    assert len(shares) == 4 and f"at {better} of 4 loads slo keeps more" in arms.verdict.headline
    (chart,) = section(arms, "comparison").charts
    assert isinstance(chart, LineChart)
    ((line_a, line_b),) = (panel.series for panel in chart.panels)
    assert (line_a.label, line_b.label) == ("slo", "static:p92d40")
    assert (line_a.y[2], line_b.y[2]) == (pytest.approx(a), pytest.approx(b))


def test_sides_are_compared_over_the_seeds_that_both_have(tmp_path: Path) -> None:
    arms = (static(40, 3.0), static(96, 2.0))
    folder = small(tmp_path, *arms, seeds=(0, 1, 2), statuses={("static:p36d96", 4.0, 2): "invalid"})
    found = build_report(ReportRequest((folder,), compare=("static:p92d40", "static:p36d96")))
    figures = {(cells[0].text, cells[1].text): cells for cells in table(found, "differences").rows}
    cells = figures["4 requests/s", "TTFT p90"]
    a, b, difference = (cell.value for cell in cells[3:6])
    assert a is not None and b is not None and difference == pytest.approx(a - b)
    assert cells[8].text == "40 requests against 40, 2 seeds"


def test_two_folders_have_sections_and_cautions_of_their_own(tmp_path: Path) -> None:
    a = small(tmp_path / "a", static(40, 3.0), static(96, 2.0))
    b = small(tmp_path / "b", static(40, 3.0), static(96, 2.0), statuses={("static:p92d40", 2.0, 0): "invalid"})
    model = build_report(ReportRequest((), compare=(str(a), str(b))))
    ids = [name for part in model.sections for name in (part.id, *(each.id for each in part.tables))]
    assert len(ids) == len(set(ids)) and {"validity-A", "validity-B", "left-out-B"} <= set(ids)
    assert any(text.startswith("B: 1 of") for text in model.verdict.cautions)
    assert not any("left out" in text for text in model.verdict.cautions if text.startswith("A: "))
    (chart,) = section(model, "comparison").charts
    assert [panel.title for panel in chart.panels] == ["static:p92d40", "static:p36d96"]  # type: ignore[union-attr]


def test_a_folder_against_itself_and_another(tmp_path: Path) -> None:
    a = small(tmp_path / "a", static(40, 3.0))
    same = build_report(ReportRequest((), compare=(str(a), str(a))))
    assert {cells[7].text for cells in table(same, "differences").rows} <= {"not distinguishable", "no interval"}
    other = small(tmp_path / "b", static(40, 3.0), rates=(3.0,))
    with pytest.raises(ConfigError, match="no arm and load in common"):
        build_report(ReportRequest((), compare=(str(a), str(other))))
    with pytest.raises(ConfigError, match="no arm or folder 'nobody'"):
        build_report(ReportRequest((a,), compare=("nobody", "static:p92d40")))
