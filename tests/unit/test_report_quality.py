"""What a report says of recall: the same in HTML, Markdown and JSON, with and without kept tokens."""

from __future__ import annotations

import json
import re
from pathlib import Path

import msgspec
import pytest

from colocate.bench.records import SCHEMA_VERSION, RecallRecord
from colocate.bench.report.build import ReportRequest, build_report
from colocate.bench.report.html import to_html
from colocate.bench.report.markdown import to_markdown
from colocate.bench.report.model import Cell, ReportModel, Section
from colocate.bench.report.write import to_json
from tests.report_world import Truth, World, dynamic, static

ARMS = (static(40, 3.0), dynamic("slo", 3.0), Truth("vllm", "peer", 3.0, system="vllm", tells=False))


def _sweep(tmp_path: Path, *recalls: RecallRecord, keep_token_ids: bool = False) -> Path:
    world = World(ARMS, rates=(2.0, 4.0), seeds=(0, 1), num_requests=20, keep_token_ids=keep_token_ids, kind="cpu")
    folder = world.write(tmp_path / "sweep")
    (folder / "recall").mkdir()
    for number, record in enumerate(recalls):
        (folder / "recall" / f"{number}.json").write_bytes(msgspec.json.encode(record))
    return folder


def _recall(arm: str, right: int, asked: int = 50, failure: str = "") -> RecallRecord:
    command = ("colocate", "serve", "demo")
    return RecallRecord(SCHEMA_VERSION, arm, "demo", right, asked, 16, 0, command, "2026-01-01T00:00:00Z", failure)


def _quality(model: ReportModel) -> Section | None:
    return next((section for section in model.sections if section.id == "quality"), None)


def _rows(model: ReportModel) -> dict[str, dict[str, Cell]]:
    section = _quality(model)
    assert section is not None
    (table,) = (table for table in section.tables if table.id == "recall")
    labels = [column.label for column in table.columns]
    return {cells[0].text: dict(zip(labels, cells, strict=True)) for cells in table.rows}


def test_shares_with_their_interval_in_order_of_arms(tmp_path: Path) -> None:
    model = build_report(ReportRequest((_sweep(tmp_path, _recall("slo", 45), _recall("static:p92d40", 50)),)))
    section, rows = _quality(model), _rows(model)
    assert section is not None and [table.id for table in section.tables] == ["recall"]
    assert list(rows) == ["static:p92d40", "slo"]
    whole, short = rows["static:p92d40"], rows["slo"]
    assert (whole["right"].value, whole["asked"].value, whole["recalled"].value) == (50, 50, 100)
    # (0.9 + z z / 100 -+ z sqrt(0.09 / 50 + z z / 10000)) / (1 + z z / 50) with z = 1.96, by hand.
    assert short["recalled"].value == pytest.approx(90)
    assert (short["recalled"].low, short["recalled"].high) == (
        pytest.approx(78.64, abs=0.01),
        pytest.approx(95.65, abs=0.01),
    )
    assert (whole["recalled"].low, whole["recalled"].high) == (pytest.approx(92.87, abs=0.01), 100)
    assert (whole["recalled"].tone, whole["note"].text) == ("", "")
    assert short["recalled"].tone == "bad" and "may be wrong" in short["note"].text
    assert "Not asked: vllm." in section.lead[0]
    assert any("recalled by slo (45 of 50)" in text for text in model.verdict.cautions)


def test_one_model_is_written_three_ways(tmp_path: Path) -> None:
    folder = _sweep(tmp_path, _recall("slo", 45), _recall("static:p92d40", 0, 0, "ended with code 1:\nno such plan"))
    model = build_report(ReportRequest((folder,)))
    page, markdown, told = to_html(model), to_markdown(model), json.loads(to_json(model))
    (table,) = (table for section in told["sections"] for table in section["tables"] if table["id"] == "recall")
    assert table["rows"][1][3] == {"value": 90.0, "low": pytest.approx(78.64, abs=0.01),
                                   "high": pytest.approx(95.65, abs=0.01), "tone": "bad"}  # fmt: skip
    (shown,) = re.findall(r'<table id="recall">.*?</table>', page, re.DOTALL)
    assert '<td class="number bad"><data value="90.0">90' in shown
    assert '<td class="text long bad">failed: ended with code 1:\nno such plan</td>' in shown
    assert re.search(r"^\| slo \| 45 \| 50 \| 90\S* \\\[7\d", markdown, re.MULTILINE)
    assert re.search(
        r"^\| static:p92d40 \| - \| - \| - \| demo \| 16 \| failed: .*no such plan \|$", markdown, re.MULTILINE
    )
    cautions = " ".join(model.verdict.cautions)
    assert "The recall of static:p92d40 is not known" in cautions and cautions in " ".join(told["verdict"]["cautions"])


def test_beside_answers_token_by_token(tmp_path: Path) -> None:
    folder = _sweep(tmp_path, _recall("slo", 50), keep_token_ids=True)
    model = build_report(ReportRequest((folder,)))
    section = _quality(model)
    assert section is not None and [table.id for table in section.tables] == ["identical", "recall"]
    assert not [text for text in model.verdict.cautions if "recall" in text]


def test_nothing_to_say(tmp_path: Path) -> None:
    assert _quality(build_report(ReportRequest((_sweep(tmp_path),)))) is None


def test_a_record_that_cannot_be_read_is_listed(tmp_path: Path) -> None:
    folder = _sweep(tmp_path, msgspec.structs.replace(_recall("slo", 50), schema_version=9))
    model = build_report(ReportRequest((folder,)))
    (table,) = (table for section in model.sections for table in section.tables if table.id == "left-out")
    assert [cells[0].text for cells in table.rows] == ["0.json"] and "schema version 9" in table.rows[0][6].text
    assert "1 result could not be read." in model.verdict.cautions


def test_a_comparison_warns_of_both_sides(tmp_path: Path) -> None:
    a, b = _sweep(tmp_path / "a", _recall("slo", 49)), _sweep(tmp_path / "b", _recall("slo", 48))
    model = build_report(ReportRequest((), compare=(str(a), str(b))))
    words = [text for text in model.verdict.cautions if "recalled by slo" in text]
    assert len(words) == 2 and "(49 of 50)" in words[0] and "(48 of 50)" in words[1]
    arms = build_report(ReportRequest((a,), compare=("static:p92d40", "vllm")))
    assert not [text for text in arms.verdict.cautions if "recalled" in text]
