"""`colocate workload`: what make writes comes back, show says what is in it, convert changes what it is asked to."""

from __future__ import annotations

import hashlib
import json
import re
import resource
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace
from typer.testing import CliRunner, Result

from colocate.cli.app import app
from colocate.cli.workload_show import histogram_lines, sparkline
from colocate.errors import ConfigError
from colocate.workload.read import read_lengths, read_workload
from colocate.workload.recipe import SHAPES, Recipe, cook
from colocate.workload.rows import WorkloadRow
from colocate.workload.sharing import shared_tokens

AZURE = Path("benchmarks/traces/azure_llm_2023_conv.csv")
MOONCAKE = Path("benchmarks/traces/mooncake_fast25_conversation_head1500.jsonl")
DEMO_MODEL = Path("colocate/model/demo")


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["workload", *map(str, arguments)])


def done(*arguments: object) -> Result:
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    return result


def refusal(*arguments: object) -> ConfigError:
    result = run(*arguments)
    assert isinstance(result.exception, ConfigError), result.output
    return result.exception


def shown(path: Path, *flags: object) -> dict[str, Any]:
    figures: dict[str, Any] = json.loads(done("show", path, "--json", *flags).stdout)
    return figures


@pytest.mark.parametrize("pattern", SHAPES)
@pytest.mark.parametrize("arrivals", ["constant", "poisson", "gamma:2"])
def test_every_pattern_is_written_as_it_is_made(tmp_path: Path, pattern: str, arrivals: str) -> None:
    out, again, other = tmp_path / "a.jsonl", tmp_path / "b.jsonl", tmp_path / "c.jsonl"
    flags = ("--rate", 4, "--lengths", "lognormal:40,0.5/20,0.5", "--duration", 30, "--arrivals", arrivals)
    done("make", pattern, "-o", out, "--seed", 5, *flags)
    done("make", pattern, "-o", again, "--seed", 5, *flags)
    done("make", pattern, "-o", other, "--seed", 6, *flags)
    assert out.read_bytes() == again.read_bytes() != other.read_bytes()
    recipe = Recipe(
        rates=(4.0,), lengths=("lognormal:40,0.5/20,0.5",), pattern=pattern, arrivals=arrivals, duration_s=30.0
    )
    assert read_workload(out).rows == cook(recipe, 5).rows


def test_lengths_are_drawn_from_a_trace_in_pairs(tmp_path: Path) -> None:
    out = tmp_path / "drawn.jsonl"
    done("make", "-o", out, "--rate", 10, "--lengths", AZURE, "--duration", 20)
    assert set(read_lengths(out)) <= set(read_lengths(AZURE))


def test_phases_and_ramps_take_two_rates_and_classes_their_weights(tmp_path: Path) -> None:
    out = tmp_path / "phases.jsonl"
    phases = ("--rate", 2, "--rate", 8, "--lengths", "100/1", "--lengths", "1/100", "--period", 20, "--duration", 40)
    done(
        "make", "phase-shifting", "-o", out, "--arrivals", "constant", *phases, "--slo-class", "a=3", "--slo-class", "b"
    )
    figures = shown(out)
    assert figures["num_requests"] == 200
    rows = read_workload(out).rows
    assert [sum(row.prompt_tokens == tokens for row in rows) for tokens in (100, 1)] == [40, 160]
    assert sum(figures["slo_classes"].values()) == 200
    assert figures["slo_classes"]["a"] == pytest.approx(150, abs=20)
    done("make", "ramp", "-o", out, "--rate", 1, "--rate", 9, "--lengths", "5/5", "--duration", 20)
    assert read_workload(out).duration_s == pytest.approx(20, abs=1)


def test_a_conversation_has_one_class(tmp_path: Path) -> None:
    out = tmp_path / "chat.jsonl"
    done("make", "chat", "-o", out, "--rate", 5, "--lengths", "9/9", "--slo-class", "a", "--slo-class", "b")
    rows = read_workload(out).rows
    assert {row.slo_class for row in rows} == {"a", "b"}
    assert len({(row.session, row.slo_class) for row in rows}) == len({row.session for row in rows})


def test_what_is_shared_has_the_shape_asked_for(tmp_path: Path) -> None:
    out = tmp_path / "schema.jsonl"
    shape = ("--shared-tokens", 90, "--block-tokens", 30)
    done("make", "shared-schema", "-o", out, "--rate", 5, "--lengths", "10/5", "--duration", 10, *shape)
    rows = read_workload(out).rows
    assert {(row.prompt_tokens, len(row.prefix), row.block_tokens) for row in rows} == {(100, 3, 30)}
    assert shown(out)["prefix_sharing"] == pytest.approx(0.9 * (len(rows) - 1) / len(rows))
    refused = refusal("make", "shared-schema", "-o", out, "--rate", 5, "--lengths", "10/5", "--shared-tokens", 100)
    assert refused.where == "--shared-tokens"
    assert refusal("make", "chat", "-o", out, "--rate", 5, "--lengths", "1/5", "--num-uses", 0).where == "--num-uses"


def test_sharing_counts_prefixes_conversations_and_cut_blocks() -> None:
    rows = [
        WorkloadRow(0.0, 20, 4, (1, 2), 8, session="a"),
        WorkloadRow(1.0, 12, 4, (1, 2), 8),  # ends within block 2
        WorkloadRow(2.0, 30, 4, session="a"),  # 20 + 4 of the turn before
        WorkloadRow(3.0, 30, 4, (3,), 8),
        WorkloadRow(4.0, 30, 4, (1, 3), 8),  # block 3 after block 1 is another text
    ]
    assert shared_tokens(rows) == [0, 12, 24, 0, 8]


def test_an_earlier_prompt_that_was_cut_shares_what_it_held() -> None:
    rows = [WorkloadRow(0.0, 3, 1, (1,), 8), WorkloadRow(1.0, 8, 1, (1,), 8), WorkloadRow(2.0, 20, 1, (1,), 8)]
    assert shared_tokens(rows) == [0, 3, 8]


def test_show_agrees_with_the_file(tmp_path: Path) -> None:
    figures = shown(MOONCAKE)
    assert (figures["num_requests"], figures["format"]) == (1500, "Mooncake")
    assert sum(figures["requests_over_time"]) == sum(figures["prompt"]["histogram"].values()) == 1500
    # By another path: blocks whose id came before, all of them leading ones in this trace.
    seen: set[int] = set()
    found = total = 0
    for line in MOONCAKE.read_text().splitlines():
        row = json.loads(line)
        for place, block in enumerate(row["hash_ids"]):
            found += (block in seen) * min(512, row["input_length"] - 512 * place)
        seen.update(row["hash_ids"])
        total += row["input_length"]
    assert figures["prefix_sharing"] == pytest.approx(found / total, rel=0.001)
    text = done("show", AZURE).stdout
    assert "19366" in text
    assert "p99" in text


def test_a_sparkline_and_a_histogram() -> None:
    assert sparkline([0, 1, 4, 8]) == " ▁▄█"
    assert histogram_lines({8: 1, 16: 4}) == [f"   8 - 15 {'█' * 10} 1", f"  16 - 31 {'█' * 40} 4"]


def test_convert_cuts_scales_and_names_classes(tmp_path: Path) -> None:
    out = tmp_path / "part.jsonl"
    done("convert", AZURE, "-o", out, "--seconds", 100, "--speed", 10, "--slo-class", "chat")
    rows = read_workload(out).rows
    expected = [row for row in read_workload(AZURE).rows if row.arrival_s < 100]
    assert [(row.prompt_tokens, row.output_tokens) for row in rows] == [
        (row.prompt_tokens, row.output_tokens) for row in expected
    ]
    assert [row.arrival_s for row in rows] == pytest.approx([row.arrival_s / 10 for row in expected])
    assert {row.slo_class for row in rows} == {"chat"}
    done("convert", AZURE, "-o", out, "--rate", 2)
    assert shown(out)["rate"] == pytest.approx(2.0)


def test_convert_and_make_write_to_standard_output() -> None:
    result = done("convert", MOONCAKE, "-o", "-", "--seconds", 3)
    assert all(json.loads(line)["arrival_s"] < 3 for line in result.stdout.splitlines())


def test_a_dataset_becomes_lengths_for_make(tmp_path: Path) -> None:
    dataset, lengths, out = tmp_path / "set.json", tmp_path / "lengths.csv", tmp_path / "load.jsonl"
    turns = [{"value": "The first answer is here."}, {"value": "So it is."}]
    dataset.write_text(json.dumps([{"conversations": turns}, {"conversations": turns[:1]}]))
    assert "nobody says how many" in refusal("convert", dataset, "-o", lengths).problem
    result = done("convert", dataset, "-o", lengths, "--tokenizer", DEMO_MODEL)
    assert "1 without an answer" in result.stderr
    ((prompt, output),) = read_lengths(lengths)
    assert 5 <= prompt <= len(turns[0]["value"])
    done("make", "-o", out, "--rate", 5, "--lengths", lengths, "--duration", 5)
    assert set(read_lengths(out)) == {(prompt, output)}
    assert refusal("convert", dataset, "-o", out, "--tokenizer", DEMO_MODEL).remedy.startswith("write to FILE.csv")
    assert refusal("convert", dataset, "-o", lengths, "--rate", 3, "--tokenizer", DEMO_MODEL).where == "--rate"


def test_failures_in_a_trace_are_left_out_when_asked(tmp_path: Path) -> None:
    trace, out = tmp_path / "burst.csv", tmp_path / "burst.jsonl"
    head = "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
    trace.write_text(head + "5,GPT-4,9,0,9,API log\n6,GPT-4,9,1,10,API log\n")
    assert "--skip-empty" in refusal("convert", trace, "-o", out).remedy
    assert "1 requests without tokens" in done("convert", trace, "-o", out, "--skip-empty").stderr
    assert shown(trace, "--skip-empty")["num_skipped"] == 1


def test_what_cannot_be_done_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "none" / "out.jsonl"
    assert "cannot be written" in refusal("convert", AZURE, "-o", out, "--seconds", 9).problem
    assert refusal("convert", AZURE, "-o", out, "--rate", 1, "--speed", 2).where == "--speed"
    assert refusal("convert", AZURE, "-o", out, "--seconds", 0).where == "--seconds"
    assert refusal("convert", AZURE, "-o", out, "--slo-class", "a=much").where == "--slo-class"
    assert refusal("convert", AZURE, "-o", out, "--slo-class", "a=0").where == "--slo-class"
    assert "no tokenizer" in refusal("convert", AZURE, "-o", out, "--tokenizer", tmp_path).problem
    assert "cannot read" in refusal("show", tmp_path / "none.csv").problem
    assert refusal("make", "waves", "-o", out, "--rate", 1, "--lengths", "5/5").where == "--pattern"
    assert run("make").exit_code == 2


def test_a_load_that_finds_no_room_leaves_what_was_there(tmp_path: Path) -> None:
    out = tmp_path / "load.jsonl"
    done("make", "-o", out, "--rate", 1, "--lengths", "5/5")
    before = out.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before), hard))
    try:
        refused = refusal("make", "-o", out, "--rate", 9, "--lengths", "5/5")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "cannot be written" in refused.problem
    assert out.read_bytes() == before
    assert list(tmp_path.iterdir()) == [out]
    assert "No space left" in refusal("make", "-o", "/dev/full", "--rate", 1, "--lengths", "5/5").problem


SAMPLES = Path("configs/bench/workloads")
SAMPLE_COMMANDS = [
    line.split()[2:] for line in (SAMPLES / "README.md").read_text().splitlines() if line[:9] == "colocate "
]


def test_each_sample_is_what_its_command_makes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = {path.name: read_workload(path) for path in SAMPLES.glob("*.jsonl")}
    monkeypatch.chdir(tmp_path)
    for command in SAMPLE_COMMANDS:
        done(*command)
    made = {path.name: read_workload(path) for path in tmp_path.iterdir()}
    assert made.keys() == kept.keys()
    assert {pattern for pattern in SHAPES if pattern != "steady"} <= {command[1] for command in SAMPLE_COMMANDS}
    for name, load in made.items():
        # A logarithm may differ in its last place between C libraries.
        assert load.duration_s == pytest.approx(kept[name].duration_s)
        for row, known in zip(load.rows, kept[name].rows, strict=True):
            assert row.arrival_s == pytest.approx(known.arrival_s)
            assert replace(row, arrival_s=0.0) == replace(known, arrival_s=0.0)
            assert row.prompt_tokens + row.output_tokens <= 1100


def test_traces_are_those_that_the_sources_name() -> None:
    folder = Path("benchmarks/traces")
    sums = re.findall(r"^([0-9a-f]{64})  (\S+)$", (folder / "SOURCES.md").read_text(), re.MULTILINE)
    assert {name for _, name in sums} == {path.name for path in folder.iterdir()} - {"SOURCES.md"}
    for expected, name in sums:
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == expected


def test_the_rows_in_the_documentation_are_a_workload(tmp_path: Path) -> None:
    (tmp_path / "doc.jsonl").write_text(Path("docs/workloads.md").read_text().split("```json\n")[1].split("```")[0])
    assert [row.session for row in read_workload(tmp_path / "doc.jsonl").rows] == ["", "a", "a"]
