"""Three renderers of one model: the same numbers, nothing that can be injected, nothing from outside the file."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from colocate.bench.report.build import ReportRequest, build_report
from colocate.bench.report.charts.draw import draw
from colocate.bench.report.charts.style import stylesheet
from colocate.bench.report.html import to_html
from colocate.bench.report.markdown import to_markdown
from colocate.bench.report.model import (
    Cell,
    Chart,
    Column,
    HeatChart,
    LineChart,
    Panel,
    ReportModel,
    Section,
    Series,
    Table,
    Verdict,
)
from colocate.bench.report.words import with_interval
from colocate.bench.report.write import choose_files, to_json, write_report
from colocate.cli.report import ReportAsk, run_report
from colocate.errors import ConfigError
from tests.report_world import Truth, World, dynamic, static

HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>|`&amp;"


class Page(HTMLParser):
    """What a browser would see: tags with attributes, tables as numbers and text, all text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.tables: dict[str, list[list[list[float]]]] = {}
        self.text: list[str] = []
        self._table = ""
        self._cells: list[list[float]] | None = None
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.tags.append((tag, found))
        if tag == "table":
            self._table = str(found["id"])
            self.tables[self._table] = []
        elif tag == "tbody":
            self._cells = []
        elif tag == "tr" and self._cells is not None:
            self._cells = []
            self.tables[self._table].append(self._cells)
        elif tag in ("td", "th") and self._cells is not None:
            self._cells.append([])
        elif tag == "data" and self._cells is not None:
            self._cells[-1].append(float(str(found["value"])))

    def handle_endtag(self, tag: str) -> None:
        if tag == "table":
            self._cells = None

    def handle_data(self, data: str) -> None:
        self.text.append(data)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    arms = (
        static(40, 4.5), static(96, 3.0), dynamic("slo", 7.0),
        Truth(HOSTILE, "chunked", 5.0, 3.0, flags=(HOSTILE,)),
    )  # fmt: skip
    world = World(
        arms,
        rates=(2.0, 4.0, 6.0),
        seeds=(0, 1),
        num_requests=60,
        device=HOSTILE,
        slo=("a: ttft 300 ms", "b: tpot 50 ms"),
    )
    made = tmp_path_factory.mktemp("world") / "sweep"
    for truth in world.arms:
        for rate in world.rates:
            for seed in world.seeds:
                safe = re.sub("[^a-z0-9]", "_", truth.name)
                world.write_run(made / "runs" / f"{safe}_{rate:g}_{seed}", truth, rate, seed)
    rows = made / "runs" / "slo_6_1" / "requests.jsonl"
    first, *rest = rows.read_text().splitlines()
    broken = {**json.loads(first), "outcome": "failed", "error_kind": HOSTILE, "error": HOSTILE}
    rows.write_text("\n".join([json.dumps(broken), *rest]) + "\n")
    return made


@pytest.fixture(scope="module")
def model(folder: Path) -> ReportModel:
    return build_report(ReportRequest(tuple(sorted((folder / "runs").iterdir())), title=HOSTILE))


@pytest.fixture(scope="module")
def page(model: ReportModel) -> str:
    return to_html(model)


def tables_of(document: dict[str, Any]) -> dict[str, Any]:
    return {table["id"]: table for section in document["sections"] for table in section["tables"]}


def test_every_number_of_the_page_stands_in_the_json(model: ReportModel, page: str) -> None:
    told = tables_of(json.loads(to_json(model)))
    seen = Page(page).tables
    assert set(seen) == set(told)
    num_values = 0
    for name, rows in seen.items():
        assert len(rows) == len(told[name]["rows"])
        for cells, expected in zip(rows, told[name]["rows"], strict=True):
            for values, cell in zip(cells, expected, strict=True):
                known = [cell.get(key) for key in ("value", "low", "high")] if cell.get("value") is not None else []
                assert values == [value for value in known if value is not None]
                num_values += len(values)
    assert num_values > 300


def test_markdown_shows_the_same_cells(model: ReportModel) -> None:
    lines = to_markdown(model).splitlines()
    told = tables_of(json.loads(to_json(model)))
    for name, table in told.items():
        for cells in table["rows"]:
            told_cells = [cell for cell in cells if cell.get("value") is not None]
            texts = [with_interval(cell["value"], cell.get("low"), cell.get("high")) for cell in told_cells]
            wanted = [text.replace("[", r"\[").replace("]", r"\]") for text in texts]
            first = " ".join(cells[0].get("text", "").split())
            start = "| " + re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", first)
            candidates = [line for line in lines if line.startswith(start)]
            assert any(all(value in line for value in wanted) for line in candidates), (name, cells[0])


def test_hostile_names_are_text(model: ReportModel, page: str) -> None:
    seen = Page(page)
    assert not [tag for tag, _ in seen.tags if tag in ("script", "img", "iframe", "object", "link", "base", "form")]
    assert not [name for _, attributes in seen.tags for name in attributes if name.startswith("on")]
    assert HOSTILE in "".join(seen.text)
    markdown = to_markdown(model)
    assert "<script>" not in re.sub(r"```.*?```", "", markdown, flags=re.DOTALL)


def test_hostile_names_do_not_break_markdown_tables(model: ReportModel) -> None:
    width = 0
    for line in to_markdown(model).splitlines():
        if not line.startswith("|"):
            width = 0
            continue
        bars = re.sub(r"\\.", "", line).count("|")
        width = width or bars
        assert bars == width, line


def test_nothing_comes_from_outside(page: str) -> None:
    seen = Page(page)
    for tag, attributes in seen.tags:
        for name in ("src", "href", "xlink:href", "action", "data", "poster", "srcset"):
            value = attributes.get(name)
            assert value is None or value.startswith("#"), (tag, name, value)
    assert re.findall(r"url\((?!#)", page) == []
    assert "@import" not in page
    assert "xmlns" not in page


def test_the_page_is_whole(page: str) -> None:
    assert page.startswith('<!DOCTYPE html>\n<html lang="en">')
    tags = Page(page).tags
    ids = [attributes["id"] for _, attributes in tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    links = [str(attributes["href"])[1:] for _, attributes in tags if attributes.get("href")]
    assert set(links) <= set(ids)
    assert all(attributes.get("scope") in ("col", "row") for tag, attributes in tags if tag == "th")
    charts = [attributes for tag, attributes in tags if tag == "svg"]
    assert len(charts) > 8
    assert all(attributes["role"] == "img" and len(str(attributes["aria-label"])) > 20 for attributes in charts)


def test_charts_are_well_formed_and_themed(model: ReportModel) -> None:
    for chart in (chart for section in model.sections for chart in section.charts):
        drawn = draw(chart)
        root = ElementTree.fromstring(drawn)
        assert root.attrib["aria-label"] == chart.alt
        assert root.findall(".//text"), chart.id
        assert not re.search(r"#0[a1]0", drawn), "a placeholder colour is left"
        assert "var(--ink)" in drawn
        assert len(drawn) < 60_000, (chart.id, len(drawn))


def test_the_same_results_give_the_same_bytes(model: ReportModel, page: str, folder: Path) -> None:
    again = build_report(ReportRequest(tuple(sorted((folder / "runs").iterdir())), title=HOSTILE))
    assert to_json(again) == to_json(model)
    chart = model.sections[0].charts[0]
    assert draw(chart) == draw(chart)


def _contrast(one: str, other: str) -> float:
    """WCAG 2.2, relative luminance."""

    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_contrast_in_light_and_dark() -> None:
    css = (Path("colocate/bench/report/page.css").read_text(encoding="utf-8"), stylesheet())
    for which in (0, 1):  # light stands first in both
        found: dict[str, str] = {}
        for text in css:
            found |= dict(re.findall(r"--([\w-]+):(#[0-9a-f]{6})", re.findall(r":root\{([^}]*)\}", text)[which]))
        for name in ("ink", "muted", "good", "bad", "link"):
            assert _contrast(found[name], found["page"]) >= 4.5, (which, name)
            assert _contrast(found[name], found["panel"]) >= 4.5, (which, name)
        for slot in range(8):
            assert _contrast(found[f"arm-{slot}"], found["page"]) >= 3.0, (which, slot)


def bare(*charts: Chart, tables: tuple[Table, ...] = ()) -> ReportModel:
    section = Section("s", "Section", ("lead",), charts, tables)
    return ReportModel(1, "t", "0", "2026", "colocate", (), Verdict("d", "m", "l", "h", (), ()), (), (), (section,))


def test_charts_with_holes_and_without_numbers() -> None:
    holes = Series("a", 0, (1.0, 2.0), (None, 3.0), (None, 2.0), (None, 4.0))
    empty = LineChart("l", "t", "alt", "x", "y", (Panel("", ()),), is_x_log=True)
    page = to_html(bare(LineChart("k", "t", "alt", "x", "y", (Panel("p", (holes,)),)), empty,
                        HeatChart("h", "t", "alt", "x", "y", ("1",), ("2",), ((None,),))))  # fmt: skip
    assert page.count("<svg") == 3


def test_cells() -> None:
    cells = (Cell(text="a"), Cell(0.0), Cell(1234.5, 1.0, None), Cell(5, text="left"), Cell(0.00012), Cell())
    table = Table("t", "c", tuple(Column(str(i), "ms") for i in range(6)), (cells,))
    markdown = to_markdown(bare(tables=(table,)))
    assert r"| a | 0 | 1,234 \[1, ..\] | 5 left | 1.2e-04 |  |" in markdown
    (values,) = Page(to_html(bare(tables=(table,)))).tables["t"]
    assert values == [[], [0.0], [1234.5, 1.0], [5.0], [0.00012], []]


def test_where_files_go(tmp_path: Path) -> None:
    assert choose_files(tmp_path / "r.html", ()) == {"html": tmp_path / "r.html"}
    assert choose_files(tmp_path / "r", ("md",)) == {"md": tmp_path / "r" / "report.md"}
    assert list(choose_files(None, ())) == ["html", "md", "json"]
    with pytest.raises(ConfigError, match="no format 'pdf'"):
        choose_files(None, ("pdf",))
    with pytest.raises(ConfigError, match="is one md file"):
        choose_files(tmp_path / "r.md", ("html",))
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be written"):
        write_report(bare(), {"md": tmp_path / "file" / "report.md"})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]


def test_the_command(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = tuple(sorted((folder / "runs").glob("s*_2_0")))
    assert run_report(ReportAsk(runs, tmp_path / "out", "md,json", None, (), "colocate", "")) == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["report.json", "report.md"]
    assert f"wrote {tmp_path / 'out' / 'report.md'}" in capsys.readouterr().out
    picture = tmp_path / "pictures" / "arms.svg"
    assert run_report(ReportAsk(runs, None, "", None, (), "colocate", "", picture)) == 0
    assert [path.name for path in picture.parent.iterdir()] == ["arms.svg"], "a picture alone"
    for ask, words in (
        (ReportAsk((), None, "", None, (), "colocate", ""), "no results are given"),
        (ReportAsk((), None, "", ("a", "b"), (), "colocate", ""), "there is no folder 'a'"),
        (ReportAsk((tmp_path / "none",), None, "", None, (), "colocate", ""), "there is no such folder"),
        (ReportAsk((tmp_path,), None, "", None, (), "colocate", ""), "holds neither"),
    ):
        with pytest.raises(ConfigError, match=words):
            run_report(ask)
