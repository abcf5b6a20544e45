"""One picture of a report for a README: by itself on any page, and with the numbers of the model."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
from msgspec import structs

from colocate.bench.report.build import ReportRequest, build_report
from colocate.bench.report.charts.lines import dodge_pt
from colocate.bench.report.model import ReportModel, Series
from colocate.bench.report.picture import drawn, write_picture
from colocate.bench.report.words import with_interval
from colocate.errors import ConfigError
from tests.report_world import ARMS, World


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ReportModel:
    world = World(ARMS, rates=(2.0, 4.0, 6.0), seeds=(0, 1), num_requests=30)
    return build_report(ReportRequest((world.write(tmp_path_factory.mktemp("world") / "sweep"),)))


def test_lines_that_coincide_stand_apart() -> None:
    lines = [Series(f"a{slot}", slot, (1.0, 2.0, 4.0), (100.0, 100.0, 90.0)) for slot in (2, 0, 1)]
    grey = Series("others", -1, (1.0, 2.0), (100.0, 100.0))
    shifts = dodge_pt([*lines, grey], 300)
    assert shifts == [pytest.approx(3.0), pytest.approx(-3.0), pytest.approx(0.0), 0.0]
    crowded = [Series(f"a{i}", i, (1.0, 1.03, 4.0), (1.0, 1.0, 1.0)) for i in range(3)]
    assert max(dodge_pt(crowded, 300)) - min(dodge_pt(crowded, 300)) < 300 * 0.01 / 2, "half of the least distance"
    assert dodge_pt(lines[:1], 300) == [0.0]


def test_the_picture_stands_alone(model: ReportModel, tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("one.svg", "two.svg", "one.png")]
    for path in files:
        write_picture(model, path)
    drawn_svg = files[0].read_text(encoding="utf-8")
    root = ElementTree.fromstring(drawn_svg)
    assert 600 < float(root.attrib["width"].removesuffix("pt")) < 720
    assert "var(--" not in drawn_svg and "<text" not in drawn_svg, "no style sheet and no font of the page is needed"
    links = re.findall(r'(?:href|src)="([^"]+)"', drawn_svg)
    assert all(link.startswith("#") for link in links)
    assert "fill: #ffffff" in drawn_svg, "a ground of its own, also on a dark page"
    assert drawn_svg == files[1].read_text(encoding="utf-8")
    assert files[2].read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.png", "one.svg", "two.svg"]


def test_the_picture_tells_every_arm_and_its_goodput(model: ReportModel) -> None:
    texts = [text.get_text() for text in drawn(model).texts]
    own = [each for each in model.goodput if each.slo == model.verdict.by_slo[0].slo]
    assert len(own) == len(ARMS)
    for each in own:
        name = next(text for text in texts if text and each.arm.startswith(text.removesuffix("..")))
        if each.above is not None and each.below is not None:
            assert texts[texts.index(name) + 1] == with_interval(each.value, each.low, each.high)
    assert model.verdict.model in texts[0] and model.verdict.by_slo[0].targets.replace(" ", "") in "".join(
        texts[1].split())  # fmt: skip


def test_no_picture_without_a_rate_or_a_known_suffix(model: ReportModel, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no attainment at an offered rate"):
        write_picture(structs.replace(model, sections=()), tmp_path / "a.svg")
    with pytest.raises(ConfigError, match=r"neither \.svg nor \.png"):
        write_picture(model, tmp_path / "a.jpg")
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be written"):
        write_picture(model, tmp_path / "file" / "a.svg")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
