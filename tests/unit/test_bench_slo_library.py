"""Published SLO definitions: their targets, and each judged as its source judges it."""

from __future__ import annotations

from pathlib import Path

import pytest

from colocate.bench.slo_library import Definition, evaluate, library_folder, published_definitions, read_definitions
from colocate.config.slo import SloClass
from colocate.errors import ConfigError
from tests.bench_rows import row

PUBLISHED = {
    "bullet-sharegpt": ("p90", SloClass("bullet-sharegpt", tpot_s=0.15, ttft_per_token_s=0.003)),
    "bullet-azure-code": ("p90", SloClass("bullet-azure-code", tpot_s=0.2, ttft_per_token_s=0.0015)),
    "bullet-arxiv": ("p90", SloClass("bullet-arxiv", tpot_s=0.175, ttft_per_token_s=0.0015)),
    "semi-pd-8b-sharegpt": ("attainment", SloClass("semi-pd-8b-sharegpt", 0.3, 0.15)),
    "semi-pd-8b-sharegpt-loose": ("attainment", SloClass("semi-pd-8b-sharegpt-loose", 0.4, 0.2)),
    "semi-pd-8b-longbench": ("attainment", SloClass("semi-pd-8b-longbench", 2.25, 0.13)),
    "semi-pd-8b-longbench-loose": ("attainment", SloClass("semi-pd-8b-longbench-loose", 3.0, 0.18)),
    "muxwise-8b": ("p99-tbt", SloClass("muxwise-8b", itl_s=0.05)),
    "muxwise-70b": ("p99-tbt", SloClass("muxwise-70b", itl_s=0.1)),
    "chat-tight": ("attainment", SloClass("chat-tight", 0.3, 0.05)),
}


def test_the_published_definitions_and_their_sources() -> None:
    found = {definition.name: (definition.judged, definition.slo) for definition in published_definitions()}
    assert found == PUBLISHED
    assert all(definition.source for definition in published_definitions())


def test_every_file_of_the_library_can_be_read() -> None:
    files = sorted(library_folder().glob("*.yaml"))
    assert sum(len(read_definitions(file)) for file in files) == len(PUBLISHED)


def by_name(name: str) -> Definition:
    return next(definition for definition in published_definitions() if definition.name == name)


def test_p90_forgives_a_tenth_in_each_measure_where_attainment_does_not() -> None:
    """Of 20 requests two have a late first token and two others are slow: each P90 holds, a fifth misses."""
    rows = []
    for index in range(20):
        ttft_s = 0.9 if index < 2 else 0.1  # of 100 prompt tokens: 9 ms or 1 ms per token
        gap_s = 0.3 if index in (2, 3) else 0.1
        rows.append(row(index, 0.0, (ttft_s, ttft_s + gap_s)))
    found = evaluate(by_name("bullet-sharegpt"), rows)
    assert found.is_met is True and found.attainment.value == 0.8
    assert found.statistics["ttft_per_token_p90_s"] == pytest.approx(0.0018)  # place 17.1 of 0 .. 19
    assert found.statistics["tpot_p90_s"] == pytest.approx(0.12)
    assert found.targets == {"ttft_per_token_p90_s": 0.003, "tpot_p90_s": 0.15}
    per_request = Definition("own", by_name("bullet-sharegpt").slo, "attainment", "test")
    assert evaluate(per_request, rows).is_met is False


def test_p99_over_all_gaps_forgives_what_one_request_must_not_do() -> None:
    """One of 4 requests stalls once; there are 400 gaps, so P99 of all of them holds."""
    steady = [0.1 + 0.01 * i for i in range(101)]
    rows = [row(index, 0.0, steady) for index in range(3)]
    rows.append(row(3, 0.0, [*steady[:50], *(at + 2.0 for at in steady[50:])]))
    rows.append(row(4, 0.0, (0.1, 5.0)))  # one gap: its own P99
    found = evaluate(by_name("muxwise-8b"), rows)
    assert found.is_met is True and found.attainment.good == 4
    assert found.statistics["itl_p99_s"] == pytest.approx(0.01)
    slow = [row(5, 0.0, [0.06 * i for i in range(6)])]
    assert evaluate(by_name("muxwise-8b"), rows + slow).is_met is False
    assert evaluate(by_name("muxwise-70b"), rows + slow).is_met is True


def test_attainment_counts_what_did_not_finish_and_p90_does_not() -> None:
    rows = [row(index, 0.0, (0.1, 0.12)) for index in range(8)]
    rows += [row(8 + index, 0.0, outcome="rejected") for index in range(2)]
    assert evaluate(by_name("semi-pd-8b-sharegpt"), rows).is_met is False
    assert evaluate(by_name("bullet-sharegpt"), rows).is_met is True
    assert evaluate(by_name("bullet-sharegpt"), rows).attainment.value == 0.8


def test_nothing_to_judge_is_no_verdict() -> None:
    for name in ("muxwise-8b", "bullet-sharegpt", "chat-tight"):
        assert evaluate(by_name(name), []).is_met is None


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("definitions: {}", "missing required field `source`"),
        ("source: s\ndefinitions: {a: {targets: tpot 5 ms, judged: mean}}", "Invalid enum value 'mean'"),
        ("source: s\ndefinitions: {a: {targets: tpot 5, judged: p90}}", "needs a unit"),
        ("source: s\ndefinitions: {a: {targets: tpot 5 ms, judged: p99-tbt}}", "has no itl target"),
        ("source: s\ndefinitions: {a: {targets: none, judged: p90}}", "promises nothing"),
        (
            "source: s\ndefinitions: {a: {targets: ttft 1 s ttft_per_token 1 ms, judged: p90}}",
            "not their sum",
        ),
        ("source: s\ndefinitions: {a: {targets: itl 5 ms, judged: p90}}", "p90 judges ttft and tpot"),
        ("source: [", "is not valid YAML"),
    ],
)
def test_a_definition_that_cannot_be_judged_is_refused(tmp_path: Path, text: str, problem: str) -> None:
    path = tmp_path / "own.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=problem) as refused:
        read_definitions(path)
    assert "own.yaml" in str(refused.value)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_definitions(tmp_path / "missing.yaml")
