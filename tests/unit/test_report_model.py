"""From result folders to the report's numbers: the truth of a made world, and figures recomputed by another path."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from colocate.bench.report.build import ReportRequest, build_report
from colocate.bench.report.model import Cell, ReportModel, Section, Table
from colocate.errors import ConfigError
from tests.report_world import FAR, TPOT_S, TTFT_S, Truth, World, dynamic, static

ARMS = (
    static(40, 4.5), static(96, 3.0), dynamic("slo", 7.0),
    Truth("chunked:256", "chunked", 5.0, 3.0, flags=("--mode", "chunked")),
    Truth("shared", "shared", 4.2, flags=("--mode", "shared"), plans=("shared",)),
    Truth("vllm", "peer", 4.1, system="vllm", tells=False, fails_at=6.0),
)  # fmt: skip
SMALL = World(ARMS, rates=(2.0, 4.0, 6.0, 8.0), num_requests=40)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return SMALL.write(tmp_path_factory.mktemp("world") / "sweep")


@pytest.fixture(scope="module")
def report(folder: Path) -> ReportModel:
    return build_report(ReportRequest((folder,)))


def section(model: ReportModel, name: str) -> Section:
    return next(each for each in model.sections if each.id == name)


def table(model: ReportModel, name: str) -> Table:
    return next(each for part in model.sections for each in part.tables if each.id == name)


def row(found: Table, *names: str) -> dict[str, Cell]:
    cells = next(each for each in found.rows if tuple(cell.text for cell in each[: len(names)]) == names)
    return {column.label: cell for column, cell in zip(found.columns, cells, strict=True)}


def small(tmp_path: Path, *arms: Truth, **changes: object) -> Path:
    options = {"rates": (2.0, 4.0), "seeds": (0, 1), "num_requests": 20, **changes}
    return World(arms or (static(40, 3.0), dynamic("slo", 3.0)), **options).write(tmp_path / "sweep")  # type: ignore[arg-type]


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
    assert "dynamic partitioning pays: slo beats the best static plan, static:p92d40" in report.verdict.headline
    assert report.verdict.by_slo[0].finding == "dynamic"


def raw(folder: Path, name: str) -> Iterator[dict[str, object]]:
    for path in sorted((folder / "runs").glob(f"{name}_*/requests.jsonl")):
        yield from map(json.loads, path.read_text(encoding="utf-8").splitlines())


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
    assert [each.slo for each in model.verdict.by_slo] == ["all classes", "class chat", "class batch"]
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
    assert any("1 seed only" in text for text in model.verdict.cautions)
    assert section(model, "memory").lead == ("No server told its KV use or its memory, so there is nothing to show.",)


def test_closed_loop(tmp_path: Path) -> None:
    model = build_report(ReportRequest((small(tmp_path, closed=True),)))
    assert "there is no valid run at an offered rate; in closed loop" in model.verdict.headline
    assert row(table(model, "points"), "slo", "4 at once")["counted"].value == 40


def test_identical_answers(tmp_path: Path) -> None:
    folder = small(tmp_path, keep_token_ids=True)
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


def test_a_folder_against_itself_and_another(tmp_path: Path) -> None:
    a = small(tmp_path / "a", static(40, 3.0))
    same = build_report(ReportRequest((), compare=(str(a), str(a))))
    assert {cells[7].text for cells in table(same, "differences").rows} <= {"not distinguishable", "no interval"}
    other = small(tmp_path / "b", static(40, 3.0), rates=(3.0,))
    with pytest.raises(ConfigError, match="no arm and load in common"):
        build_report(ReportRequest((), compare=(str(a), str(other))))
    with pytest.raises(ConfigError, match="no arm or folder 'nobody'"):
        build_report(ReportRequest((a,), compare=("nobody", "static:p92d40")))
